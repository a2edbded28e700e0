"""Wall clocks that can be stepped for one process alone: a small library that is preloaded into it (clock.c)."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

_SOURCE: Final = Path(__file__).with_name("clock.c")


class Clocks:
    """One file per process below `directory`; it holds the step in seconds."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._library = directory / "clock.so"

    def build(self) -> None:
        """Raises LabError with the compiler's own words."""
        self._directory.mkdir(parents=True, exist_ok=True)
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(self._library), str(_SOURCE), "-ldl"]
        try:
            built = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise LabError("there is no C compiler `cc` on PATH; install gcc") from error
        if built.returncode != 0:
            raise LabError(f"{_SOURCE.name} does not compile: {built.stderr.strip()}")

    def environment(self, process: str) -> Mapping[str, str]:
        self.step(process, 0.0)
        return {"LD_PRELOAD": str(self._library), "SPLITWATT_CLOCK": str(self._file(process))}

    def step(self, process: str, seconds: float) -> None:
        """From now on this process's wall clock shows `seconds` more than it is."""
        file = self._file(process)
        with file.open("r+b" if file.exists() else "wb") as out:  # in place: the process has mapped this very file
            out.write(struct.pack("=d", seconds))

    def _file(self, process: str) -> Path:
        return self._directory / f"{process}.step"
