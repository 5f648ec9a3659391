"""What each side made of each meeting, kept in a file, so that a run that was stopped goes on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from operators.errors import ConfigError
from pipelines.lab.eval.meetings import Meeting
from pipelines.lab.eval.summary_meters import Summarised


class _Row(msgspec.Struct):
    """``of``: a digest of everything the result depends on but the program itself."""

    side: str
    meeting: str
    of: str
    made: Summarised


class Kept:
    """``file``: JSON lines, one per side and meeting; None keeps nothing. Raises ConfigError for a file
    of another kind. ``conditions`` of a side: model, weights, settings, whatever else it depends on."""

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._rows: dict[tuple[str, str, str], Summarised] = {}
        if file is None or not file.is_file():
            return
        try:
            for line in file.read_bytes().splitlines():
                row = msgspec.json.decode(line, type=_Row)
                self._rows[row.side, row.meeting, row.of] = row.made
        except msgspec.MsgspecError as error:
            raise ConfigError(f"--resume {file}: not a file of earlier results: {error}") from None

    def get(self, side: str, meeting: Meeting, conditions: Any) -> Summarised | None:
        return self._rows.get((side, meeting.name, _digest(meeting, conditions)))

    def put(self, side: str, meeting: Meeting, conditions: Any, made: Summarised) -> None:
        if self._file is None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        row = _Row(side, meeting.name, _digest(meeting, conditions), made)
        with self._file.open("ab") as out:
            out.write(msgspec.json.encode(row) + b"\n")


def _digest(meeting: Meeting, conditions: Any) -> str:
    said = [(line.speaker, line.text) for line in meeting.lines]
    data = msgspec.json.encode([conditions, meeting.language, said], order="sorted")
    return hashlib.sha256(data).hexdigest()[:16]
