"""Numbers as the data files of this room give them: each a value with its grade and its source.

Protects: no number without a grade and a source. Unknown is `null`, and never stands for zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

GRADES: Final = "PDMVU"
"""P a paper, D a published data file or repository, M measured for this project, V a vendor page or header, U unconfirmed or
derived."""


class FactError(ValueError):
    """A data file that contradicts itself; the message names the entry, the field and what to change."""


class Numbers:
    """Takes values out of {"value", "grade", "source"} entries and writes into `sources` where each came from, as
    "grade: source" by `path` and key. A key that is missing raises KeyError."""

    def __init__(self, raw: Mapping[str, Any], path: str, sources: dict[str, str]) -> None:
        self._raw, self._path, self._sources = raw, path, sources

    def take(self, key: str) -> Any:
        """Raises FactError where grade or source is missing."""
        entry = self._raw[key]
        grade, source = entry["grade"], entry["source"]
        if grade not in GRADES or not source:
            raise FactError(f"{self._path}{key}: give a source and a grade, one of {', '.join(GRADES)}, not {grade!r}")
        self._sources[f"{self._path}{key}"] = f"{grade}: {source}"
        return entry["value"]

    def known(self, key: str) -> Any:
        """The same, and None where the file says null: not known."""
        return None if self._raw[key] is None else self.take(key)

    def points(self, key: str) -> tuple[tuple[int, Any], ...]:
        return tuple((x, y) for x, y in self.take(key))
