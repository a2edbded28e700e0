"""One node's account for tests of the ledger: versions of its NodePower, seen at one moment, and what is charged later."""

from __future__ import annotations

from splitwatt_core.protocol.contract import GpuStatus, Grant, NodePower, Spec, Status
from splitwatt_core.protocol.node_account import NodeAccount

TERM = 2
NOW_S = 1000.0
SETTLE_S = 0.5


def line(number: int, cap_w: int, charge_w: int | None = None, uuid: str = "g0") -> Grant:
    return Grant(uuid, number, cap_w=cap_w, safe_cap_w=cap_w, charge_w=charge_w or cap_w)


def reading(acked: int, management_w: int | None, uuid: str = "g0", **more: object) -> GpuStatus:
    facts = {"min_w": 200, "max_w": 700, "default_w": 700, **more}
    return GpuStatus(uuid, acked, management_w, management_w, **facts)  # type: ignore[arg-type]


def version(
    number: int,
    *grants: Grant,
    status: tuple[GpuStatus, ...] = (),
    uid: str = "u1",
    boot: str = "boot-1",
    term: int = TERM,
    observed_uid: str | None = None,
) -> NodePower:
    return NodePower(
        "n1",
        uid,
        number,
        Spec(term=term, for_uid=uid, gpus=grants),
        Status(observed_uid=uid if observed_uid is None else observed_uid, boot_id=boot, gpus=status),
    )


def node(*versions: NodePower, boot: str = "boot-1") -> NodeAccount:
    account = NodeAccount("n1")
    account.see_boot(boot)
    for seen in versions:
        account.observe(seen, NOW_S, term=TERM)
    account.refresh(NOW_S, settle_s=SETTLE_S)
    return account


def charge_w(account: NodeAccount, now_s: float = NOW_S + 10.0, uuid: str = "g0") -> int:
    account.refresh(now_s, settle_s=SETTLE_S)
    return account.gpus[uuid].charge_w


def settled_w(account: NodeAccount) -> int:
    """What is charged once everything that may fall has fallen."""
    charge_w(account, NOW_S + 19.0)
    return charge_w(account, NOW_S + 20.0)
