"""The highest cap that each GPU had while somebody looked: by the GPUs themselves, ten times a second."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Final, Self

from splitwatt_lab.errors import LabError

from ground.site import Site

PERIOD_S: Final = 0.1
Gpu = tuple[str, int]
"""Node and slot."""


def caps_w(site: Site) -> Mapping[Gpu, float]:
    """Every GPU's enforced limit, now."""
    return {(node, slot): watts for node, each in site.enforced_w().items() for slot, watts in enumerate(each)}


class Highest:
    """Between entering and leaving the block. `before_w` is of the moment in which it began."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="caps", daemon=True)
        self._failure: BaseException | None = None
        self.before_w: Mapping[Gpu, float] = {}
        self.watts: dict[Gpu, float] = {}
        self.looks = 0

    def __enter__(self) -> Self:
        self.before_w = caps_w(self._site)
        self.watts = dict(self.before_w)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise LabError(f"nobody watched the caps to the end: {self._failure!r}") from self._failure

    def raised(self, but_not: Collection[Gpu] = ()) -> Sequence[str]:
        """GPUs that were at a higher cap than before, each in words."""
        assert self.looks, "nobody looked"
        return [
            f"{node}/{slot} from {self.before_w[node, slot]:g} to {watts:g} W"
            for (node, slot), watts in self.watts.items()
            if watts > self.before_w[node, slot] and (node, slot) not in but_not
        ]

    def _watch(self) -> None:
        try:
            while not self._stop.wait(PERIOD_S):
                for gpu, watts in caps_w(self._site).items():
                    self.watts[gpu] = max(self.watts[gpu], watts)
                self.looks += 1
        except BaseException as error:  # noqa: BLE001 - kept for the end of the block, which raises it
            self._failure = error
