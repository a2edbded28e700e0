"""Just-in-time compilation where numba is installed; the same functions, interpreted, where it is not.

Every kernel of the simulator is written so that both give the same numbers to the last bit: plain loops over arrays, no
reordered sums (`fastmath` stays off), no threads. `NUMBA_DISABLE_JIT=1` interprets too.

numba keeps compiled code on disk by the file of each function alone, and would not notice a change in a function that it
calls. So the cache's folder carries a hash of every file that has a kernel.
"""

from __future__ import annotations

import hashlib
import os
import re
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

    def is_cold() -> bool:
        """Whether the next kernel has to be compiled first, which takes about half a minute."""
        return False
else:
    COMPILED = not numba.config.DISABLE_JIT

    def _cache_folder() -> Path:
        digest = hashlib.sha256(numba.__version__.encode())
        for source in (*sorted(Path(__file__).parent.rglob("*.py")), Path(foresight.__file__)):
            text = source.read_bytes()
            if KERNEL.search(text):
                digest.update(text)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return home / "splitwatt" / "kernels" / digest.hexdigest()[:16]

    if COMPILED and "NUMBA_CACHE_DIR" not in os.environ:
        numba.config.CACHE_DIR = str(_cache_folder())

    def is_cold() -> bool:
        """Whether the next kernel has to be compiled first, which takes about half a minute."""
        # numba makes the folder when a kernel is declared, and an index in it when one is compiled.
        return COMPILED and not any(Path(numba.config.CACHE_DIR).rglob("*.nbi"))

    def jit(function: F) -> F:
        """`function` compiled on its first call, and kept on disk."""
        compiled: F = numba.njit(cache=True)(function)
        return compiled

    def lean(function: F) -> F:
        """Like `jit`, for functions that make no array and never divide by zero: without reference counts and checks, three
        times as fast where many arrays are passed."""
        compiled: F = numba.njit(cache=True, error_model="numpy", _nrt=False)(function)
        return compiled

    def inlined(function: F) -> F:
        """Like `jit`, and copied into its callers: passing a tuple of many arrays costs more than a small function does."""
        compiled: F = numba.njit(inline="always")(function)
        return compiled
