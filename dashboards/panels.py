"""What a board is made of: panels as plain data, PromQL in few words, and their Grafana form.

A panel says what it shows, in which unit, from which value on it is worth a look, and which alert
watches it. :func:`dashboard` turns a list of them into Grafana's model, with the types of
``grafana-foundation-sdk``; nothing else here knows Grafana.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from grafana_foundation_sdk.builders import bargauge, common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as dashboards
from grafana_foundation_sdk.models import common as forms
from grafana_foundation_sdk.models import dashboard as models

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="longstream-prometheus")
COLUMNS = 24
ROW_HEIGHT = 1
VARIABLES = {
    "worker": ("Worker", "label_values(longstream_build_info, worker)"),
    "model": ("Model", "label_values(longstream_build_info, model)"),
    "partition": ("Partition", "label_values(longstream_consumer_lag_messages, partition)"),
}


@dataclass(frozen=True)
class Query:
    """One expression and the name of its lines."""

    expr: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """``warn`` and ``bad``: values from which the panel turns orange and red, downwards if ``low``.
    Neither: the number is for information and has no limit. ``alert``: the rule that watches it."""

    title: str
    unit: str
    description: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "bargauge"] = "timeseries"
    warn: float | None = None
    bad: float | None = None
    low: bool = False
    alert: tuple[str, ...] = ()
    stacked: bool = False
    maximum: float | None = None
    width: int = 8
    height: int = 8


@dataclass(frozen=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Board:
    """One dashboard. ``variables``: names out of :data:`VARIABLES`."""

    name: str
    title: str
    description: str
    rows: tuple[Row, ...]
    variables: tuple[str, ...] = ("worker", "model")
    panels: list[Panel] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "panels", [panel for row in self.rows for panel in row.panels])

    @property
    def uid(self) -> str:
        return f"longstream-{self.name}"


# --- PromQL ------------------------------------------------------------------------------------


def series(name: str, extra: str = "", partition: bool = False) -> str:
    """A metric of the workers chosen at the top of the board."""
    matchers = 'worker=~"$worker",model=~"$model"'
    matchers += ',partition=~"$partition"' if partition else ""
    return f"longstream_{name}{{{matchers}{',' + extra if extra else ''}}}"


def total(name: str, by: str = "", how: str = "sum", partition: bool = False) -> str:
    """A gauge over all workers, or by labels."""
    return f"{how}{_by(by)}({series(name, partition=partition)})"


def rate(name: str, by: str = "", extra: str = "") -> str:
    """A counter per second, over all workers or by labels."""
    return f"sum{_by(by)}(rate({series(name, extra)}[$__rate_interval]))"


def grown(name: str, window: str, by: str = "") -> str:
    """How much a counter rose in ``window``."""
    return f"sum{_by(by)}(increase({series(name)}[{window}]))"


def quantile(share: float, name: str, by: str = "") -> str:
    """A quantile of a histogram; no value (instead of NaN) while nothing is observed."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share}, {rate(name + '_bucket', labels)}) >= 0"


def quantiles(name: str, *shares: float) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, name), f"p{share * 100:g}") for share in shares)


def mean(name: str, by: str = "") -> str:
    """The mean of a histogram; no value while nothing is observed."""
    return ratio(rate(f"{name}_sum", by), rate(f"{name}_count", by))


def ratio(part: str, whole: str) -> str:
    """``part / whole`` with no value where the whole is 0."""
    return f"{part} / ({whole} > 0)"


def _by(labels: str) -> str:
    return f" by ({labels}) " if labels else ""


# --- Grafana -----------------------------------------------------------------------------------


def dashboard(board: Board, others: Sequence[Board]) -> models.Dashboard:
    """Grafana's model of a board. Panels are numbered from 1 in the order they stand in."""
    built = (
        dashboards.Dashboard(board.title)
        .uid(board.uid)
        .description(board.description)
        .tags(["longstream"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
    )
    for name in board.variables:
        built = built.with_variable(_variable(name))
    for other in others:
        if other.name != board.name:
            built = built.link(
                dashboards.DashboardLink(other.title)
                .type(models.DashboardLinkType.LINK)
                .url(f"/d/{other.uid}")
                .include_vars(True)
                .keep_time(True)
            )
    number, y = 0, 0
    for row in board.rows:
        heading = dashboards.Row(row.title).id(900 + y)
        built = built.with_row(heading.grid_pos(_place(0, y, COLUMNS, ROW_HEIGHT)))
        x, y, tallest = 0, y + ROW_HEIGHT, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            place = _place(x, y, panel.width, panel.height)
            built = built.with_panel(_panel(panel).id(number).grid_pos(place))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
    return built.build()


def described(panel: Panel) -> str:
    """The panel's text with the way to its alerts' sections of the runbook."""
    alerts = [f"Alert {name}: docs/runbook.md#{name.lower()}." for name in panel.alert]
    return " ".join([panel.description, *alerts])


def _place(x: int, y: int, w: int, h: int) -> models.GridPos:
    return models.GridPos(h=h, w=w, x=x, y=y)


def _variable(name: str) -> dashboards.QueryVariable:
    label, query = VARIABLES[name]
    return (
        dashboards.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text=["All"], value=["$__all"]))
    )


def _panel(panel: Panel) -> Any:
    makers = {"timeseries": _timeseries, "stat": _stat, "bargauge": _bargauge}
    built = (
        makers[panel.kind](panel)
        .title(panel.title)
        .description(described(panel))
        .datasource(DATASOURCE)
        .unit(panel.unit)
        .no_value("–")
        .thresholds(_thresholds(panel))
    )
    if panel.maximum is not None:
        built = built.max(panel.maximum)
    for letter, query in zip("ABCDEFGH", panel.queries, strict=False):
        target = prometheus.Dataquery().ref_id(letter).expr(query.expr).datasource(DATASOURCE)
        target = target.legend_format(query.legend or "__auto")
        target = target.instant() if panel.kind == "bargauge" else target.range()
        built = built.with_target(target)
    return built


def _thresholds(panel: Panel) -> dashboards.ThresholdsConfig:
    steps = [models.Threshold(value=None, color="green")]
    limits = [(panel.warn, "orange"), (panel.bad, "red")]
    if panel.low:  # red below bad, orange below warn, green from there
        steps = [models.Threshold(value=None, color="red" if panel.bad is not None else "orange")]
        limits = [
            (panel.bad, "orange" if panel.warn is not None else "green"),
            (panel.warn, "green"),
        ]
    steps += [models.Threshold(value=v, color=color) for v, color in limits if v is not None]
    return dashboards.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _timeseries(panel: Panel) -> timeseries.Panel:
    limited = panel.warn is not None or panel.bad is not None
    line = forms.GraphThresholdsStyleMode.DASHED if limited else forms.GraphThresholdsStyleMode.OFF
    stacking = forms.StackingMode.NORMAL if panel.stacked else forms.StackingMode.NONE
    return (
        timeseries.Panel()
        .min(0)
        .line_width(1)
        .fill_opacity(10)
        .show_points(forms.VisibilityMode.NEVER)
        .stacking(common.StackingConfig().mode(stacking).group("A"))
        .thresholds_style(common.GraphThresholdsStyleConfig().mode(line))
        .legend(
            common.VizLegendOptions()
            .display_mode(forms.LegendDisplayMode.LIST)
            .placement(forms.LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(
            common.VizTooltipOptions()
            .mode(forms.TooltipDisplayMode.MULTI)
            .sort(forms.SortOrder.DESCENDING)
        )
    )


def _stat(panel: Panel) -> stat.Panel:
    last = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return (
        stat.Panel()
        .reduce_options(last)
        .color_mode(forms.BigValueColorMode.VALUE)
        .graph_mode(forms.BigValueGraphMode.AREA)
    )


def _bargauge(panel: Panel) -> bargauge.Panel:
    last = common.ReduceDataOptions().calcs(["lastNotNull"]).values(False)
    return (
        bargauge.Panel()
        .reduce_options(last)
        .orientation(forms.VizOrientation.HORIZONTAL)
        .display_mode(forms.BarGaugeDisplayMode.BASIC)
        .min(0)
    )
