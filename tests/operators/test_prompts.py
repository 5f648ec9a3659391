"""Prompts: overrides are checked, nothing a speaker says is a placeholder, answers are opened."""

import re

import pytest

from operators import languages
from operators.errors import ConfigError
from operators.tasks.prompts import NAMES, Prompts, packaged
from tests.engine import ToyTokenizer


def text_of(prompts: Prompts, name: str, **fields: str) -> str:
    made = prompts.alone if name == "translate" else prompts.render
    return ToyTokenizer().decode(made(name, **fields))


def test_answer_is_opened_behind_the_end_of_the_question() -> None:
    prompts = Prompts(ToyTokenizer(), {"compact": "On {ledger} {limit}:\n{answer}{limit}: "})
    assert text_of(prompts, "compact", ledger="L", limit="4") == "On L 4:\n>4: "
    assert prompts.opening("compact", limit="4") == "4: "


def test_braces_in_spoken_text_stay_text() -> None:
    prompts = Prompts(ToyTokenizer())
    said = "what is {language} or {answer} or {limit}"
    assert said in text_of(prompts, "translate", language="French", text=said, hint="")


def test_files_of_the_package_have_all_their_placeholders() -> None:
    prompts = Prompts(ToyTokenizer())
    fields = {"ledger": "L", "limit": "4", "since": "S", "language": "French", "text": "T"}
    fields |= {"question": "Q", "turn": "U", "before": "B", "speaker": "A", "what": "W", "hint": ""}
    fields |= {"people": "P", "excerpts": "E", "note": "N", "reply": "R"}
    for name in set(NAMES) - {"system", "user"}:
        assert "{" not in text_of(prompts, name, **fields)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary", "no limit here", "must contain {limit}"),
        ("summary", "{limit} {unknown}", "no other placeholder"),
        ("translate", "{text}", "{language}, {text}"),
        ("sumary", "x", "no prompt 'sumary'"),
        ("judge", "S\n---\nAna: Hello.\n---\n{turn}", "an example without an answer"),
        ("judge.de", "no turn here", "must contain {turn}"),
        ("judge.german", "{turn}", "no prompt 'judge.german'"),
        ("answer.de", "{excerpts} {question}", "no prompt 'answer.de'"),
    ],
)
def test_wrong_overrides_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Prompts(ToyTokenizer(), {name: text})
    assert message in str(refused.value)


def test_ledger_may_be_shown_or_left_out() -> None:
    shown = Prompts(ToyTokenizer(), {"summary": "{ledger} {limit}"})
    assert "TOPIC: a" in text_of(shown, "summary", ledger="TOPIC: a", limit="4", since="")
    default = Prompts(ToyTokenizer())
    assert "TOPIC: a" not in text_of(default, "summary", ledger="TOPIC: a", limit="4", since="b")


def test_a_prompt_has_forms_for_languages() -> None:
    prompts = Prompts(ToyTokenizer(), {"judge.pt": "Em português: {turn}"})
    tags = ("de", "de-AT", "pt-BR", "zh-Hant", "en", "fi", None)
    forms = [prompts.form("judge", tag) for tag in tags]
    assert forms == ["judge.de", "judge.de", "judge.pt", "judge.zh", "judge", "judge", "judge"]
    assert prompts.form("note", "de") == "note"
    assert "Em português: Olá." in ToyTokenizer().decode(prompts.alone("judge.pt", turn="Olá."))


def test_a_changed_prompt_is_changed_for_all_languages() -> None:
    prompts = Prompts(ToyTokenizer(), {"judge": "Sort: {turn}", "judge.fr": "Trie : {turn}"})
    assert [prompts.form("judge", tag) for tag in ("de", "fr")] == ["judge", "judge.fr"]


@pytest.mark.parametrize("name", [name for name in packaged() if "." in name])
def test_the_forms_for_languages_have_the_same_kinds_of_examples(name: str) -> None:
    prompt, _, language = name.partition(".")
    form, plain = packaged()[name], packaged()[prompt]
    answers = re.compile(r"^Kind: .*$", re.MULTILINE)
    assert answers.findall(form) == answers.findall(plain)
    assert form.partition("---")[0] == plain.partition("---")[0]
    spoken = [line for line in form.splitlines() if line not in plain.splitlines()]
    assert len(spoken) == 8
    assert languages.detect(" ".join(line.partition(": ")[2] for line in spoken)) == language
