"""The conformance kit: it passes what is right, and finds what is planted."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from operators.cache import batch
from operators.cache.batch import ForwardBatch
from operators.decoding import generation
from operators.decoding.verify import Verdict, accept_greedy
from operators.engine.archive import Archive
from pipelines.cli.main import make_cli
from pipelines.lab.benchmarks.harness import TOY
from pipelines.lab.conformance.cases import CASES, Kit, check
from pipelines.lab.conformance.command import ENGINES
from pipelines.lab.conformance.engine import Answer, NotOffered, Setup
from pipelines.lab.conformance.llamacpp import LlamaCpp
from pipelines.lab.conformance.material import Material, load
from pipelines.lab.conformance.ours import Ours

torch.set_num_threads(1)
UNPROVEN = {"lookup", "lookup-wrapped"}
"""The toy repeats nothing that could be looked up."""
RIGHT = {case.name: "unproven" if case.name in UNPROVEN else "passes" for case in CASES}


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return load(TOY, tmp_path_factory.mktemp("material"))


def results(make: Callable[[], Any], material: Material) -> dict[str, str]:
    kit = Kit(make, material)
    return {case.name: check(case, kit).result for case in CASES}


def test_our_engine_passes_every_case(material: Material) -> None:
    assert results(Ours, material) == RIGHT


# --- planted faults -------------------------------------------------------------------------------


class OneTooMany(Ours):
    """Its window is a token longer than asked for."""

    def load(self, material: Material, setup: Setup) -> None:
        wider = Setup(setup.sinks, setup.window + 1, setup.drafts, setup.answer_tokens)
        super().load(material, wider)


def test_a_window_off_by_one_is_found(material: Material) -> None:
    found = results(OneTooMany, material)
    assert {name for name, result in found.items() if result == "differs"} == {"window", "no-trace"}


def test_sinks_read_from_the_wrong_place_are_found(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = ForwardBatch._lay_out_positions

    def absolute(self: ForwardBatch, views: Any) -> None:
        whole(self, views)
        cos, sin = self._cos_sin  # the query stays at its absolute position, for the sinks too
        self._cos_sin = cos[:1], sin[:1]

    monkeypatch.setattr(ForwardBatch, "_lay_out_positions", absolute)
    found = results(Ours, material)
    assert found["plain"] == "passes"
    assert (found["window"], found["no-trace"]) == ("differs", "differs")


def test_a_key_that_should_have_been_evicted_is_found(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    sees = batch.branch_sees

    def longer(key: Any, fork: Any, layout: Any, origin: Any) -> Any:
        return sees(key, fork + 1, layout, origin) & (key < fork)  # the oldest token is missing

    monkeypatch.setattr(batch, "branch_sees", longer)
    found = results(Ours, material)
    assert (found["plain"], found["window"]) == ("passes", "differs")


def test_a_rejected_draft_that_stays_is_found(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gullible(best: Sequence[int], drafts: Sequence[int], eos: frozenset[int]) -> Verdict:
        return accept_greedy([*drafts[:1], *best[1:]] if drafts else best, drafts, eos)

    monkeypatch.setattr(generation, "accept_greedy", gullible)
    found = results(Ours, material)
    assert (found["window"], found["draft-model"]) == ("passes", "differs")
    assert found["draft-model-wrapped"] == "differs"


class FromText(Ours):
    """Its snapshot is the window's text, which is run again."""

    def restore(self, folder: Path) -> None:
        found = self._operator._archive.read((folder / "stream").read_bytes())
        self._operator.open("stream", found.memory.state)
        while self._operator.has_work():
            self._operator.step()
        self._fed = self._operator.cursor("stream") + 1


def test_a_snapshot_without_what_was_evicted_is_found(material: Material) -> None:
    assert results(FromText, material)["snapshot"] == "differs"


def test_a_lost_draft_memory_is_found(material: Material, monkeypatch: pytest.MonkeyPatch) -> None:
    """The text is right without it, but the drafts are not what they would have been."""
    read = Archive.read

    def forgetful(self: Archive, data: bytes) -> Any:
        found = read(self, data)
        return replace(found, kv=replace(found.kv, draft=None))

    monkeypatch.setattr(Archive, "read", forgetful)
    found = results(Ours, material)
    assert (found["snapshot"], found["snapshot-draft"]) == ("passes", "differs")


# --- other engines --------------------------------------------------------------------------------


class Little(Ours):
    """An engine that keeps no window and saves nothing, and breaks with drafts."""

    def feed(self, tokens: Sequence[int]) -> None:
        if len(tokens) > self._window:
            raise NotOffered("no window")
        super().feed(tokens)

    def generate(self, prompt: Sequence[int], count: int) -> Answer:
        if self._operator.config.drafter != "none":
            raise RuntimeError("out of drafts")
        return super().generate(prompt, count)

    def snapshot(self, folder: Path) -> None:
        raise NotOffered("no snapshot")


def test_what_an_engine_has_not_is_no_failure(material: Material) -> None:
    assert results(Little, material) == {
        "plain": "passes",
        "window": "not offered",
        "no-trace": "not offered",
        "lookup": "fails",
        "lookup-wrapped": "not offered",
        "draft-model": "fails",
        "draft-model-wrapped": "not offered",
        "snapshot": "not offered",
        "snapshot-draft": "not offered",
    }


def test_transformers_before_its_window_is_full(material: Material) -> None:
    from pipelines.lab.conformance.hf import Transformers

    kit = Kit(Transformers, material)
    found = {case.name: check(case, kit).result for case in CASES if case.name != "draft-model"}
    assert found["plain"] == found["snapshot"] == "passes"
    assert found["window"] == "not offered"


@pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp has no wheel here"
)
def test_llamacpp_runs_the_same_weights_and_rolls_its_window(material: Material) -> None:
    kit = Kit(LlamaCpp, material)
    found = {case.name: check(case, kit) for case in CASES[:3]}
    assert {verdict.result for verdict in found.values()} == {"passes"}, found


# --- the command ----------------------------------------------------------------------------------


def test_the_command_says_what_was_asked_and_how_it_ended() -> None:
    done = CliRunner().invoke(make_cli(), ["conformance", "--json"])
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    (one,) = said["engines"]
    assert (said["model"], one["engine"]) == ("toy", "ours")
    assert {row["case"]: row["result"] for row in one["cases"]} == RIGHT


def test_an_engine_of_ones_own_is_named_by_module_and_class() -> None:
    own = f"{__name__}:OneTooMany"
    done = CliRunner().invoke(make_cli(), ["conformance", "--engine", own])
    assert done.exit_code == 1
    assert "differs" in done.stdout


@pytest.mark.parametrize("name", ["vllm", "no.such.module:Engine", f"{__name__}:Nothing"])
def test_an_unknown_engine_is_a_wrong_option(name: str) -> None:
    done = CliRunner().invoke(make_cli(), ["conformance", "--engine", name])
    assert done.exit_code == 2


def test_every_adapter_is_importable_without_its_package() -> None:
    for path in ENGINES.values():
        module, _, kind = path.partition(":")
        assert hasattr(importlib.import_module(module), kind)
