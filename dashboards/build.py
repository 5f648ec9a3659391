"""Writes what is generated: the four boards and docs/metrics.md.

``python -m dashboards.build`` from the top folder, after a change to ``dashboards/boards.py`` or to
``pipelines/observability/catalogue.py``. A test fails while a generated file is not what this writes.
"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards.boards import BOARDS
from dashboards.metrics_page import metrics_page
from dashboards.panels import dashboard

ROOT = Path(__file__).resolve().parent.parent


def generated() -> dict[Path, str]:
    """Every generated file with its text."""
    files = {
        ROOT / "dashboards" / "grafana" / f"{board.name}.json": as_json(dashboard(board, BOARDS))
        for board in BOARDS
    }
    return {**files, ROOT / "docs" / "metrics.md": metrics_page()}


def as_json(model: object) -> str:
    """Grafana's JSON of a model of the SDK, keys sorted, so that a change shows as a small diff."""
    plain = json.loads(JSONEncoder(sort_keys=True).encode(model))
    return json.dumps(plain, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main() -> None:
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
