"""What a stream asks for, held to the operator's limits. Pure functions on plain data.

What is unknown or too large is left out and named; it never costs the rest. A field that was given
replaces the earlier one as a whole.
"""

from __future__ import annotations

from msgspec.structs import fields, replace

from operators import languages
from operators.config import STYLES, OperatorConfig
from operators.events import StreamSettings

LABEL_CHARS = 256
"""Characters of a title, a participant, a term and its renderings."""
GLOSSARY_CHARS = 32_768
"""Characters of a whole glossary: it is part of every state record."""
NAMES = tuple(field.name for field in fields(StreamSettings) if field.name != "dropped")
ANY_LANGUAGE = "*"


def merged(before: StreamSettings, given: StreamSettings) -> StreamSettings:
    """The settings with what is given in place of what was there. An empty text takes one back."""
    changes = {name: getattr(given, name) for name in NAMES if getattr(given, name) is not None}
    emptied = {name: None for name, value in changes.items() if value == ""}
    return replace(before, **changes | emptied)


def bounded(given: StreamSettings, config: OperatorConfig, translatable: bool) -> StreamSettings:
    """The settings within the limits; ``dropped`` names the fields of which something went.
    ``translatable``: whether the operator has room for translations at all."""
    found = {
        "title": _text(given.title, LABEL_CHARS),
        "targets": _targets(given.targets, config, translatable),
        "summary_language": _language(given.summary_language),
        "style": _one_of(given.style, STYLES),
        "template": _text(given.template, config.max_template),
        "glossary": _glossary(given.glossary, config.max_glossary),
        "participants": _participants(given.participants, config.max_participants),
        "instructions": _text(given.instructions, config.max_instructions),
    }
    lost = [name for name in NAMES if found[name] != getattr(given, name)]
    dropped = tuple(dict.fromkeys((*given.dropped, *lost)))
    return StreamSettings(**found, dropped=dropped)  # type: ignore[arg-type]


def _text(text: str | None, limit: int) -> str | None:
    return text if text is None or len(text) <= limit else None


def _one_of(name: str | None, known: object) -> str | None:
    return name if name in (None, "") or name in known else None  # type: ignore[operator]


def _language(tag: str | None) -> str | None:
    return languages.known(tag) or ("" if tag == "" else None)


def _targets(
    codes: tuple[str, ...] | None, config: OperatorConfig, translatable: bool
) -> tuple[str, ...] | None:
    """Those that are allowed; None (the operator's own) when all that was asked for is refused."""
    if not codes:
        return codes
    allowed = {languages.canonical(tag) for tag in config.allowed_targets}
    wanted = dict.fromkeys(tag for tag in map(languages.known, codes) if tag is not None)
    kept = [tag for tag in wanted if (not allowed or tag in allowed) and translatable]
    return tuple(kept[: config.max_targets]) or None


def _participants(names: tuple[str, ...] | None, limit: int) -> tuple[str, ...] | None:
    if names is None:
        return None
    return tuple(name for name in names if name and len(name) <= LABEL_CHARS)[:limit]


def _glossary(
    terms: dict[str, dict[str, str]] | None, limit: int
) -> dict[str, dict[str, str]] | None:
    if terms is None:
        return None
    kept: dict[str, dict[str, str]] = {}
    room = GLOSSARY_CHARS
    for term, renderings in terms.items():
        known = {
            code: text
            for code, text in renderings.items()
            if (code == ANY_LANGUAGE or languages.known(code)) and len(text) <= LABEL_CHARS
        }
        room -= len(term) + sum(map(len, known.values()))
        if term and len(term) <= LABEL_CHARS and len(kept) < limit and room >= 0:
            kept[term] = known
    return kept
