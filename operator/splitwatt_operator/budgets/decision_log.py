"""The decision log: one JSON line per budget and decision, for those who judge from outside, with the policy's reasons where
they are others than in the line before."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from splitwatt_core.budget.keeper import BudgetReport

log = logging.getLogger(__name__)


class LogFileError(RuntimeError):
    """The file cannot be written; the sentence says what to change."""


class DecisionLog:
    """`path` None: nothing is written. A full disk ends the log, never the decisions."""

    def __init__(self, path: Path | None) -> None:
        """Raises LogFileError."""
        self._file: IO[str] | None = None
        self._told: dict[str, list[dict[str, Any]]] = {}
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
                    **self._reasons(name, report),
                }
            )
            for name, report in reports.items()
        ]
        self._told = {name: said for name, said in self._told.items() if name in reports}
        try:
            self._file.writelines(line + "\n" for line in lines)
        except OSError as error:
            log.error("the decision log ends here: %s", error)
            self.close()

    def _reasons(self, name: str, report: BudgetReport) -> dict[str, Any]:
        said = [
            {
                "phase": reason.phase.name.capitalize(),
                "priority": reason.priority,
                "gpus": reason.gpus,
                "mean_cap_w": round(reason.mean_cap_w, 1),
                "text": reason.text,
            }
            for reason in report.reasons
        ]
        if self._told.get(name, []) == said:
            return {}
        self._told[name] = said
        return {"reasons": said}

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
