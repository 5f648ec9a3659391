"""Chat templates that have no system role, or write the date."""

from __future__ import annotations

import pytest

from operators.errors import ModelError
from operators.tasks.prompts import Prompts
from tests.operators.test_special_tokens import byte_tokenizer, hub

NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
)
LEFT_OUT = "{% for m in messages if m.role == 'user' %}[{{ m.content }}]{% endfor %}"
DATED = (
    "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
    "Today is {{ date_string }}, {{ strftime_now('%A') }}. "
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
)


def framed(template: str) -> tuple[str, str]:
    raw = byte_tokenizer()
    raw.chat_template = template
    tokenizer = hub(raw)
    before, after = tokenizer.chat("You take minutes.", "So far: {window} End.")
    Prompts(tokenizer)
    return tokenizer.decode(before), tokenizer.decode(after)


@pytest.mark.parametrize("template", [NO_SYSTEM, LEFT_OUT])
def test_without_a_system_role_its_words_begin_the_users(template: str) -> None:
    """The first ended in a traceback of jinja2, the second left the instruction out in silence."""
    before, after = framed(template)
    assert before.endswith("You take minutes.\n\nSo far: ")
    assert after.startswith(" End.")


def test_a_template_that_writes_the_date_gives_the_same_prefix_every_day() -> None:
    """Yesterday's snapshots were those of another prompt."""
    assert framed(DATED)[0].startswith("Today is 26 Jul 2024, Friday. ")


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('never') }}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ 1 + '' }}",
    ],
)
def test_a_template_that_takes_no_message_is_one_sentence(template: str) -> None:
    with pytest.raises(ModelError, match="chat template") as refused:
        framed(template)
    assert "\n" not in str(refused.value)
