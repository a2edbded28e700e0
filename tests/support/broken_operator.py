"""The operator with a broken allocator: it grants every GPU its maximum, whatever the budget says. For the judge to catch."""

import sys

import numpy as np
from numpy.typing import NDArray
from splitwatt_core.budget import keeper
from splitwatt_core.budget.transition import TransitionInput
from splitwatt_operator.__main__ import main

FULL_W = 700


def everything(t: TransitionInput) -> NDArray[np.int32]:
    return np.full(t.leaf.shape, FULL_W, dtype=np.int32)


keeper.next_caps = everything

if __name__ == "__main__":
    sys.exit(main())
