"""A stream's notes as text, Markdown minutes, JSON, or by a user's own template. Pure functions.

Three styles: *bullets* (every note, one line each), *minutes* (by kind, under headings), *executive*
(decisions, open actions and the weightiest topics). Headings are in the language of the notes where it
is known, else English. What speakers said is escaped: it cannot become Markdown or HTML.

A template (Jinja) sees data only. It may loop, branch and filter; it may not call, assign, import or
compute, and its steps and output are counted, so that neither time nor memory is unbounded whatever it
says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec
from jinja2 import Environment, TemplateError, nodes
from jinja2.filters import FILTERS
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.tests import TESTS
from msgspec.structs import replace

from operators.errors import ConfigError
from operators.events import NO_SETTINGS, ItemKind, LedgerItem, StreamSettings, SummaryEvent
from operators.text import units, unspaced

Form = Literal["text", "markdown", "json"]
KINDS: tuple[ItemKind, ...] = ("decision", "action_item", "open_question", "topic")
GONE = ("superseded", "withdrawn")
ANSWERED = ("open_question", "done")
EXECUTIVE_TOPICS = 3
MAX_TEMPLATE = 65_536
MAX_STEPS = 100_000
MAX_OUTPUT = 1_000_000
"""Characters that a template may write."""

_NAMES = ("decision", "action_item", "open_question", "topic", "participants", "done", "by")
_WORDS = {
    "ar": "قرارات|مهام|أسئلة مفتوحة|مواضيع|المشاركون|أُنجز|الموعد",
    "cs": "Rozhodnutí|Úkoly|Otevřené otázky|Témata|Účastníci|hotovo|do",
    "de": "Beschlüsse|Aufgaben|Offene Fragen|Themen|Teilnehmende|erledigt|bis",
    "en": "Decisions|Actions|Open questions|Topics|Participants|done|by",
    "es": "Decisiones|Tareas|Preguntas abiertas|Temas|Participantes|hecho|para",
    "fr": "Décisions|Actions|Questions ouvertes|Sujets|Participants|fait|pour",
    "it": "Decisioni|Attività|Domande aperte|Argomenti|Partecipanti|fatto|entro",
    "ja": "決定事項|タスク|未解決の質問|議題|参加者|完了|期限",
    "ko": "결정 사항|할 일|미해결 질문|주제|참석자|완료|기한",
    "nl": "Besluiten|Acties|Open vragen|Onderwerpen|Deelnemers|gedaan|voor",
    "pl": "Decyzje|Zadania|Otwarte pytania|Tematy|Uczestnicy|zrobione|do",
    "pt": "Decisões|Tarefas|Perguntas em aberto|Assuntos|Participantes|feito|até",
    "ru": "Решения|Задачи|Открытые вопросы|Темы|Участники|сделано|срок",
    "sv": "Beslut|Uppgifter|Öppna frågor|Ämnen|Deltagare|klart|senast",
    "tr": "Kararlar|Görevler|Açık sorular|Konular|Katılımcılar|tamamlandı|son tarih",
    "uk": "Рішення|Завдання|Відкриті питання|Теми|Учасники|зроблено|термін",
    "zh": "决定|任务|待解决的问题|议题|参与者|已完成|期限",
}
_MARKDOWN = re.compile(r"[\\`*_\[\]<>|~#]")


def render(
    summary: SummaryEvent, settings: StreamSettings = NO_SETTINGS, form: Form = "text"
) -> str:
    """The notes in a form, in the style that the stream asks for (minutes by default). A stream's own
    template takes the place of Markdown. Raises ConfigError when the template is wrong or too costly."""
    if form == "json":
        return msgspec.json.encode(data_of(summary, settings)).decode()
    if form == "markdown" and settings.template:
        return by_template(settings.template, data_of(summary, settings))
    return document(summary, settings, marked=form == "markdown")


def document(summary: SummaryEvent, settings: StreamSettings, *, marked: bool) -> str:
    """Text, or with ``marked`` Markdown; ends with a line break."""
    words = headings(settings.summary_language)
    style = settings.style or "minutes"
    lines = _head(settings, words, marked) if style != "bullets" else []
    for kind, items in grouped(summary.items, style).items():
        if not items:
            continue
        if style == "bullets":
            lines += [f"- {_line(item, words, marked, labelled=True)}" for item in items]
        else:
            heading = f"## {words[kind]}" if marked else words[kind]
            lines += [*([""] if lines else []), heading, *([""] if marked else [])]
            lines += _section(items, words, marked)
    return "\n".join(lines) + "\n"


def brief(items: Sequence[LedgerItem], language: str | None) -> str:
    """The live notes as plain text, by kind, without a title; "(none)" when there is none."""
    words, lines = headings(language), list[str]()
    for kind, found in grouped(items, "minutes").items():
        if found:
            lines += [words[kind], *_section(found, words, False)]
    return "\n".join(lines) or "(none)"


def _section(items: Sequence[LedgerItem], words: Mapping[str, str], marked: bool) -> list[str]:
    """One line per note. Whoever has several tasks, or said several things, is named once, above."""
    lines, told = [], set[str]()
    for item in items:
        name = _whose(item)
        theirs = [i for i in items if name and _whose(i) == name]
        if len(theirs) < 2:
            lines.append(f"- {_line(item, words, marked)}")
        elif name and name not in told:
            told.add(name)
            lines.append(f"- {_safe(name, marked)}")
            lines += [f"  - {_line(_without(name, i), words, marked)}" for i in theirs]
    return lines


def _whose(item: LedgerItem) -> str | None:
    """The owner of a task; of a topic who said it, where its text begins with the name."""
    if item.kind == "action_item":
        return item.owner
    speaker = item.evidence[0].speaker if item.evidence else None
    return speaker if speaker and item.kind == "topic" and _begins(item.text, speaker) else None


def _begins(text: str, name: str) -> bool:
    rest = text[len(name) :]
    return text.startswith(name) and (rest[:1].isspace() or unspaced(name)) and bool(rest.strip())


def _without(name: str, item: LedgerItem) -> LedgerItem:
    """The note without the name it begins with."""
    text = item.text[len(name) :].strip() if _begins(item.text, name) else item.text
    return replace(item, owner=None, text=text)


def listing(items: Iterable[LedgerItem], language: str | None) -> list[str]:
    """One line of plain text per item, with the word for its kind."""
    words = headings(language)
    return [f"- {_line(item, words, False, labelled=True)}" for item in items]


def grouped(items: Sequence[LedgerItem], style: str) -> dict[ItemKind, list[LedgerItem]]:
    """The items that a style shows, by kind, in order of the transcript; no answered question."""
    live = [i for i in items if i.state not in GONE and (i.kind, i.state) != ANSWERED]
    if style == "executive":
        topics = sorted((i for i in live if i.kind == "topic"), key=lambda i: -i.importance)
        kept = {item.id for item in topics[:EXECUTIVE_TOPICS]}
        live = [i for i in live if (i.kind != "topic" or i.id in kept) and i.state == "open"]
    return {kind: [item for item in live if item.kind == kind] for kind in KINDS}


def headings(language: str | None) -> dict[str, str]:
    """The words of a rendering in a language, English where it is not known."""
    words = _WORDS.get((language or "en").split("-")[0], _WORDS["en"]).split("|")
    return dict(zip(_NAMES, words, strict=True))


def data_of(summary: SummaryEvent, settings: StreamSettings = NO_SETTINGS) -> dict[str, Any]:
    """What JSON and templates are given: plain data, the items as a list and by kind."""
    items = [_plain(item) for item in summary.items if item.state not in GONE]
    by_kind = {kind: [item for item in items if item["kind"] == kind] for kind in KINDS}
    return {
        "stream_id": summary.stream_id,
        "title": settings.title or "",
        "participants": list(settings.participants or ()),
        "language": settings.summary_language or "",
        "style": settings.style or "minutes",
        "status": summary.status,
        "epoch": summary.epoch,
        "revision": summary.revision,
        "covers": msgspec.to_builtins(summary.covers),
        "items": items,
        "decisions": by_kind["decision"],
        "actions": by_kind["action_item"],
        "questions": by_kind["open_question"],
        "topics": by_kind["topic"],
        "headings": headings(settings.summary_language),
    }


def _plain(item: LedgerItem) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(item)
    return found


def _head(settings: StreamSettings, words: Mapping[str, str], marked: bool) -> list[str]:
    lines = []
    if settings.title:
        lines.append(f"# {_safe(settings.title, True)}" if marked else _safe(settings.title, False))
    if settings.participants:
        people = ", ".join(_safe(name, marked) for name in settings.participants)
        lines += [*([""] if lines and marked else []), f"{words['participants']}: {people}"]
    return lines


def _line(item: LedgerItem, words: Mapping[str, str], marked: bool, labelled: bool = False) -> str:
    said, details = set(units(item.text)), []
    if item.owner and not set(units(item.owner)) <= said:
        details.append(_safe(item.owner, marked))
    if item.due and not set(units(item.due)) <= said:
        due = _safe(item.due, marked)
        whole = due[:1].islower() and " " in due  # as it was said: "before June 3", "am Montag"
        details.append(due if whole else f"{words['by']} {due}")
    if item.state == "done":
        details.append(words["done"])
    if item.check == "doubtful":
        details.append("?")
    text = _safe(item.text, marked)
    if labelled:
        label = words[item.kind]
        text = f"**{label}:** {text}" if marked else f"{label}: {text}"
    return f"{text} ({', '.join(details)})" if details else text


def _safe(text: str, marked: bool) -> str:
    """One line; in Markdown nothing of it is markup."""
    line = " ".join(text.split())
    return _MARKDOWN.sub(lambda match: f"\\{match.group()}", line) if marked else line


# --- a user's template ---------------------------------------------------------------------------

_ALLOWED = (
    *(nodes.Template, nodes.Output, nodes.TemplateData, nodes.Name, nodes.Const, nodes.Getattr),
    *(nodes.Getitem, nodes.Slice, nodes.For, nodes.If, nodes.CondExpr, nodes.Filter, nodes.Test),
    *(nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Keyword),
)
_FILTERS = (
    *(
        "capitalize",
        "count",
        "default",
        "first",
        "groupby",
        "int",
        "join",
        "last",
        "length",
        "list",
    ),
    *("lower", "map", "reject", "rejectattr", "reverse", "round", "select", "selectattr", "sort"),
    *("title", "tojson", "trim", "truncate", "unique", "upper", "wordcount", "e", "escape"),
)
_TESTS = (
    "defined",
    "undefined",
    "none",
    "string",
    "number",
    "==",
    "equalto",
    "eq",
    "in",
    "ne",
    "!=",
)
_WRONG = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, SyntaxError, MemoryError),  # nested too deep for Python itself
)
_TICK = "_tick"


def by_template(template: str, data: Mapping[str, Any]) -> str:
    """The template filled with data. Raises ConfigError when it is wrong, uses what is not allowed, or
    exceeds its steps or its output."""
    if len(template) > MAX_TEMPLATE:
        raise ConfigError(f"template: more than {MAX_TEMPLATE} characters")
    environment, meter = _environment()
    try:
        tree = environment.parse(template)
        _check(tree)
        compiled = environment.from_string(_metered(tree, environment))
        return "".join(meter.written(compiled.generate({**data, _TICK: ""})))
    except _WRONG as error:
        raise ConfigError(f"template: {str(error)[:200]}") from None


class _Meter:
    """Counts steps and characters. Raises ConfigError beyond the limits."""

    def __init__(self) -> None:
        self._steps = 0

    def spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MAX_STEPS:
            raise ConfigError(f"template: more than {MAX_STEPS} steps")

    def written(self, chunks: Iterable[str]) -> Iterator[str]:
        size = 0
        for chunk in chunks:
            self.spend(1)
            size += len(chunk)
            if size > MAX_OUTPUT:
                raise ConfigError(f"template: more than {MAX_OUTPUT} characters")
            yield chunk

    def tick(self, value: object) -> str:
        self.spend(1)
        return ""

    def metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose input counts as steps, and whose output is bounded."""

        def call(*given: Any, **named: Any) -> Any:
            sizes = [len(value) for value in given if isinstance(value, str | list | tuple)]
            self.spend(1 + sum(sizes) // 16)
            if len(sizes) > 1 and sizes[0] * sizes[1] > MAX_OUTPUT:
                raise ConfigError(f"template: more than {MAX_OUTPUT} characters")
            result = function(*given, **named)
            if isinstance(result, str) and len(result) > MAX_OUTPUT:
                raise ConfigError(f"template: more than {MAX_OUTPUT} characters")
            return result

        call.__dict__.update(getattr(function, "__dict__", {}))  # how Jinja passes the environment
        return call


def _environment() -> tuple[ImmutableSandboxedEnvironment, _Meter]:
    environment, meter = ImmutableSandboxedEnvironment(autoescape=False), _Meter()
    environment.globals.clear()
    environment.filters = {name: meter.metered(FILTERS[name]) for name in _FILTERS}
    environment.filters[_TICK] = meter.tick
    environment.tests = {name: TESTS[name] for name in _TESTS}
    return environment, meter


def _check(tree: nodes.Template) -> None:
    for node in tree.find_all(nodes.Node):
        allowed = isinstance(node, _ALLOWED) and not getattr(node, "recursive", False)
        hidden = isinstance(node, nodes.Filter | nodes.Name) and node.name == _TICK
        if not allowed or hidden:
            what = type(node).__name__.lower()
            raise ConfigError(f"template line {node.lineno}: {what} is not allowed")


def _metered(tree: nodes.Template, environment: Environment) -> nodes.Template:
    """With a step counted in every turn of every loop."""
    for loop in list(tree.find_all(nodes.For)):
        name = nodes.Const("", lineno=loop.lineno)
        count = nodes.Filter(name, _TICK, [], [], None, None, lineno=loop.lineno)
        loop.body.insert(0, nodes.Output([count], lineno=loop.lineno))
    tree.set_environment(environment)
    return tree
