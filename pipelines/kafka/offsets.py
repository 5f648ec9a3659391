"""Which offsets of one partition are finished, and which offset may be committed."""

from __future__ import annotations


class OffsetTracker:
    """Offsets of one partition between "read" and "finished".

    Offsets are read in rising order. Those that are never read (transaction markers, compacted
    records) do not count: the committable offset is the smallest one read and not finished, or one
    past the highest read. Memory: one entry per open offset.
    """

    def __init__(self) -> None:
        self._open: dict[int, None] = {}  # insertion order = rising offsets
        self._highest = -1
        self._highest_finished = -1

    def __len__(self) -> int:
        """Offsets read and not finished."""
        return len(self._open)

    @property
    def committable(self) -> int | None:
        """The offset to commit, from which a restart reads; None before any was read."""
        if self._open:
            return next(iter(self._open))
        return self._highest + 1 if self._highest >= 0 else None

    @property
    def read_to(self) -> int:
        """One past the highest offset read; 0 before any was."""
        return self._highest + 1

    @property
    def gap(self) -> int:
        """Messages between the highest finished and the committable offset; 0: none."""
        return max(0, self._highest_finished + 1 - (self.committable or 0))

    def is_finished(self, offset: int) -> bool:
        """True for an offset that was read and finished, whether or not it can be committed."""
        return offset <= self._highest and offset not in self._open

    def read(self, offset: int) -> None:
        """Begin an offset. Raises ValueError unless it is above all begun before."""
        if offset <= self._highest:
            raise ValueError(f"offset {offset} read after {self._highest}")
        self._highest = offset
        self._open[offset] = None

    def finish(self, offset: int) -> None:
        """End an open offset. Raises KeyError for one that is not open."""
        del self._open[offset]
        self._highest_finished = max(self._highest_finished, offset)
