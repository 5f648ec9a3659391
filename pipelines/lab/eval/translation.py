"""Translations of the product beside the same model used otherwise, on sentences with references."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.lab.benchmarks.stats import bootstrap_mean
from pipelines.lab.eval import translation_sides as sides
from pipelines.lab.eval.backends import Backend, LlamaCppBackend
from pipelines.lab.eval.engine import Engine
from pipelines.lab.eval.kept import Kept
from pipelines.lab.eval.latency import Cut, Span, average, erased, lags, resegment, retractions
from pipelines.lab.eval.parallel import Corpus
from pipelines.lab.eval.translation_meters import score, sentence_chrf
from pipelines.lab.eval.translation_sides import FINALS, Say, Translated

OURS, OFFLINE, ALONE, PLAIN, LLAMACPP = (
    "ours",
    "offline",
    "without context",
    "plain",
    "plain llama.cpp",
)
ALL = (OURS, OFFLINE, ALONE, PLAIN)


@dataclass(frozen=True)
class Job:
    """What is measured. ``gguf``: the model's file, if llama.cpp is a side. ``every_ms``: between two
    partials. ``context``: tokens of a plain prompt. ``texts``: a file that every output is appended
    to. ``at_once``: documents, or prompts of a plain side, translated beside each other. ``resume``:
    where finished parts are kept, and taken from."""

    corpora: Sequence[Corpus]
    policy: str = FINALS
    sides: Sequence[str] = ALL
    every_ms: int = 1000
    context: int = 4096
    gguf: Path | None = None
    threads: int = 2
    texts: Path | None = None
    at_once: int = 1
    resume: Path | None = None


def run(engine: Engine, job: Job, say: Say) -> dict[str, Any]:
    """All figures: ``pairs`` by set and pair and side, and the headline ones over all of them."""
    unknown = set(job.sides) - {*ALL, LLAMACPP}
    if unknown or OURS not in job.sides:
        raise ConfigError(f"--sides: ours and any of {', '.join((*ALL[1:], LLAMACPP))}")
    runners, kept = _runners(engine, job, say), Kept(job.resume, Translated)
    corpora: dict[str, Any] = {}
    for corpus in job.corpora:
        made = _translated(engine, job, corpus, runners, kept)
        corpora[f"{corpus.name} {corpus.pair}"] = {
            "timed": corpus.timed,
            "sides": {name: _figures(corpus, side) for name, side in made.items()},
            "against": _against(corpus, made),
            "examples": _rows(corpus, made)[:: max(1, len(corpus.sentences) // 5)],
        }
        if job.texts is not None:
            _write(job.texts, _rows(corpus, made))
    return {**headline(corpora), "policy": job.policy, "weights": engine.weights, "pairs": corpora}


Runners = dict[str, Callable[[Corpus], Translated]]


def _translated(
    engine: Engine, job: Job, corpus: Corpus, runners: Runners, kept: Kept[Translated]
) -> dict[str, Translated]:
    """What every side makes of a corpus, ``at_once`` documents at a time, the sides in turns: whatever
    happens on the machine meets all alike, and a run that was stopped loses little."""
    made = {name: Translated() for name in runners}
    for part in corpus.parts(job.at_once):
        said = [(s.source, s.start_ms, s.end_ms) for s in part.sentences]
        documents = f"{part.name} {part.pair} {part.sentences[0].doc}"
        for name, translate in runners.items():
            side, conditions = _conditions(engine, job, name)
            found = kept.get(side, documents, [conditions, said])
            if found is None:
                found = translate(part)
                kept.put(side, documents, [conditions, said], found)
            made[name].add(found)
    return made


def _conditions(engine: Engine, job: Job, name: str) -> tuple[str, list[Any]]:
    """The side's name in the file of kept results, and what they depend on besides the text."""
    model = [engine.name, engine.weights, engine.settings]
    if name in (PLAIN, OFFLINE, LLAMACPP):
        return name, [engine.name if name == LLAMACPP else model, job.context]
    policy_name = job.policy if name == OURS else FINALS
    partials = 0 if policy_name == FINALS else job.every_ms
    side = name if name == ALONE else f"{OURS} ({policy_name})"
    return side, [model, partials, job.at_once > 1]


def _runners(engine: Engine, job: Job, say: Say) -> Runners:
    @functools.cache
    def backend() -> Backend:
        return engine.backend(job.context, job.at_once)

    @functools.cache
    def other() -> Backend:
        assert job.gguf is not None
        return LlamaCppBackend(job.gguf, job.context, job.threads, job.at_once)

    def ours(corpus: Corpus, policy_name: str) -> Translated:
        if job.at_once > 1:
            return sides.many(engine, corpus, policy_name, job.every_ms, job.at_once, say)
        return sides.ours(engine, corpus, policy_name, job.every_ms, say)

    def alone(corpus: Corpus) -> Translated:
        if job.at_once > 1:
            return sides.many(engine, corpus, FINALS, 0, job.at_once, say, alone=True)
        return sides.without_context(engine, corpus, say)

    known: Runners = {
        OURS: lambda c: ours(c, job.policy),
        ALONE: alone,
        PLAIN: lambda c: sides.plain(backend(), engine, c, say),
        OFFLINE: lambda c: sides.offline(backend(), engine, c, say),
    }
    chosen = {name: known[name] for name in job.sides if name in known}
    if job.policy != FINALS:
        chosen[FINALS] = lambda c: ours(c, FINALS)
    if LLAMACPP in job.sides:
        if job.gguf is None:
            raise ConfigError(f"{LLAMACPP!r} needs a model that is a GGUF file")
        chosen[LLAMACPP] = lambda c: sides.plain(other(), engine, c, say)
    return chosen


def _figures(corpus: Corpus, made: Translated) -> dict[str, Any]:
    sources = [s.source for s in corpus.sentences]
    references = [s.reference for s in corpus.sentences]
    figures = score(sources, references, made.outputs, corpus.languages)
    figures |= {
        "prefilled": made.prefilled,
        "generated": made.generated,
        "seconds": round(made.seconds, 1),
    }
    if made.shown:
        figures |= _stability(made) | _latency(corpus, made)
        figures["degraded"] = sorted(set(made.degraded))
    return figures


def _stability(made: Translated) -> dict[str, Any]:
    erasure = [erased(shown.versions)[1] for shown in made.shown]
    return {
        "erasure": round(average(erasure) or 0.0, 4),
        "retractions": sum(retractions(shown.committed) for shown in made.shown),
    }


def _latency(corpus: Corpus, made: Translated) -> dict[str, Any]:
    """LAAL of each sentence by itself, and LongYAAL of the documents cut anew. Milliseconds, but for
    ``laal_s`` and ``laal_aware_s``."""
    own: list[Cut] = []
    for sentence, shown in zip(corpus.sentences, made.shown, strict=True):
        start, end = sentence.start_ms, sentence.end_ms
        own.append(
            Cut(
                reference=sentence.reference,
                words=tuple(w.text for w in shown.words),
                unaware=tuple(w.unaware - start for w in shown.words),
                aware=tuple(w.aware - start for w in shown.words),
                length=end - start,
                remaining=float("inf"),
            )
        )
    by_sentence = lags(own)
    whole: list[Cut] = []
    at = 0
    for document in corpus.documents():
        shown_here = made.shown[at : at + len(document)]
        at += len(document)
        spans = [Span(s.start_ms, s.end_ms, s.reference) for s in document]
        whole += resegment(spans, [word for shown in shown_here for word in shown.words])
    long = lags(whole)
    return {
        "laal_s": _seconds(by_sentence["laal_ms"]),
        "laal_aware_s": _seconds(by_sentence["laal_aware_ms"]) if made.aware else None,
        "long_yaal_s": _seconds(long["yaal_ms"]),
        "long_yaal_aware_s": _seconds(long["yaal_aware_ms"]) if made.aware else None,
    }


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else round(ms / 1000, 3)


def _rows(corpus: Corpus, made: dict[str, Translated]) -> list[dict[str, Any]]:
    """Every sentence as every side has it."""
    return [
        {"set": corpus.name, "pair": corpus.pair, "doc": s.doc, "seq": s.number}
        | {"source": s.source, "reference": s.reference}
        | {name: side.outputs[at] for name, side in made.items()}
        for at, s in enumerate(corpus.sentences)
    ]


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _against(corpus: Corpus, made: dict[str, Translated]) -> dict[str, Any]:
    """The product's chrF of single sentences less each other side's: mean, and its 95 % interval over
    sentences (paired bootstrap). The mean is not the difference of the corpus scores."""
    if len(corpus.sentences) < 2:
        return {}
    references = [s.reference for s in corpus.sentences]
    each = {name: sentence_chrf(side.outputs, references) for name, side in made.items()}
    found = {}
    for name in each:
        if name != OURS:
            gaps = [a - b for a, b in zip(each[OURS], each[name], strict=True)]
            interval = [round(x, 2) for x in bootstrap_mean(gaps)]
            found[name] = {"sentence_chrf": round(sum(gaps) / len(gaps), 2), "interval": interval}
    return found


def headline(corpora: dict[str, Any]) -> dict[str, Any]:
    """Means over sets and pairs. ``chrf_vs_plain``: against llama.cpp where it ran (``plain_side``
    says so). What was not run is None."""
    found = [corpus["sides"] for corpus in corpora.values()]
    plain_side = LLAMACPP if all(LLAMACPP in s for s in found) else PLAIN

    def mean_of(name: str, side: str = OURS) -> float | None:
        values = [s[side].get(name) for s in found if side in s]
        return average(values)

    def against(name: str, side: str) -> float | None:
        gaps = [s[OURS][name] - s[side][name] for s in found if side in s]
        value = average(gaps)
        return None if value is None else round(value, 2)

    def rounded(value: float | None, places: int = 4) -> float | None:
        return None if value is None else round(value, places)

    return {
        "chrf": rounded(mean_of("chrf"), 2),
        "bleu": rounded(mean_of("bleu"), 2),
        "chrf_vs_plain": against("chrf", plain_side),
        "plain_side": plain_side,
        "chrf_vs_offline": against("chrf", OFFLINE),
        "chrf_vs_no_context": against("chrf", ALONE),
        "bleu_vs_finals": against("bleu", FINALS),
        "laal_s": rounded(mean_of("laal_s"), 3),
        "laal_aware_s": rounded(mean_of("laal_aware_s"), 3),
        "long_yaal_s": rounded(mean_of("long_yaal_s"), 3),
        "long_yaal_aware_s": rounded(mean_of("long_yaal_aware_s"), 3),
        "erasure": rounded(mean_of("erasure")),
        "retractions": sum(s[OURS]["retractions"] for s in found),
        "bad_output": rounded(mean_of("bad_output")),
        "numbers_kept": rounded(mean_of("numbers_kept")),
        "terms_kept": rounded(mean_of("terms_kept")),
    }
