"""Just-in-time compilation where numba is installed; the same functions, interpreted, where it is not.

Every kernel of the simulator is written so that both give the same numbers to the last bit: plain loops over arrays, no
reordered sums (`fastmath` stays off), no threads. `NUMBA_DISABLE_JIT=1` interprets too.

numba keeps compiled code on disk by the file of each function alone, and would not notice a change in a function that it
calls. So each package keeps its own in a folder whose name is a hash of every file that has a kernel: here, in the core, and in
that package.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from splitwatt_core.policies import foresight

KERNEL: Final = re.compile(rb"^@(jit|lean|inlined)$|^def advance\(", re.MULTILINE)
"""A line that begins a kernel: here, or the core's law that is compiled as it stands."""
F = TypeVar("F", bound=Callable[..., Any])


def _same(function: F) -> F:
    return function


try:
    import numba
except ImportError:  # slower, not wrong
    COMPILED = False
    jit = lean = inlined = _same

    def is_cold(package: str = "splitwatt_sim") -> bool:
        """Whether the next kernel of a package has to be compiled first, which takes about half a minute."""
        del package
        return False
else:
    COMPILED = not numba.config.DISABLE_JIT

    def _folder_of(package: str) -> Path:
        """Where the kernels of a package are kept. `__main__`, a script, has none but ours to look at."""
        roots, there = [Path(__file__).parent], sys.modules.get(package)
        if package != "__main__" and there is not None and there.__file__ is not None:
            roots.append(Path(there.__file__).parent)
        digest = hashlib.sha256(numba.__version__.encode())
        for source in (*sorted({file for root in roots for file in root.rglob("*.py")}), Path(foresight.__file__)):
            text = source.read_bytes()
            if KERNEL.search(text):
                digest.update(text)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "splitwatt" / "kernels" / digest.hexdigest()[:16]

    _FOLDERS: Final[dict[str, str]] = {}
    """By package; with a folder of the user's own there is only that one."""

    def _folder(package: str) -> str:
        if "NUMBA_CACHE_DIR" in os.environ:
            return str(numba.config.CACHE_DIR)
        if package not in _FOLDERS:
            _FOLDERS[package] = str(_folder_of(package))
        return _FOLDERS[package]

    def is_cold(package: str = "splitwatt_sim") -> bool:
        """Whether the next kernel of a package has to be compiled first, which takes about half a minute."""
        # numba makes the folder when a kernel is declared, and an index in it when one is compiled.
        return COMPILED and not any(Path(_folder(package)).rglob("*.nbi"))

    def _kept(function: F, **options: Any) -> F:
        """`function` compiled on its first call. numba asks where to keep it now."""
        if COMPILED:
            numba.config.CACHE_DIR = _folder(function.__module__.partition(".")[0])
        compiled: F = numba.njit(cache=True, **options)(function)
        return compiled

    def jit(function: F) -> F:
        """`function` compiled on its first call, and kept on disk."""
        return _kept(function)

    def lean(function: F) -> F:
        """Like `jit`, for functions that make no array and never divide by zero: without reference counts and checks, three
        times as fast where many arrays are passed."""
        return _kept(function, error_model="numpy", _nrt=False)

    def inlined(function: F) -> F:
        """Like `jit`, and copied into its callers: passing a tuple of many arrays costs more than a small function does."""
        compiled: F = numba.njit(inline="always")(function)
        return compiled
