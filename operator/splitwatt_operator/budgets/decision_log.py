"""The decision log: one JSON line per budget and decision, for those who judge from outside."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from splitwatt_core.budget.keeper import BudgetReport

log = logging.getLogger(__name__)


class LogFileError(RuntimeError):
    """The file cannot be written; the sentence says what to change."""


class DecisionLog:
    """`path` None: nothing is written. A full disk ends the log, never the decisions."""

    def __init__(self, path: Path | None) -> None:
        """Raises LogFileError."""
        self._file: IO[str] | None = None
        if path is not None:
            try:
                self._file = path.open("a", encoding="utf-8", buffering=1)
            except OSError as error:
                raise LogFileError(f"cannot write --decision-log {path} ({error.strerror}); name another file") from error

    def write(self, reports: Mapping[str, BudgetReport], now_s: float) -> None:
        if self._file is None:
            return
        lines = [
            json.dumps(
                {
                    "time_s": round(now_s, 3),
                    "budget": name,
                    "limit_w": report.limit.spec_w,
                    "in_force_w": report.limit.in_force_w,
                    "charge_w": round(report.charge_w, 3),
                    "measured_w": None if report.measured_w is None else round(report.measured_w, 1),
                    "posture": report.posture.name.capitalize(),
                }
            )
            for name, report in reports.items()
        ]
        try:
            self._file.writelines(line + "\n" for line in lines)
        except OSError as error:
            log.error("the decision log ends here: %s", error)
            self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
