"""How much the searches of the tests search: the ordinary size in continuous integration (CI is set, `.ci/run` sets it), a quick
one wherever somebody waits for `make test`. What they all must find is planted and found at either size."""

from __future__ import annotations

import os
from typing import Final

ORDINARY: Final = bool(os.environ.get("CI"))


def sized(ordinary: int) -> int:
    """A quarter of it in the quick size."""
    return ordinary if ORDINARY else max(1, ordinary // 4)


EXAMPLES: Final = sized(120)
"""Of a property that is cheap to try; one that says a number of its own is dear."""
