"""A draft head on the model's own features: same text, and drafts as published heads make them."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from operators.cache.batch import ForwardBatch, Row
from operators.config import OperatorConfig
from operators.decoding.acceptance import TYPICAL, Costs, DraftControl
from operators.decoding.constraints import Constraint
from operators.decoding.draft_head import DraftHead, HeadDrafter
from operators.decoding.draft_model import ModelDrafter
from operators.decoding.drafters import Draft
from operators.decoding.generation import Decoding, Generation
from operators.errors import ConfigError, ModelError
from operators.model.head import Head, load_head, make_head
from operators.model.loader import DecoderModel, load_model
from operators.stream_operator import StreamOperator
from pipelines import models
from tests.engine import SINKS, Driver, layout, random_tokens, toy_decoder
from tests.operators.test_draft_model import FREE, interleaved, usage
from tests.operators.test_stream_operator import CONFIG, Clock, drain, events, ordered, run, speech

LAYER = "layers.0."


def tensors(target: DecoderModel, seed: int = 0, inner: int = 80) -> dict[str, Tensor]:
    """A head that guesses at random."""
    hidden, dim = target.network("prefill").embedding.shape[1], target.shape.head_dim
    q, kv = target.heads * dim, target.shape.kv_heads * dim
    shapes = {
        "fc": (hidden, 2 * hidden),
        f"{LAYER}self_attn.q_proj": (q, hidden),
        f"{LAYER}self_attn.k_proj": (kv, hidden),
        f"{LAYER}self_attn.v_proj": (kv, hidden),
        f"{LAYER}self_attn.o_proj": (hidden, q),
        f"{LAYER}mlp.gate_proj": (inner, hidden),
        f"{LAYER}mlp.up_proj": (inner, hidden),
        f"{LAYER}mlp.down_proj": (hidden, inner),
    }
    made = torch.Generator().manual_seed(seed)
    found = {
        f"{name}.weight": torch.randn(shape, generator=made) / shape[1] ** 0.5
        for name, shape in shapes.items()
    }
    found["fc.bias"] = 0.1 * torch.randn(hidden, generator=made)
    found[f"{LAYER}post_attention_layernorm.weight"] = torch.ones(hidden)
    return found


def fitted(target: DecoderModel, met: Sequence[tuple[Tensor, list[int]]]) -> dict[str, Tensor]:
    """A head that is a linear map, the best for these features and the tokens behind them."""
    embedding = target.network("prefill").embedding.float()
    pairs = [(torch.cat((embedding[tokens], f), dim=-1)[:-1], f[1:]) for f, tokens in met]
    known, wanted = (torch.cat(side) for side in zip(*pairs, strict=True))
    known = torch.cat((known, torch.ones(len(known), 1)), dim=-1)
    scale = 1e-3 * torch.eye(known.shape[1])
    found = torch.linalg.solve(known.T @ known + scale, known.T @ wanted).T
    made = tensors(target)
    made["fc.weight"], made["fc.bias"] = found[:, :-1].contiguous(), found[:, -1].contiguous()
    for silent in ("self_attn.o_proj", "mlp.down_proj"):
        made[f"{LAYER}{silent}.weight"].zero_()
    return made


class Recording(DraftHead):
    """Notes what the head is given, by answer."""

    def draft(self, wanted: Sequence[tuple[ModelDrafter, int]]) -> list[Draft]:
        for drafter, _ in wanted:
            assert isinstance(drafter, HeadDrafter)
            met = self.__dict__.setdefault("met", defaultdict(list))
            met[id(drafter)].append(
                (drafter, torch.cat(drafter.features), drafter.tokens[-drafter.lag :])
            )
        return super().draft(wanted)

    @property
    def answers(self) -> list[tuple[Tensor, list[int]]]:
        """Features and the tokens behind them, of every answer."""
        found = self.__dict__["met"].values()
        return [(torch.cat([f for _, f, _ in a]), [t for *_, ts in a for t in ts]) for a in found]


# --- one answer by hand ----------------------------------------------------------------------


class Vowels:
    """Every token but a few is forbidden."""

    def apply(self, scores: Tensor, output: Sequence[int]) -> Tensor:
        masked = torch.full_like(scores, -torch.inf)
        masked[..., ::3] = scores[..., ::3]
        return masked

    def complete(self, output: Sequence[int]) -> bool:
        return False


def answer(
    driver: Driver,
    head: Head | None,
    k: int,
    constraints: Sequence[Constraint] = (),
    kind: type[DraftHead] = DraftHead,
) -> tuple[Generation, DraftHead | None, list[tuple[Draft, int]]]:
    """One answer of 40 tokens behind a wrapped window: with every draft, and how much of it stood."""
    slot = driver.stream(SINKS)
    driver.feed(slot, random_tokens(50, seed=3), random.Random(1))
    decoding = Decoding(DraftControl(), by_model=True)
    generation = Generation(
        *("test", random_tokens(9, seed=4), 40, frozenset(), decoding),
        constraints=constraints,
        features=[] if head is not None else None,
    )
    generation.start(driver.cache.fork(slot))
    while generation.prefilling:
        row = generation.prompt_row(7)
        logits = driver.model.forward("prefill", driver.cache, [row])
        generation.prompt_done(len(row.tokens), logits if row.num_logits else None)
    made = kind(head, driver.model, slots=2, branches=4, tokens=80) if head is not None else None
    drafter = made.open(generation) if made is not None else None
    if drafter is not None:
        generation.drafters.append(drafter)
    drafts = []
    while not generation.finish_reason:
        draft = Draft()
        if made is not None and drafter is not None:
            draft = made.draft([(drafter, max(1, min(k, generation.draft_room(driver.cache))))])[0]
            draft = draft.cut(generation.draft_room(driver.cache))
        row = generation.verify_row(draft)
        accepted, _ = generation.verified(driver.model.forward("decode", driver.cache, [row]))
        drafts.append((draft, accepted))
    driver.cache.drop(generation.branch)
    return generation, made, drafts


def reference(
    target: DecoderModel, weights: dict[str, Tensor], features: Tensor, tokens: list[int], k: int
) -> list[int]:
    """Drafts as EAGLE-1 makes them, on transformers' layer, all of it anew for every token."""
    config = target._config
    layer = LlamaDecoderLayer(config, 0)
    config._attn_implementation = "eager"
    layer.input_layernorm = torch.nn.Identity()
    layer.mlp = type(layer.mlp)(type(config)(**{**config.to_dict(), "intermediate_size": 80}))
    own = {n.removeprefix(LAYER): t for n, t in weights.items() if n.startswith(LAYER)}
    layer.load_state_dict(own)
    rope, network = LlamaRotaryEmbedding(config), target.network("decode")
    drafted: list[int] = []
    with torch.inference_mode():
        while len(drafted) < k:
            read = network.embedding[[*tokens, *drafted]]
            joined = torch.cat((read, features), dim=-1)
            hidden = torch.nn.functional.linear(joined, weights["fc.weight"], weights["fc.bias"])
            n = len(hidden)
            mask = torch.full((n, n), -torch.inf).triu(1)[None, None]
            turned = rope(hidden[None], torch.arange(n)[None])
            out = layer(hidden[None], attention_mask=mask, position_embeddings=turned)
            last = (out[0] if isinstance(out, tuple) else out).view(n, -1)[-1:]
            features = torch.cat((features, last))
            drafted.append(int(network.head(last).argmax()))
    return drafted


@pytest.mark.usefixtures("device")
def test_drafts_are_those_of_the_published_method() -> None:
    """Against transformers' own layer without any cache: after rejections the target's features stand in
    place of the head's own."""
    driver = Driver(toy_decoder(), layout(branch=64))
    weights = tensors(driver.model)
    generation, made, drafts = answer(driver, make_head(weights, driver.model), 4, kind=Recording)
    assert isinstance(made, Recording)
    [(features, tokens)] = made.answers
    assert tokens == [*generation.prompt, *generation.output][1 : len(tokens) + 1]
    at = len(generation.prompt)
    plain = toy_decoder()
    for draft, accepted in drafts[:20]:
        want = reference(plain, weights, features[:at].cpu(), tokens[:at], len(draft.tokens))
        assert draft.tokens == want
        at += accepted + 1
    assert at > 25


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("masked", [False, True])
def test_a_head_that_is_right_saves_forwards(masked: bool) -> None:
    """Fitted to one answer it is right there; with a mask it was not fitted for it is rolled back."""
    driver = Driver(toy_decoder(), layout(branch=64))
    met = answer(driver, make_head(tensors(driver.model), driver.model), 3, kind=Recording)[1]
    assert isinstance(met, Recording)
    of_host = [(features.cpu(), tokens) for features, tokens in met.answers]
    head = make_head(fitted(toy_decoder(), of_host), driver.model)
    limits = [Vowels()] if masked else []
    plain, _, _ = answer(driver, None, 0, limits)
    fast, _, _ = answer(driver, head, 4, limits)
    assert (fast.output, fast.finish_reason) == (plain.output, plain.finish_reason)
    assert fast.drafted > 0
    if masked:
        assert fast.accepted < 0.5 * fast.drafted
    else:
        assert plain.verifies > 3 * fast.verifies


@pytest.mark.parametrize("arch", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_every_kind_of_model_has_heads(arch: str) -> None:
    """With the norms and biases of its own layers, if the head has them."""
    driver = Driver(toy_decoder(arch), layout(branch=64))
    weights = tensors(driver.model)
    if arch == "qwen2":
        weights |= {
            f"{LAYER}self_attn.{part}_proj.bias": torch.randn(64 if part == "q" else 32)
            for part in "qkv"
        }
    if arch == "qwen3":
        weights |= {f"{LAYER}self_attn.{part}_norm.weight": torch.ones(16) for part in "qk"}
        weights[f"{LAYER}input_layernorm.weight"] = torch.ones(64)
    plain, _, _ = answer(driver, None, 0)
    fast, _, _ = answer(driver, make_head(weights, driver.model), 3)
    assert fast.output == plain.output
    assert fast.drafted > 0


def test_features_are_handed_out_where_they_are_asked_for_only() -> None:
    model = toy_decoder()
    driver = Driver(model, layout())
    one, two, three = (driver.stream(SINKS) for _ in range(3))
    asking = Row(two, random_tokens(6, 2), num_logits=1, num_features=4)
    silent = Row(three, random_tokens(3, 3), num_features=2)
    rows = [Row(one, random_tokens(5, 1), num_logits=2), asking, silent]
    logits = model.forward("prefill", driver.cache, rows)
    assert rows[0].features is None
    assert (len(logits), asking.features.shape, silent.features.shape) == (3, (4, 64), (2, 64))
    torch.testing.assert_close(model.network("prefill").head(asking.features[-1]), logits[2])
    plain = ForwardBatch(driver.cache, [Row(one, [1], num_logits=1), Row(two, [2])], model.rope)
    assert plain.of_logits is None, "an operator more where no features are asked for"
    only = model.forward("prefill", driver.cache, [Row(one, [1, 2], num_features=2)])
    assert only.shape == (0, 258)


# --- in the operator -------------------------------------------------------------------------


def make(
    weights: dict[str, Tensor] | None, costs: Costs | None = FREE, **changes: object
) -> StreamOperator:
    model = toy_decoder()
    settings = {"drafter": "draft", "draft_head": "head"} if weights else {"drafter": "none"}
    few = {"max_draft": 5, "targets": ("fr",)}
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), **few, **settings, **changes})
    head = make_head(weights, model) if weights else None
    return StreamOperator(model, config, clock=Clock(), costs=costs, draft_head=head)


def texts(operator: StreamOperator, names: str = "ab") -> tuple[list[object], tuple[int, int, int]]:
    emissions = run(operator, interleaved(names, 4), shuffle=2)
    return [ordered(events(emissions, name)) for name in names], usage(emissions)


def learned(**changes: object) -> dict[str, Tensor]:
    """A head fitted to what an operator wrote: often right, and often not."""
    operator = make(tensors(toy_decoder()), **changes)
    assert operator._head is not None
    operator._head.__class__ = Recording
    texts(operator)
    assert isinstance(operator._head, Recording)
    met = [(features.cpu(), tokens) for features, tokens in operator._head.answers]
    return fitted(toy_decoder(), met)


HOT = {"temperature": 0.9, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("sampling", "slots"),
    [({}, 1), (HOT, 3), ({**HOT, "sampling_acceptance": "rejection"}, 2)],
    ids=["greedy", "coupled", "rejection"],
)
def test_a_head_changes_speed_only(sampling: dict[str, object], slots: int) -> None:
    plain, (_, _, forwards) = texts(make(None, slots=slots, **sampling))
    random_head, (drafted, accepted, _) = texts(
        make(tensors(toy_decoder()), slots=slots, **sampling)
    )
    assert random_head == plain
    assert 0 <= accepted < 0.2 * drafted
    good, (drafted, accepted, verifies) = texts(make(learned(**sampling), slots=slots, **sampling))
    assert good == plain
    assert 0 < accepted < drafted, "every outcome has to occur"
    assert verifies < forwards


def test_beside_the_other_drafters_too() -> None:
    plain, _ = texts(make(None))
    together, (drafted, accepted, _) = texts(make(learned(), drafter="auto"))
    assert together == plain
    assert 0 < accepted < drafted


def test_a_bad_head_is_not_asked_any_more() -> None:
    """So cheap that it is tried at first; then now and then, to see whether it has become better."""
    operator = make(tensors(toy_decoder()), costs=Costs(TYPICAL, TYPICAL.times(0.05)))
    operator.open("a")
    drafts = []
    for part in (speech("a", 20)[:6], speech("a", 20)[6:-1]):
        for segment in part:
            operator.feed(segment, segment.seq)
        emissions = drain(operator)
        tokens = sum(e.usage.output_tokens for m in emissions for e in m.events)
        drafts.append(usage(emissions)[0] / tokens)
    assert drafts[0] > 0.02
    assert drafts[1] < 0.5 * drafts[0]
    arm = operator._sessions["a"].draft_controls["translation:fr"].arm("head")
    assert arm.acceptance < 0.2


def test_its_cost_is_its_share_of_the_weights() -> None:
    made = make(tensors(toy_decoder()))._head
    assert made is not None
    share = made.costs(Costs()).drafting(1, 1) / Costs().verify.seconds(1)
    assert 0.5 < share < 0.9  # one layer and the output matrix, of two layers and it
    assert made.costs(FREE) is FREE


@pytest.mark.usefixtures("device")
def test_a_stream_goes_on_from_a_snapshot_with_or_without_a_head() -> None:
    words, weights = speech("a", 10), learned()
    first = make(weights)
    first.open("a")
    for at, segment in enumerate(words[:6]):
        first.feed(segment, at)
    drain(first)
    snapshot, outcomes = first.snapshot("a"), []
    for each in (first, make(weights), make(None), make(tensors(toy_decoder(), seed=5))):
        if each is not first:
            each.open("a", snapshot=snapshot)
        for at, segment in enumerate(words[6:], start=6):
            each.feed(segment, at)
        outcomes.append(ordered(events(drain(each), "a")))
    assert all(outcome == outcomes[0] for outcome in outcomes)


def test_nothing_of_it_stays_with_a_stream() -> None:
    operator = make(tensors(toy_decoder()), branches=4)
    made = operator._head
    assert made is not None
    own = operator.bytes_per_stream - make(None, branches=4).bytes_per_stream
    waiting = 4 * CONFIG.branch_tokens * 64 * 4
    assert own == (made.cache.nbytes + waiting) // CONFIG.slots
    run(operator, speech("a", 6)[:-1])
    session = operator._sessions["a"]
    assert not session.running
    assert made.cache.free_slots == 4, "a slot of a stream was taken"


# --- files -----------------------------------------------------------------------------------


def test_a_file_or_folder_is_loaded(tmp_path: Path) -> None:
    model = toy_decoder()
    copied = {"embed_tokens.weight": torch.zeros(3, 3)}  # the model's own is used
    weights = tensors(model)
    save_file({**weights, **copied}, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors"):
        head = load_head(path, model)
        torch.testing.assert_close(head.fc.weight.data, weights["fc.weight"])
        assert head.layer.attention_norm is None


def test_what_is_no_head_of_the_model_is_refused(tmp_path: Path) -> None:
    model = toy_decoder()
    whole = tensors(model)

    def refused(changed: dict[str, Tensor | None], match: str) -> None:
        found = {k: t for k, t in {**whole, **changed}.items() if t is not None}
        with pytest.raises(ModelError, match=match):
            make_head(found, model, name="h")

    q = f"{LAYER}self_attn.q_proj"
    refused(
        {"fc.weight": None, f"{LAYER}mlp.up_proj.weight": None}, "has no fc.weight, layers.0.mlp.up"
    )
    refused({f"{LAYER}mlp.gate_proj.weight": None}, "has no layers.0.mlp.gate_proj.weight")
    refused({f"{q}.bias": torch.ones(64)}, "has no layers.0.self_attn.k_proj.bias")
    refused({"midlayer.hidden_norm.weight": torch.ones(64)}, "what is midlayer")
    refused({"layers.1.mlp.up_proj.weight": torch.ones(1, 1)}, "what is layers.1")
    refused({"fc.weight": torch.ones(64, 64)}, r"fc.weight is \[64, 64\], not \[64, 128\]; choose")
    refused({f"{LAYER}mlp.down_proj.weight": torch.ones(64, 81)}, r"not \[64, 80\]")
    refused(
        {f"{q}.weight": torch.full((64, 64), torch.nan)}, "q_proj.weight has numbers that are not"
    )
    pickled = tmp_path / "pytorch_model.bin"
    torch.save(whole, pickled)
    for path in (pickled, tmp_path, tmp_path / "nothing"):
        with pytest.raises(ModelError, match="convert pickled heads"):
            load_head(path, model)


def test_what_does_not_go_together_is_said() -> None:
    with pytest.raises(ConfigError, match="not beside draft_model"):
        OperatorConfig(draft_model="small", draft_head="head")
    with pytest.raises(ConfigError, match="not loaded"):
        make(None, draft_head="head")
    model = toy_decoder()
    head = make_head(tensors(model), model)
    with pytest.raises(ConfigError, match="to be set"):
        StreamOperator(model, CONFIG, draft_head=head)
    config = OperatorConfig.from_dict({**CONFIG.to_dict(), "draft_head": "head"})
    with pytest.raises(ConfigError, match="give one of them"):
        StreamOperator(model, config, draft=toy_decoder(layers=1), draft_head=head)


# --- on a real model -------------------------------------------------------------------------


@pytest.mark.model
def test_a_head_changes_no_text_of_a_real_model() -> None:
    path = models.resolve("smollm2-135m")
    model = load_model(path, dtype_prefill="fp32", dtype_decode="fp32", device="cpu")
    driver = Driver(model, layout(branch=64))
    met = answer(driver, make_head(tensors(model), model), 2, kind=Recording)[1]
    assert isinstance(met, Recording)
    plain, _, _ = answer(driver, None, 0)
    for weights in (tensors(model), fitted(model, met.answers)):
        fast, _, _ = answer(driver, make_head(weights, model), 4)
        assert fast.output == plain.output
        assert fast.drafted > 0
    assert fast.accepted > 0.5 * fast.drafted
