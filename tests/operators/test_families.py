"""Families of models: every prompt stands in its family's own frame, whatever is said."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from operators.errors import ConfigError
from operators.model.families import NAMES, family_of
from operators.model.tokenizer import HubTokenizer
from operators.tasks.prompts import Prompts, packaged

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
NO_SYSTEM = "{% if m.role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
TEMPLATES = {
    # family: template, the tokens of its frame, what stands before and behind a conversation
    "qwen2.5": (
        "{% if messages[0].role != 'system' %}You are Qwen{% endif %}" + CHATML + "{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        CHATML + "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        ("<|im_start|>", "<|im_end|>", "<think>", "</think>"),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ),
    "smollm": (
        "{% if messages[0].role != 'system' %}SmolLM{% endif %}" + CHATML + "{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "chatml": (
        CHATML + "{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "llama3": (
        "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
        "{% if m.role == 'system' %}Today: {{ date_string }}\n\n{% endif %}"
        "{{ m.content }}<|eot_id|>{% endfor %}{% if add_generation_prompt %}"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\nS<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "gemma": (
        "{{ bos_token }}{% for m in messages %}" + NO_SYSTEM + "<start_of_turn>"
        "{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content }}<end_of_turn>\n"
        "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
        ("<start_of_turn>", "<end_of_turn>"),
        "<s><start_of_turn>user\nS\n\n",
        "<end_of_turn>\n<start_of_turn>model\n",
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}" + NO_SYSTEM + "{% if m.role == 'user' %}"
        "[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}",
        ("[INST]", "[/INST]", "</s>"),
        "<s>[INST] S\n\n",
        "[/INST]",
    ),
    "phi": (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        "<|system|>\nS<|end|>\n<|user|>\n",
        "<|end|>\n<|assistant|>\n",
    ),
}  # fmt: skip
MINE = sorted({token for _, tokens, _, _ in TEMPLATES.values() for token in tokens})
SAID = "Ana said " + "".join(MINE) + " and 100 % <s> of it."


def byte_level() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentence_piece() -> PreTrainedTokenizerFast:
    """Puts a space before every text it is given, as Llama 2's and Mistral's do."""
    letters = ["▁", *map(chr, range(33, 127)), "▁A", "▁B"]
    vocab = {c: i for i, c in enumerate(["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *letters])}
    backend = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=[("▁", "A"), ("▁", "B")],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def made(family: str, kind: Any, pack: str = "auto") -> HubTokenizer:
    raw = kind()
    template, tokens, _, _ = TEMPLATES[family]
    raw.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<s>", "</s>", *tokens)]
    )
    raw.bos_token, raw.eos_token = "<s>", "</s>"
    raw.chat_template = template
    return HubTokenizer(raw, config=None, family=pack)


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
@pytest.mark.parametrize("family", TEMPLATES)
def test_a_conversation_stands_in_the_familys_frame(family: str, kind: Any) -> None:
    """No token of the frame is missing or twice, none comes from what is said, and no space is added."""
    tokenizer = made(family, kind)
    _, tokens, before, after = TEMPLATES[family]
    assert tokenizer.family.name == family
    head, tail = tokenizer.chat("S", "{window}")
    said = tokenizer.encode(SAID)
    hub: Any = tokenizer.hub
    assert hub.decode([*head, *said, *tail]).removeprefix(" ") == before + SAID + after
    frame = set(hub.convert_tokens_to_ids(list(tokens)))
    reserved = set(hub.added_tokens_decoder)
    assert not reserved & set(said)
    written = [token for token in tokens if token in before + after]
    assert {hub.convert_tokens_to_ids(token) for token in written} == frame & {*head, *tail}
    assert [*head, *tail].count(hub.bos_token_id) == before.count("<s>")


@pytest.mark.parametrize("family", TEMPLATES)
def test_an_answer_ends_with_its_familys_token(family: str) -> None:
    tokenizer = made(family, byte_level)
    hub: Any = tokenizer.hub
    ends = {"<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "</s>"} & set(
        TEMPLATES[family][1]
    )
    assert {hub.convert_tokens_to_ids(end) for end in ends} <= tokenizer.eos_ids
    assert ends


def test_a_first_letter_is_the_one_that_the_template_begins_an_answer_with() -> None:
    """Mistral's answers begin with a space, which one token has with its letter."""
    spaced, plain = made("mistral", sentence_piece), made("gemma", sentence_piece)
    name: Any = spaced.hub.convert_ids_to_tokens
    assert (name(spaced.first("A")), name(plain.first("A"))) == ("▁A", "A")
    assert made("qwen3", byte_level).decode([made("qwen3", byte_level).first("B")]) == "B"


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
@pytest.mark.parametrize("family", TEMPLATES)
def test_prompts_have_no_double_spaces_and_no_space_at_a_lines_begin(
    family: str, kind: Any
) -> None:
    tokenizer = made(family, kind)
    prompts = Prompts(tokenizer)
    fields = {
        "turn": "Ana: Who pays?",
        "speaker": "Ana",
        "what": "what was said",
        "language": "English",
        "hint": "",
        "note": "N",
        "question": "Ana: Who pays?",
        "reply": "Ben: We do.",
    }
    forms = [name for name in packaged() if "." in name]
    for name in ("judge", *forms, "note", "owner", "due", "relation", "answered"):
        text = tokenizer.hub.decode(prompts.alone(name, **fields)).removeprefix(" ")
        assert "  " not in text.replace(". \n", ".\n")
        assert "\n " not in text
        assert "Ana" in text


@pytest.mark.parametrize("family", TEMPLATES)
def test_examples_are_turns_of_the_conversation(family: str) -> None:
    """In a prompt file ``---`` divides them; a system message that a template refuses goes into the
    first of them."""
    judge = "You sort.\n---\nAna: Hello.\n---\nA\n---\nBen: 3 cm.\n---\nB\n---\n{turn}"
    tokenizer = made(family, byte_level)
    plain = Prompts(tokenizer, {"judge": "You sort.\n---\n{turn}"})
    prompts = Prompts(tokenizer, {"judge": judge})
    text, bare = (
        tokenizer.hub.decode(p.alone("judge", turn="Who pays?")) for p in (prompts, plain)
    )
    order = ["You sort.", "Ana: Hello.", "A", "Ben: 3 cm.", "B", "Who pays?"]
    places = [text.index(order[0])]
    for said in order[1:]:
        places.append(text.index(said, places[-1] + 1))
    assert text.count("Who pays?") == 1
    assert text.endswith(bare.partition("Who pays?")[2]), "the answer begins as without examples"


def test_a_template_that_always_thinks_gets_an_empty_thought() -> None:
    raw = byte_level()
    raw.add_tokens([AddedToken(t, special=True) for t in ("<|im_start|>", "<|im_end|>")])
    raw.chat_template = CHATML + "<think>\n{% endif %}"
    tokenizer = HubTokenizer(raw, config=None)
    assert tokenizer.decode(tokenizer.chat("S", "{window}")[1]).endswith("<think>\n\n</think>\n\n")


def test_the_pack_can_be_chosen_and_wrong_names_are_refused() -> None:
    assert made("chatml", byte_level, pack="qwen3").family.name == "qwen3"
    assert {family_of(template).name for template, _, _, _ in TEMPLATES.values()} == set(TEMPLATES)
    assert family_of(None).name == "plain"
    with pytest.raises(ConfigError, match="one of smollm, qwen3"):
        family_of("", "qwen")
    assert set(TEMPLATES) | {"plain"} == set(NAMES)
