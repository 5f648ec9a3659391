"""On a GPU: what must hold, and tokens per second of many streams as a share of what memory allows.

Written for a machine that is lent for minutes: one command, under four minutes on a large card. With
``--quick`` or without CUDA it runs on the CPU with the toy model, which shows that it works and nothing
else. **Unmeasured so far**: no GPU was at hand when this was written.

The invariants are checked first, for each model in fp32 (to the last bit, or 1e-3 of a logit where
block sizes differ) and in bf16 (to the last bit, where nothing but memory is moved). Then windows are
filled with noise, which costs what text costs, and every stream decodes: one token a step, or a block of
BLOCK as a verify whose drafts all stand, which is the most that drafts can give. The limit is the time
that reading the weights once and every window once takes at the speed of a large copy.
"""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from operators.cache.batch import Row
from operators.cache.kv_cache import KvCache, KvLayout, StreamSlot, token_bytes
from operators.config import ATTENTION
from operators.decoding.verify import most_likely
from operators.errors import ModelError
from operators.model.loader import DecoderModel, load_model
from pipelines.lab.benchmarks.harness import TOY, Result, Run
from pipelines.lab.benchmarks.toy import toy_decoder

MODEL = "qwen2.5-coder-1.5b"
SMALL = "smollm2-135m"
BLOCK = 4
STREAMS = (1, 16, 64, 256)
WINDOWS = (1024, 4096)
SECONDS = 1.5
SINKS, SLACK, SCRATCH = 16, 128, 64
COPY_BYTES = 1 << 30
PEER_STREAMS = (1, 16)
PEER_TOKENS = 32


def run(run: Run) -> Result:
    """``broken``: invariants that did not hold (must be empty), with every attention backend that runs;
    ``left_out``: why one does not; ``tokens_s`` and ``of_limit`` by backend, window, streams and block;
    ``transformers_tokens_s`` by streams."""
    small = run.quick or not torch.cuda.is_available()
    device = "cpu" if small else "cuda"
    broken: list[str] = []
    left_out: list[str] = []
    names = [TOY] if small else [SMALL, run.model]
    backends = ("torch",) if small else ATTENTION
    for name, dtype in itertools.product(names, ("fp32", "bf16")):
        model = _load(run, name, dtype, device)
        for backend in backends:
            if refused := _refused(model, backend):
                left_out.append(f"{name} {dtype} {backend}: {refused}")
                run.say(left_out[-1])
                continue
            broken += [f"{name} {dtype} {backend}: {what}" for what in check(model)]
            run.say(f"{name} in {dtype}, {backend}: {len(broken)} invariants broken so far")
    windows, streams = ((64,), (1, 4)) if small else (WINDOWS, STREAMS)
    seconds = 0.05 if small else SECONDS
    model = _load(run, names[-1], "bf16", device)
    speed = _copy_speed(model.device, (1 << 20) if small else COPY_BYTES)
    tokens: Result = {}
    share: Result = {}
    for backend, window, count, block in itertools.product(backends, windows, streams, (1, BLOCK)):
        if _refused(model, backend):
            continue
        name = f"{backend}, window {window}, {count} streams, {block} a step"
        tokens[name], share[name] = _decode(model, window, count, block, seconds, speed)
        run.say(f"{name}: {tokens[name]} tokens/s, {share[name]} of the limit")
    del model
    gc.collect()
    peer = {} if small else _transformers(run, names[-1], windows[0])
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "measured": not small,
        "broken": broken,
        "left_out": left_out,
        "copy_gb_s": round(speed / 1e9, 1),
        "tokens_s": tokens,
        "of_limit": share,
        "transformers_tokens_s": peer,
    }


def _load(run: Run, name: str, dtype: str, device: str) -> DecoderModel:
    if name == TOY:
        return toy_decoder(dtype)
    from pipelines import models

    run.say(f"loading {name} in {dtype}")
    folder = models.resolve(name)
    return load_model(folder, name=name, device=device, dtype_prefill=dtype, dtype_decode=dtype)


def _refused(model: DecoderModel, backend: str) -> str:
    """Let the model attend with this backend, or say why it cannot."""
    try:
        model.attend_with(backend)
    except ModelError as error:
        return str(error)
    return ""


# --- what must hold ------------------------------------------------------------------------------


def check(model: DecoderModel) -> list[str]:
    """Names of the invariants that do not hold for this model on its device."""
    exact = model.dtypes["prefill"] == "fp32"
    checks: dict[str, tuple[Callable[[DecoderModel], bool], bool]] = {
        "blocks equal single tokens": (_blocks, exact),
        "a stream among others equals the stream alone": (_company, exact),
        "drafts change no text": (_drafts, exact),
        "a branch leaves no trace": (_no_trace, True),
        "a restored stream goes on alike": (_restored, True),
    }
    return [name for name, (holds, asked) in checks.items() if asked and not holds(model)]


LAYOUT = KvLayout(sinks=4, window=48, slack=32, branch_tokens=64)


def _stream(model: DecoderModel, cache: KvCache, tokens: Sequence[int], block: int) -> StreamSlot:
    slot = cache.allocate()
    for at in range(0, len(tokens), block):
        model.forward("prefill", cache, [Row(slot, tokens[at : at + block])])
    return slot


def _text(model: DecoderModel, length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, min(model.vocab_size, 250), (length,), generator=generator).tolist()


def _next(model: DecoderModel, cache: KvCache, slot: StreamSlot, tokens: Sequence[int]) -> Tensor:
    branch = cache.fork(slot)
    row = Row(slot, tokens, branch, num_logits=len(tokens))
    logits = model.forward("decode", cache, [row]).float().cpu()
    cache.drop(branch)
    return logits


def _close(one: Tensor, other: Tensor) -> bool:
    same = torch.equal(one.argmax(-1), other.argmax(-1))
    return same and float((one - other).abs().max()) <= 1e-3


def _blocks(model: DecoderModel) -> bool:
    text, found = _text(model, 150), []
    for block in (1, 7, 32):
        cache = model.new_cache(LAYOUT, slots=1, branches=1)
        found.append(_next(model, cache, _stream(model, cache, text, block), text[:6]))
    return all(_close(found[0], other) for other in found[1:])


def _company(model: DecoderModel) -> bool:
    texts = [_text(model, 90 + 20 * n, seed=n) for n in range(4)]
    together = model.new_cache(LAYOUT, slots=4, branches=4)
    slots = [_stream(model, together, text, 16) for text in texts]
    branches = [together.fork(slot) for slot in slots]
    rows = [Row(s, [5, 6, 7], b, num_logits=3) for s, b in zip(slots, branches, strict=True)]
    logits = torch.split(model.forward("decode", together, rows).float().cpu(), 3)
    for text, among in zip(texts, logits, strict=True):
        alone = model.new_cache(LAYOUT, slots=1, branches=1)
        if not _close(among, _next(model, alone, _stream(model, alone, text, 16), [5, 6, 7])):
            return False
    return True


def _greedy(model: DecoderModel, drafts: Sequence[int], count: int = 24) -> list[int]:
    """``count`` tokens; ``drafts`` are verified three at a time from the place reached."""
    cache = model.new_cache(LAYOUT, slots=1, branches=1)
    slot = _stream(model, cache, _text(model, 140), 32)
    branch, out = cache.fork(slot), [7]
    while len(out) <= count:
        guess = list(drafts[len(out) - 1 : len(out) + 2])
        block = [out[-1], *guess]
        best = most_likely(
            model.forward("decode", cache, [Row(slot, block, branch, num_logits=len(block))])
        )
        stands = next((at for at, token in enumerate(guess) if best[at] != token), len(guess))
        branch.length -= len(guess) - stands
        out += best[: stands + 1]
    return out[1 : count + 1]


def _drafts(model: DecoderModel) -> bool:
    plain = _greedy(model, [])
    wrong = [token if at % 5 else token + 1 for at, token in enumerate(plain)]
    return _greedy(model, plain) == plain == _greedy(model, wrong)


def _no_trace(model: DecoderModel) -> bool:
    text, found = _text(model, 100), []
    for branched in (False, True):
        cache = model.new_cache(LAYOUT, slots=1, branches=2)
        slot = _stream(model, cache, text, 16)
        if branched:
            _next(model, cache, slot, [9, 8, 7])
        model.forward("prefill", cache, [Row(slot, text[:10])])
        found.append(cache.export(slot))
    return torch.equal(*found)


def _restored(model: DecoderModel) -> bool:
    cache = model.new_cache(LAYOUT, slots=1, branches=1)
    slot = _stream(model, cache, _text(model, 130), 16)
    kept, length = cache.export(slot), slot.length
    want = _next(model, cache, slot, [1, 2, 3, 4])
    other = model.new_cache(LAYOUT, slots=1, branches=1)
    again = other.allocate()
    other.restore(again, kept, length)
    return torch.equal(want, _next(model, other, again, [1, 2, 3, 4]))


# --- how fast ------------------------------------------------------------------------------------


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _copy_speed(device: torch.device, size: int) -> float:
    """Bytes read and written per second by a large copy."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(5):
        _wait(device)
        began = time.perf_counter()
        target.copy_(source)
        _wait(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def _decode(
    model: DecoderModel, window: int, count: int, block: int, seconds: float, speed: float
) -> tuple[float, float]:
    """Tokens per second, and the limit's time over the time taken."""
    layout = KvLayout(SINKS, window, SLACK, SCRATCH)
    cache = model.new_cache(layout, slots=count, branches=count)
    for pool in (cache.keys, cache.values):
        for layer in pool:
            layer.normal_()
    slots = [cache.allocate() for _ in range(count)]
    for slot in slots:
        for pool in (cache.keys, cache.values):  # allocating wiped it
            for layer in pool:
                layer[slot.index].normal_()
        slot.length = layout.slot_tokens
    branches = [cache.fork(slot) for slot in slots]
    rows = [
        Row(slot, [5] * block, branch, num_logits=block)
        for slot, branch in zip(slots, branches, strict=True)
    ]

    def step() -> None:
        most_likely(model.forward("decode", cache, rows))
        for branch in branches:
            branch.length -= block  # the same places again

    for _ in range(3):
        step()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    each = (time.perf_counter() - began) / steps
    read = model.weight_bytes + count * window * token_bytes(model.shape, model.dtype)
    return round(count * block / each, 1), round(read / speed / each, 3)


def _transformers(run: Run, name: str, window: int) -> Result:
    """transformers' own generate, on prompts as long as the window, tokens per second of decoding."""
    from transformers import AutoModelForCausalLM

    from pipelines import models

    run.say("transformers beside")
    network = AutoModelForCausalLM.from_pretrained(
        models.resolve(name), dtype=torch.bfloat16, use_safetensors=True
    ).to("cuda")
    found: Result = {}
    for count in PEER_STREAMS:
        prompt = torch.randint(5, 1000, (count, window), device="cuda")
        took = []
        for new in (1, PEER_TOKENS + 1):
            _wait(torch.device("cuda"))
            began = time.perf_counter()
            network.generate(prompt, max_new_tokens=new, min_new_tokens=new, do_sample=False)
            _wait(torch.device("cuda"))
            took.append(time.perf_counter() - began)
        found[f"{count} streams"] = round(count * PEER_TOKENS / (took[1] - took[0]), 1)
    return found
