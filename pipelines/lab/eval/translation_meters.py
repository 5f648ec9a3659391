"""Meters of translations: quality, faithfulness, and what is plainly wrong with one.

No meter has a list of words. What a translation must carry over (numbers, names) is read off the
source and its human translation together: what both have, the output must have too.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import regex

from operators.languages import script_share
from pipelines.lab.eval.words import (
    ngrams,
    normal,
    number_forms,
    numbers,
    units,
    unspaced,
    words,
)

Fault = Literal["empty", "copy", "language", "loop", "overlong"]
LOOP_REPEATS, LOOP_LENGTH = 4, 16
"""A stretch of up to LOOP_LENGTH words that comes so many times in a row is a loop."""
OVERLONG = 3.0
"""An output of so many times the reference's characters (and 80 more) is no translation of it."""
COPY_SHARE, FEW_WORDS = 0.9, 4
"""An output of which so many of the word pairs are the source's is a copy; sentences of fewer words
than FEW_WORDS, and those whose human translation is as close to the source, are not judged."""
SURE = 0.95
"""Probability with which the language identifier must name the source's language."""
_SCRIPTS = ("Latin", "Han", "Cyrillic", "Arabic", "Devanagari", "Greek", "Hebrew", "Thai", "Hangul")
_OF_SCRIPT = {name: regex.compile(rf"\p{{{name}}}") for name in _SCRIPTS}
_TERM = regex.compile(r"\p{Lu}|\p{Nd}")


def corpus_bleu(outputs: Sequence[str], references: Sequence[str], target: str) -> float:
    """BLEU as sacreBLEU computes it, with its tokenizer for the target language."""
    from sacrebleu.metrics.bleu import BLEU

    tokenizer = {"zh": "zh", "ja": "char", "ko": "char", "th": "char"}.get(target[:2], "13a")
    metric = BLEU(tokenize=tokenizer)
    return float(metric.corpus_score(list(outputs), [list(references)]).score)


def corpus_chrf(outputs: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 as sacreBLEU computes it."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().corpus_score(list(outputs), [list(references)]).score)


def sentence_chrf(outputs: Sequence[str], references: Sequence[str]) -> list[float]:
    """chrF2 of every sentence by itself."""
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF()
    pairs = zip(outputs, references, strict=True)
    return [float(metric.sentence_score(o, [r]).score) for o, r in pairs]


def kept_numbers(source: str, reference: str, output: str) -> tuple[int, int]:
    """Numbers in digits that source and reference share: (found in the output, all)."""
    in_reference, in_output = number_forms(reference), number_forms(output)
    wanted = [n for n in numbers(source) if n in in_reference]
    return sum(n in in_output for n in wanted), len(wanted)


def kept_terms(source: str, reference: str, output: str) -> tuple[int, int]:
    """Names and terms (words with a capital or a digit) that the reference takes over unchanged from
    the source: (found in the output, all)."""
    in_reference, in_output = set(words(reference)), set(words(output))
    wanted = {w for w in words(source) if len(w) > 1 and _TERM.search(w)} & in_reference
    wanted = {w for w in wanted if not w.isdigit()}
    return len(wanted & in_output), len(wanted)


def faults(source: str, reference: str, output: str, languages: tuple[str, str]) -> set[Fault]:
    """What is plainly wrong with a translation; ``languages``: codes of source and target."""
    if not output.strip():
        return {"empty"}
    found: set[Fault] = set()
    if len(output) > OVERLONG * len(reference) + 80:
        found.add("overlong")
    if is_loop(output) and not is_loop(reference):
        found.add("loop")
    if _copied(source, output) >= COPY_SHARE > _copied(source, reference):
        found.add("copy")
    elif _wrong_script(output, reference, languages[1]) or _in_language(
        reference, output, languages
    ):
        found.add("language")
    return found


def is_loop(text: str) -> bool:
    """Whether a stretch of words repeats itself again and again at one place."""
    tokens = units(text)
    for length in range(1, LOOP_LENGTH + 1):
        same = 0
        for at in range(length, len(tokens)):
            same = same + 1 if tokens[at] == tokens[at - length] else 0
            if same >= length * (LOOP_REPEATS - 1):
                return True
    return False


def _copied(source: str, output: str) -> float:
    """Share of the output's word pairs that the source has."""
    tokens = units(output)
    if len(tokens) < FEW_WORDS or len(units(source)) < FEW_WORDS:
        return 0.0
    pairs, of_source = ngrams(tokens, 2), set(ngrams(units(source), 2))
    return sum(pair in of_source for pair in pairs) / len(pairs)


def _wrong_script(output: str, reference: str, target: str) -> bool:
    """Whether most letters are of a script that is neither the reference's nor the target's: most of a
    reference may be names that it leaves as they are."""
    return _script(output) != _script(reference) and script_share(output, target) < 0.5


def _script(text: str) -> str:
    """The script most letters are of; nothing for a text without letters."""
    counts = Counter({name: len(of.findall(text)) for name, of in _OF_SCRIPT.items()})
    name, most = counts.most_common(1)[0]
    return name if most else ""


def _in_language(reference: str, output: str, languages: tuple[str, str]) -> bool:
    """Whether the output is in the source's language, and the reference is surely not."""
    source, target = (code.split("-")[0] for code in languages)
    if source == target or len(units(output)) < FEW_WORDS:
        return False
    said = _identify(normal(output), source, target)
    return (
        said[0] == source and said[1] >= SURE and _identify(reference, source, target)[0] == target
    )


def _identify(text: str, *codes: str) -> tuple[str, float]:
    identifier = _identifier(codes)
    if identifier is None:
        return codes[-1], 0.0
    code, probability = identifier.classify(text)
    return str(code), float(probability)


@functools.lru_cache(maxsize=32)
def _identifier(codes: tuple[str, ...]) -> Any:
    """A language identifier that knows these languages only; None where one is unknown to it."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    if not set(codes) <= set(identifier.labels):
        return None
    identifier.set_languages(list(codes))
    return identifier


@dataclass
class Kept:
    """A count of what was found of what was wanted."""

    found: int = 0
    wanted: int = 0

    def add(self, pair: tuple[int, int]) -> None:
        self.found += pair[0]
        self.wanted += pair[1]

    @property
    def share(self) -> float | None:
        return round(self.found / self.wanted, 4) if self.wanted else None


def score(
    sources: Sequence[str],
    references: Sequence[str],
    outputs: Sequence[str],
    languages: tuple[str, str],
) -> dict[str, Any]:
    """All figures of one side on one pair of languages."""
    kept_n, kept_t = Kept(), Kept()
    bad: Counter[str] = Counter()
    bad_outputs = 0
    for source, reference, output in zip(sources, references, outputs, strict=True):
        kept_n.add(kept_numbers(source, reference, output))
        kept_t.add(kept_terms(source, reference, output))
        found = faults(source, reference, output, languages)
        bad.update(found)
        bad_outputs += bool(found)
    return {
        "sentences": len(outputs),
        "chrf": round(corpus_chrf(outputs, references), 2),
        "bleu": round(corpus_bleu(outputs, references, languages[1]), 2),
        "numbers_kept": kept_n.share,
        "numbers": kept_n.wanted,
        "terms_kept": kept_t.share,
        "terms": kept_t.wanted,
        "bad_output": round(bad_outputs / max(1, len(outputs)), 4),
        "faults": dict(bad),
    }


def joined(pieces: Sequence[str]) -> str:
    """Pieces of one text, with a space between them where their script has spaces."""
    text = ""
    for piece in (p.strip() for p in pieces):
        last = text[-1:]
        text += piece if not text or unspaced(last) or unspaced(piece[:1]) else f" {piece}"
    return text
