"""Which PowerProfile stands before which: one answer for caps and for floors."""

from __future__ import annotations

import itertools
from dataclasses import replace

from splitwatt_core.gpus.profiles import Offered, builtin, in_force, lookup
from splitwatt_core.protocol.contract import Phase


def test_a_persons_profile_stands_before_the_shipped_one_and_arrival_decides_nothing() -> None:
    """User before shipped before built-in; by name within each."""
    h100 = next(profile for profile in builtin() if profile.name == "H100-SXM")
    offers = [
        Offered(replace(h100, name="h100-sxm"), shipped=True),
        Offered(replace(h100, name="z-measured")),
        Offered(replace(h100, name="m-measured")),
    ]
    expected = ["m-measured", "z-measured", "h100-sxm", *(profile.name for profile in builtin())]
    for order in itertools.permutations(offers):
        assert [profile.name for profile in in_force(order)] == expected
    own = replace(h100, name="own", phases=tuple(replace(p, cliff_w=p.cliff_w - 10) for p in h100.phases))
    found = lookup(in_force([offers[0], Offered(own)]), "NVIDIA H100 80GB HBM3", Phase.DECODE)
    shipped = h100.phase(Phase.DECODE)
    assert found is not None and shipped is not None
    assert found.cliff_w == shipped.cliff_w - 10
    assert lookup(in_force([]), "NVIDIA B200", Phase.DECODE) is not None, "B200 is not left to a guess"
