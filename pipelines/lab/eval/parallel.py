"""Sentences with their human translations, in the order of their documents.

A folder holds files ``SET.SOURCE-TARGET.jsonl``, one sentence a line: ``doc``, ``seq``, ``src``,
``ref``, ``src_lang``, ``tgt_lang`` and, of spoken talks, ``start_ms`` and ``end_ms``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from operators.errors import ConfigError
from pipelines.lab.eval.words import units

WORDS_PER_SECOND = 2.5
"""How fast text without times is taken to be spoken."""


@dataclass(frozen=True)
class Sentence:
    doc: str
    number: int
    source: str
    reference: str
    start_ms: int
    end_ms: int


@dataclass(frozen=True)
class Corpus:
    """The sentences of one set in one pair of languages. ``timed``: whether the times are real."""

    name: str
    languages: tuple[str, str]
    sentences: tuple[Sentence, ...]
    timed: bool

    @property
    def pair(self) -> str:
        return "-".join(self.languages)

    def documents(self) -> list[list[Sentence]]:
        grouped = itertools.groupby(self.sentences, key=lambda s: s.doc)
        return [list(found) for _, found in grouped]

    def parts(self, documents: int) -> list[Corpus]:
        """The same sentences in corpora of so many documents."""
        whole = self.documents()
        groups = [whole[at : at + documents] for at in range(0, len(whole), documents)]
        return [
            replace(self, sentences=tuple(itertools.chain.from_iterable(group))) for group in groups
        ]


def find_corpora(
    folder: Path, pairs: Sequence[str], sets: Sequence[str], limit: int = 0, each: int = 0
) -> list[Corpus]:
    """Every set in the folder that has one of the pairs: at most ``limit`` sentences, and at most
    ``each`` of a document; 0 for all. Raises ConfigError for a pair nobody has."""
    found: list[Corpus] = []
    for pair in pairs:
        source, _, target = pair.partition("-")
        files = [
            file
            for file in sorted(folder.glob(f"*.{pair}.jsonl"))
            if not sets or file.name.split(".")[0] in sets
        ]
        if not target or not files:
            raise ConfigError(f"no sentences for {pair} in {folder}: no file SET.{pair}.jsonl")
        found += [_read(file, (source, target), limit, each) for file in files]
    return found


def _read(file: Path, languages: tuple[str, str], limit: int, each: int) -> Corpus:
    sentences: list[Sentence] = []
    timed, clock, before = True, 0, ""
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    if each:
        documents = itertools.groupby(rows, key=lambda row: row["doc"])
        rows = [row for _, found in documents for row in itertools.islice(found, each)]
    for row in rows[: limit or None]:
        clock = clock if row["doc"] == before else 0
        before = row["doc"]
        start, end = row.get("start_ms"), row.get("end_ms")
        if start is None or end is None:
            timed = False
            start, end = clock, clock + _spoken_ms(row["src"])
        clock = int(end)
        sentences.append(
            Sentence(before, int(row["seq"]), row["src"], row["ref"], int(start), int(end))
        )
    return Corpus(file.name.split(".")[0], languages, tuple(sentences), timed)


def _spoken_ms(text: str) -> int:
    return round(1000 * len(units(text)) / WORDS_PER_SECOND)
