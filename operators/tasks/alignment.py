"""Alignment heads: those attention heads that look at the source word which a translation is about to
write. The policy ``alignatt`` commits by them (operators.commit).

They are found without any aligned text: where a translation writes a token that stands once in its
source (a name, a number), it is known where it should look. A head's score is the share of such tokens
for which it attends to that place most. Measured once per model and target language, on the model's own
translations of a few sentences full of names and numbers; which language these are written in matters
little to the heads.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from operators import languages
from operators.cache.attention import Heads, Watch
from operators.cache.batch import Row
from operators.cache.kv_cache import Branch, KvCache, KvLayout
from operators.model.loader import DecoderModel
from operators.tasks.prompts import Prompts

SENTENCES = (
    "Maria Keller met Tomasz Nowak in Lisbon on 14 March 2019 to talk about project Orion.",
    "Flight 472 from Oslo to Nairobi leaves at 18:35 from gate 27, says Ibrahim Diallo.",
    "In 1987 Helen Okafor sold 350 copies of her book Zephyr in Toronto and 96 in Lima.",
    "Please send 25 boxes to Viktor Lindqvist, Room 608, Hotel Astoria, before 9 November.",
    "Kenji Watanabe and Priya Raman won the final against Osaka United by 31 to 17.",
    "The Delta 9000 costs 640 euros at Brenner and 715 euros at Castello, said Amir Haddad.",
)
HEADS = 6
"""How many heads are used together."""
MIN_SCORE = 0.25
_ROOM, _MOST = 512, 96


def measure(model: DecoderModel, prompts: Prompts, tag: str) -> Heads:
    """The alignment heads for translations into ``tag``, by layer; fewer than HEADS where few are good.
    Takes seconds. Makes a cache of its own: call it before the operator makes its cache."""
    cache = model.new_cache(KvLayout(1, 16, 16, _ROOM), slots=1, branches=1)
    slot = cache.allocate()
    hits: Counter[tuple[int, int]] = Counter()
    asked = 0
    for sentence in SENTENCES:
        source = model.tokenizer.encode(sentence)
        prompt = prompts.alone("translate", language=languages.name(tag), text=sentence, hint="")
        span = span_of(prompt, source, model.tokenizer.encode(f" {sentence}"))
        if span is None:
            continue
        branch = cache.fork(slot, alone=True)
        output, places = _translate(model, cache, branch, prompt, span)
        cache.drop(branch)
        there = prompt[slice(*span)]
        for at, token in enumerate(output):
            if there.count(token) == 1 and any(
                c.isalnum() for c in model.tokenizer.decode([token])
            ):
                asked += 1
                right = there.index(token)
                hits.update(head for head, found in places.items() if found[at] == right)
    chosen: dict[int, tuple[int, ...]] = {}
    for (layer, head), count in hits.most_common(HEADS):
        if count >= MIN_SCORE * asked:
            chosen[layer] = (*chosen.get(layer, ()), head)
    return chosen


def _translate(
    model: DecoderModel,
    cache: KvCache,
    branch: Branch,
    prompt: Sequence[int],
    span: tuple[int, int],
) -> tuple[list[int], dict[tuple[int, int], list[int]]]:
    """Greedy output, and for every head the place of the source it looks at, by output token."""
    every = {layer: tuple(range(model.heads)) for layer in range(model.shape.layers)}
    output: list[int] = []
    places: dict[tuple[int, int], list[int]] = defaultdict(list)
    # All but the prompt's last token first: a short row is attended with explicit scores.
    for begin in range(0, len(prompt) - 1, 128):
        block = prompt[begin : min(begin + 128, len(prompt) - 1)]
        model.forward("prefill", cache, [Row(branch.stream, block, branch)])
    token = prompt[-1]
    while len(output) < min(_MOST, cache.branch_room(branch) - 1):
        watch = Watch(every, *span)
        row = Row(branch.stream, [token], branch, num_logits=1, watch=watch)
        token = int(model.forward("decode", cache, [row])[-1].argmax())
        if token in model.tokenizer.eos_ids:
            break
        output.append(token)
        for layer, weights in watch.found.items():
            for head, place in enumerate(weights[:, -1].argmax(dim=-1).tolist()):
                places[layer, head].append(int(place))
    return output, dict(places)


def span_of(prompt: Sequence[int], *texts: Sequence[int]) -> tuple[int, int] | None:
    """Where one of the texts stands in the prompt, as begin and end. The last token of a text may have
    joined with what follows, so it is left out of the search."""
    for text in texts:
        key = list(text[:-1]) or list(text)
        for at in range(len(prompt) - len(key), -1, -1):
            if list(prompt[at : at + len(key)]) == key:
                return at, min(at + len(text), len(prompt))
    return None
