"""How much the searches of the tests search: a quick size wherever somebody waits for `make test`, the long one where
SEARCHES=long, which `make property-long` sets. What they all must find is planted and found at either size."""

from __future__ import annotations

import os
from typing import Final

LONG: Final = os.environ.get("SEARCHES") == "long"


def sized(long: int) -> int:
    """A quarter of it in the quick size."""
    return long if LONG else max(1, long // 4)


EXAMPLES: Final = sized(120)
"""Of a property that is cheap to try; one that says a number of its own is dear."""
