"""Why GPUs got their caps, said once per (leaf, phase, priority) and never per GPU, so that a fleet stays cheap."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from splitwatt_core.columns import BoolArray, IntArray, PhaseCode
from splitwatt_core.policies.signature import PowerSnapshot, Reason

_PHASES = tuple(PhaseCode)


def reasons_by_kind(
    snapshot: PowerSnapshot,
    *,
    unit_of_gpu: IntArray,
    cap_w: NDArray[np.int32],
    text_of_unit: Callable[[int], str],
    marks: Sequence[tuple[str, BoolArray]] = (),
) -> tuple[Reason, ...]:
    """One Reason per kind, in the order (leaf, phase, priority). The text is that of the kind's first unit: all units of a
    kind have one share, save those that span several leaves. `marks`: words, each
    with bool[N], that are added where any GPU of a kind has them."""
    gpus = snapshot.gpus
    if len(gpus.leaf) == 0:
        return ()
    priorities, rank = np.unique(gpus.priority, return_inverse=True)
    key = (gpus.leaf.astype(np.int64) * len(_PHASES) + gpus.phase) * len(priorities) + rank
    kinds, first, kind_of_gpu, counts = np.unique(key, return_index=True, return_inverse=True, return_counts=True)
    mean_w = np.bincount(kind_of_gpu, weights=cap_w, minlength=len(kinds)) / counts
    leaf_phase, priority = np.divmod(kinds, len(priorities))
    leaf, phase = np.divmod(leaf_phase, len(_PHASES))
    units = unit_of_gpu[first].tolist()
    said = [text_of_unit(unit) for unit in units]
    for word, marked in marks:
        for kind in np.unique(kind_of_gpu[marked]).tolist():
            said[kind] += f"; {word}"
    rows = zip(leaf.tolist(), phase.tolist(), priorities[priority].tolist(), counts.tolist(), mean_w.tolist(), said, strict=True)
    return tuple(Reason(leaf=b, phase=_PHASES[p], priority=q, gpus=n, mean_cap_w=w, text=text) for b, p, q, n, w, text in rows)
