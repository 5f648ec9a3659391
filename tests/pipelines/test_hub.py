"""transformers' generate as the model: what it answers is what the network says."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pytest
import torch

from operators.model.served import Form, Message, TextAnswer, TextRequest
from pipelines.served.hub import TransformersModel
from tests.toy import ByteTokenizer, toy_model

ASKED = (Message("user", "Say something."),)


class Tokenizer(ByteTokenizer):
    """The byte tokenizer with the names that transformers' have."""

    chat_template = None
    eos_token_id = ByteTokenizer.eos_id

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        return super().encode(text)

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        return super().decode(ids)


@pytest.fixture(scope="module")
def network() -> Any:
    return toy_model()


@pytest.fixture
def model(network: Any) -> Iterator[TransformersModel]:
    made = TransformersModel(network, Tokenizer(), name="toy")
    yield made
    made.close()


def ask(model: TransformersModel, **fields: Any) -> TextAnswer:
    wanted = {"messages": ASKED, "opening": "Well:", "max_tokens": 12, **fields}
    return model.submit(TextRequest(**wanted)).result(60)


def greedy(network: Any, tokens: int) -> list[int]:
    ids = Tokenizer().encode("Say something.\nWell:")
    start = len(ids)
    for _ in range(tokens):
        ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_an_answer_is_the_networks_greedy_one(network: Any, model: TransformersModel) -> None:
    answer = ask(model)
    made = greedy(network, 12)
    assert answer.text == Tokenizer().decode(made[: answer.output_tokens])
    assert answer.prompt_tokens == len(Tokenizer().encode("Say something.\nWell:"))
    assert answer.finish_reason == ("length" if answer.output_tokens == 12 else "stop")


def test_an_assistant_changes_the_speed_only(network: Any, model: TransformersModel) -> None:
    helped = TransformersModel(network, Tokenizer(), name="toy", assistant=toy_model(seed=1))
    assert ask(helped).text == ask(model).text
    helped.close()


def test_it_ends_where_the_task_says(model: TransformersModel) -> None:
    answer = ask(model, ends=lambda text: len(text) >= 3)
    assert answer.finish_reason == "stop"
    assert answer.output_tokens < 12


def test_letters_are_weighed_by_the_networks_logits(network: Any, model: TransformersModel) -> None:
    ids = torch.tensor([Tokenizer().encode("Say something.\nWell:")])
    logits = network(input_ids=ids).logits[0, -1, [65, 66, 67]].float()
    weights = ask(model, choices=("A", "B", "C")).weights
    assert weights == pytest.approx(torch.softmax(logits, dim=0).tolist())


def test_an_answer_is_cut_to_its_form(model: TransformersModel) -> None:
    whole = ask(model).text.lstrip()
    assert len(whole) > 2
    assert ask(model, form=Form("regex", "(?s:.){2}")).text == whole[:2]
