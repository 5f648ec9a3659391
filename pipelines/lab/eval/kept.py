"""What each side made of each part of the data, kept in a file: a run that was stopped goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from operators.errors import ConfigError

T = TypeVar("T")


class _Row(msgspec.Struct):
    """``part``: a meeting or document by its name. ``of``: a digest of everything the result depends on
    but the program itself."""

    side: str
    part: str
    of: str
    made: msgspec.Raw


class Kept(Generic[T]):
    """``file``: JSON lines, one per side and part; None keeps nothing. ``kind``: what a side makes.
    ``of``, below: the part's text, model, weights, settings, whatever else a result depends on. Raises
    ConfigError for a file of another kind."""

    def __init__(self, file: Path | None, kind: type[T]) -> None:
        self._file = file
        self._rows: dict[tuple[str, str, str], T] = {}
        if file is None or not file.is_file():
            return
        try:
            for line in file.read_bytes().splitlines():
                row = msgspec.json.decode(line, type=_Row)
                self._rows[row.side, row.part, row.of] = msgspec.json.decode(row.made, type=kind)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"--resume {file}: not a file of earlier results: {error}") from None

    def get(self, side: str, part: str, of: Any) -> T | None:
        return self._rows.get((side, part, _digest(of)))

    def put(self, side: str, part: str, of: Any, made: T) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        row = _Row(side, part, _digest(of), msgspec.Raw(msgspec.json.encode(made)))
        with self._file.open("ab") as out:
            out.write(msgspec.json.encode(row) + b"\n")


def _digest(of: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(of, order="sorted")).hexdigest()[:16]
