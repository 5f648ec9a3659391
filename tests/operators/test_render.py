"""Renderings of a stream's notes, and the bounds of a user's template."""

from __future__ import annotations

import json
import re

import pytest
from msgspec.structs import replace

from operators.config import STYLES
from operators.errors import ConfigError
from operators.events import Evidence, ItemKind, LedgerItem, StreamSettings, SummaryEvent
from operators.render import MAX_TEMPLATE, brief, by_template, data_of, headings, render

SETTINGS = StreamSettings(title="Budget_2031", participants=("Ana", "Ben"))


def item(number: int, kind: ItemKind, text: str, **fields: object) -> LedgerItem:
    evidence = (Evidence(f"s{number}", 0, 900, "Ana"),)
    return LedgerItem(id=f"i{number}", kind=kind, text=text, evidence=evidence, **fields)  # type: ignore[arg-type]


ITEMS = (
    item(1, "topic", "Sales *fell* <b>", importance=0.4),
    item(2, "decision", "The beta ships on Thursday.", importance=0.7),
    item(3, "action_item", "Tell the support team.", owner="Ben", due="tomorrow"),
    item(4, "action_item", "Call the supplier.", owner="Ana", state="done"),
    item(5, "decision", "The beta ships on Tuesday.", state="superseded"),
    item(6, "open_question", "Who pays for the labels?"),
    item(7, "topic", "Weather.", state="withdrawn"),
    *(item(8 + n, "topic", f"Topic {n}.", importance=n / 10) for n in range(4)),
)
SUMMARY = SummaryEvent(stream_id="a", epoch=0, revision=3, items=ITEMS)


def test_minutes_in_markdown() -> None:
    assert render(SUMMARY, SETTINGS, "markdown").startswith(
        "# Budget\\_2031\n\nParticipants: Ana, Ben\n\n"
        "## Decisions\n\n- The beta ships on Thursday.\n\n"
        "## Actions\n\n- Tell the support team. (Ben, by tomorrow)\n"
        "- Call the supplier. (Ana, done)\n\n"
        "## Open questions\n\n- Who pays for the labels?\n\n"
        "## Topics\n\n- Sales \\*fell\\* \\<b\\>\n"
    )


def test_a_date_keeps_the_preposition_it_was_said_with() -> None:
    items = tuple(
        item(n, "action_item", "Do it.", due=due)
        for n, due in enumerate(("before June 3", "June 3", "tomorrow"))
    )
    text = render(replace(SUMMARY, items=items), StreamSettings(), "markdown")
    assert re.findall(r"\((.*)\)", text) == ["before June 3", "by June 3", "by tomorrow"]


def test_whoever_has_several_tasks_is_named_once() -> None:
    """Every task began with its owner's name, which was a tenth of the text."""
    items = (
        item(1, "action_item", "Ana calls the yard on Monday.", owner="Ana", due="Monday"),
        item(2, "action_item", "Ben sends the samples.", owner="Ben", due="tomorrow"),
        item(3, "action_item", "Ana's team waits.", owner="Ana", state="done"),
        item(4, "decision", "The beta ships."),
    )
    assert brief(items, "de").splitlines() == [
        *("Beschlüsse", "- The beta ships.", "Aufgaben", "- Ana"),
        *("  - calls the yard on Monday.", "  - Ana's team waits. (erledigt)"),
        "- Ben sends the samples. (bis tomorrow)",
    ]
    chinese = tuple(item(n, "action_item", f"王芳发{n}份合同。", owner="王芳") for n in (1, 2))
    assert brief(chinese, "zh").splitlines()[-2:] == ["  - 发1份合同。", "  - 发2份合同。"]
    assert brief((), None) == "(none)"


def test_whoever_said_several_things_is_named_once() -> None:
    """A fifth of the trigrams of long minutes were "Marketing reported that" and the like."""

    def said(number: int, text: str, speaker: str = "Ana") -> LedgerItem:
        return replace(
            item(number, "topic", text), evidence=(Evidence(f"s{number}", speaker=speaker),)
        )

    items = (
        said(1, "Ana reported that sales fell."),
        said(2, "The yard is closed."),
        said(3, "Ana believes that it opens in May."),
        said(4, "Ben reported a leak.", "Ben"),
        said(5, "Anabel is ill."),
    )
    assert brief(items, "en").splitlines() == [
        *("Topics", "- Ana", "  - reported that sales fell.", "  - believes that it opens in May."),
        *("- The yard is closed.", "- Ben reported a leak.", "- Anabel is ill."),
    ]


def test_what_was_said_cannot_become_markup_or_a_line_of_its_own() -> None:
    text = "# no\n- [x](javascript:1) `a` | ~b~"
    one = replace(SUMMARY, items=(item(1, "topic", text),))
    line = render(one, form="markdown").splitlines()[-1]
    assert line == "- \\# no - \\[x\\](javascript:1) \\`a\\` \\| \\~b\\~"


def test_bullets_have_one_line_for_every_live_note() -> None:
    text = render(SUMMARY, replace(SETTINGS, style="bullets"))
    assert len(text.splitlines()) == sum(i.state in ("open", "done") for i in ITEMS)
    assert text.startswith("- Decisions: The beta ships on Thursday.\n")


def test_executive_leaves_out_what_is_done_and_all_but_the_weightiest_topics() -> None:
    text = render(SUMMARY, replace(SETTINGS, style="executive"))
    assert "Call the supplier" not in text
    topics = [line for line in text.splitlines() if line.startswith(("- Topic", "- Sales"))]
    assert topics == ["- Sales *fell* <b>", "- Topic 2.", "- Topic 3."]


def test_json_holds_the_items_with_their_evidence() -> None:
    data = json.loads(render(SUMMARY, SETTINGS, "json"))
    assert [i["id"] for i in data["decisions"]] == ["i2"]
    assert data["decisions"][0]["evidence"][0]["segment_id"] == "s2"
    assert data["title"] == "Budget_2031"
    assert "i5" not in {i["id"] for i in data["items"]}


@pytest.mark.parametrize("style", STYLES)
def test_notes_without_an_item_render_in_every_style(style: str) -> None:
    empty = replace(SUMMARY, items=())
    assert render(empty, StreamSettings(style=style)).strip() == ""


def test_headings_are_there_for_every_language() -> None:
    for code in ("de", "zh-Hant", "ar", None, "xx"):
        assert len(set(headings(code).values())) == 7
    assert headings("de")["decision"] == "Beschlüsse"
    assert headings("xx") == headings("en")


def test_a_streams_own_template_takes_the_place_of_markdown() -> None:
    template = (
        "{{ title }}:{% for i in actions if i.state == 'open' %} {{ loop.index }} {{ i.text|upper }}"
        "{% endfor %} {{ topics|map(attribute='text')|join('; ')|truncate(9) }}"
    )
    settings = replace(SETTINGS, template=template)
    assert render(SUMMARY, settings, "markdown") == "Budget_2031: 1 TELL THE SUPPORT TEAM. Sales..."
    assert "TELL" not in render(SUMMARY, settings, "text")


LOOPS = "{% for a in items %}" * 12 + "{% endfor %}" * 12


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 1000000000 }}", "mul is not allowed"),
        ("{{ 9 ** 9 ** 9 }}", "pow is not allowed"),
        ("{{ 'a' ~ 'a' }}", "concat is not allowed"),
        ("{% set x = 1 %}", "assign is not allowed"),
        ("{% macro m() %}{% endmacro %}", "macro is not allowed"),
        ("{% include 'a' %}", "include is not allowed"),
        ("{% for a in items recursive %}{% endfor %}", "for is not allowed"),
        ("{{ ''.format(1) }}", "call is not allowed"),
        ("{{ range(9) }}", "call is not allowed"),
        ("{{ ''|_tick }}", "filter is not allowed"),
        ("{{ 'a'|attr('b') }}", "No filter named 'attr'"),
        ("{{ 'a'|center(999999999) }}", "No filter named 'center'"),
        ("{{ nothing.there }}", "'nothing' is undefined"),
        ("{% for", "unexpected 'end of template'"),
        (LOOPS, "steps"),
        ("{% for a in '" + "x" * 20_000 + "' %}" * 1 + "{{ items }}{% endfor %}", "characters"),
        ("{{ items" + "|tojson" * 30 + " }}", "more than"),
        ("{{ '" + "x" * 2000 + "'|join('" + "x" * 2000 + "') }}", "characters"),
        ("{% if 1 %}" * 300 + "{% endif %}" * 300, "template"),
        ("x" * (MAX_TEMPLATE + 1), "characters"),
    ],
)
def test_a_template_beyond_its_bounds_is_refused(template: str, reason: str) -> None:
    with pytest.raises(ConfigError, match="template") as error:
        by_template(template, data_of(SUMMARY, SETTINGS))
    assert reason in str(error.value)


def test_a_template_sees_data_and_nothing_of_python() -> None:
    assert by_template("{{ items.__class__ }}{{ title._x }}", data_of(SUMMARY)) == ""
