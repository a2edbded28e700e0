"""Rollouts that keep a pair: how many replicas and which routers each revision has next.

Engines of two revisions cannot hand KV caches on to each other (`rendering.revision`). So each revision has Deployments and a
router of its own, and all routers stand behind the cluster's Service. Old Deployments shrink, the newest grows into the room: no
role ever has more replicas than are asked for. One replica of a role moves at a time, and no role runs ahead of the other.

One revision is *kept*: the one that requests are surely served by. No step takes the last ready replica of a role from it,
nor from any that still has a router, for that one may be amid a request. The newest gets its router with a third of its replicas,
and is kept with two thirds, or when the former has no more to give. The former's router goes first, and then, when all its pods
are gone, its engines.

A role of one replica cannot move so: it has no room for a second one. Its cluster is told that serving is interrupted; the other
role moves a replica first, so that it is as short as can be.

A router is ready while it knows an engine of each role. Where one is scaled to zero nobody is served and there is no pair to
keep, so all of the former go at once.

A replica that waits for power holds nothing, and nothing but more watts will ever start it. So a rollout does not wait for it: it
moves as many as had a place when it began (`ready_at_most`). Where a place that was given away went to somebody else, no other
one is given.

Everything follows from what is there: whoever takes over in the midst goes on. Pure, and the same for a rollout that another one
interrupts, or that is rolled back: the newest is whatever is asked for now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Final

from splitwatt_core.clusters import PAIR, Role

ROUTED_FROM: Final = Fraction(1, 3)
"""Of its replicas the newest revision has when its router comes: half of all requests go there from then on."""
KEPT_FROM: Final = Fraction(2, 3)


@dataclass(frozen=True, slots=True)
class PoolState:
    """One role's Deployment of one revision: the replicas that it is told to have, those of them that are ready, and those that
    wait behind the power gate."""

    wanted: int = 0
    ready: int = 0
    gated: int = 0


@dataclass(frozen=True, slots=True)
class RevisionState:
    """`routed`: its router's Deployment is there, or its pods still are; `routers_ready`: those that take requests."""

    pools: Mapping[Role, PoolState]
    routed: bool = False
    routers_ready: int = 0

    def pool(self, role: Role) -> PoolState:
        pool = self.pools.get(role, PoolState())
        ready = min(pool.wanted, pool.ready)
        return PoolState(pool.wanted, ready, min(pool.wanted - ready, pool.gated))


@dataclass(frozen=True, slots=True)
class RolloutPlan:
    """What to do next. `replicas` of every revision that is there, and of the newest; `routers`: the revisions that have one.
    `kept`: who serves. `interrupted`: a role of one replica has to move, so requests fail meanwhile. `unpaired`: a role is scaled
    to zero, so that there is no pair to keep."""

    replicas: Mapping[str, Mapping[Role, int]]
    routers: frozenset[str]
    kept: str
    interrupted: bool = False
    sentence: str = ""
    unpaired: bool = False

    @property
    def reason(self) -> str:
        """Of condition RollingOut, one word."""
        return "ServingInterrupted" if self.interrupted else "ScaledToZero" if self.unpaired else "PairsKept"


@dataclass(frozen=True, slots=True)
class _Scene:
    revisions: Mapping[str, RevisionState]
    newest: str
    replicas: Mapping[Role, int]
    with_router: bool
    ready_at_most: Mapping[Role, int]
    roles: tuple[Role, ...] = field(init=False)
    """Those that are asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "roles", tuple(role for role in Role if self.replicas[role] > 0))

    def pair(self, revision: str) -> bool:
        return all(self.revisions[revision].pool(role).ready > 0 for role in self.roles)

    def serving(self, revision: str) -> bool:
        return self.pair(revision) and (not self.with_router or self.revisions[revision].routers_ready > 0)

    def share(self, revision: str) -> Fraction:
        """Of the replicas that are asked for, those that are its own and ready, in the role that has least. All, where none is
        asked for."""
        pool = self.revisions[revision].pool
        return min((Fraction(pool(role).ready, self.places(role)) for role in self.roles), default=Fraction(1))

    def gated(self, role: Role) -> int:
        return sum(state.pool(role).gated for state in self.revisions.values())

    def ready(self, role: Role) -> int:
        return sum(state.pool(role).ready for state in self.revisions.values())

    def places(self, role: Role) -> int:
        """Of the replicas that are asked for, those that watts were there for; 1 at least."""
        if not self.gated(role):
            return self.replicas[role]
        return min(self.replicas[role], max(1, self.ready(role), self.ready_at_most.get(role, 0)))

    def short(self, role: Role) -> bool:
        return self.places(role) < self.replicas[role]

    def whole(self, role: Role) -> bool:
        """Whether each replica that may start is ready, so that another one may move."""
        pools = [state.pool(role) for state in self.revisions.values()]
        started = all(pool.ready + pool.gated == pool.wanted for pool in pools)
        return started and (not self.gated(role) or self.ready(role) >= self.places(role))

    def gives(self, revision: str, role: Role) -> bool:
        """Whether it still has one ready when it gives one replica of this role away."""
        pool = self.revisions[revision].pool(role)
        return min(pool.ready, pool.wanted - 1) > 0

    def lacks(self, role: Role) -> bool:
        return self.revisions[self.newest].pool(role).wanted < self.replicas[role]

    @property
    def olds(self) -> list[str]:
        return sorted(self.revisions.keys() - {self.newest})


def plan_rollout(
    revisions: Mapping[str, RevisionState],
    *,
    newest: str,
    replicas: Mapping[Role, int],
    with_router: bool = True,
    ready_at_most: Mapping[Role, int] | None = None,
) -> RolloutPlan:
    """The next step. `revisions`: all of which anything is there. `replicas`: of each role that is
    asked for; one that is not goes. `ready_at_most`: the most ready replicas of a role, of all revisions, that were seen since
    the newest is asked for; who has seen nothing gives at most one replica more away. Applying it twice does no more than once.

    Invariant: from a state where some revision serves and no role has one replica, each step leaves a pair with its router.
    """
    asked = {role: replicas.get(role, 0) for role in Role}
    scene = _Scene({newest: RevisionState({}), **revisions}, newest, asked, with_router, ready_at_most or {})
    if not scene.olds:
        return RolloutPlan({newest: dict(replicas)}, frozenset({newest} if with_router else ()), newest)
    empty = [role for role in Role if replicas.get(role) == 0]
    if with_router and empty:
        return _all_at_once(scene, replicas, f"Nobody is served while {_at_zero(empty)}.")
    single = [role for role in scene.roles if scene.replicas[role] == 1 and scene.lacks(role)]
    kept = _kept(scene)
    breaks = bool(single) and kept != newest and _rest_is_there(scene, single)
    routers = _routers(scene, kept, early=bool(single)) if with_router else frozenset()
    there = [role for role in Role if role in replicas or any(role in state.pools for state in scene.revisions.values())]
    following = {revision: {role: state.pool(role).wanted for role in there} for revision, state in scene.revisions.items()}
    # A router that comes takes its part of the requests before their engines go on moving.
    calm = not (newest in routers and kept != newest and scene.pair(newest) and not scene.serving(newest))
    for role in there:
        _move(scene, role, kept, following, breaks=breaks and role in single, calm=calm)
    left = [role for role in _left(scene) if role not in replicas]
    interrupted, unpaired = bool(single or left), any(role in PAIR for role in empty)
    told = _sentence(scene, kept, single, left)
    if unpaired and not interrupted:
        told = f"{_moved(scene)} There is no pair to keep while {_at_zero(empty)}."
    return RolloutPlan(following, routers, kept, interrupted, told, unpaired)


def _all_at_once(scene: _Scene, replicas: Mapping[Role, int], why: str) -> RolloutPlan:
    """The newest grows into what the former have given away."""
    newest = scene.newest
    following = {revision: dict.fromkeys(scene.revisions[revision].pools, 0) for revision in scene.olds}
    held = {role: sum(scene.revisions[old].pool(role).wanted for old in scene.olds) for role in Role}
    following[newest] = dict.fromkeys(scene.revisions[newest].pools, 0) | {
        role: max(0, count - held[role]) for role, count in replicas.items()
    }
    return RolloutPlan(following, frozenset({newest}), newest, sentence=f"{_moved(scene)} {why}", unpaired=True)


def _kept(scene: _Scene) -> str:
    newest, olds = scene.newest, scene.olds
    serving = [revision for revision in olds if scene.serving(revision)]
    if serving:
        best = max(serving, key=scene.share)
        if not scene.serving(newest):
            return best
        spent = any(scene.lacks(role) and not scene.gives(best, role) for role in scene.roles)
        if scene.share(newest) < KEPT_FROM and not (spent and scene.share(newest) >= scene.share(best)):
            return best
        return newest
    if scene.serving(newest):
        return newest
    return max((*olds, newest), key=lambda revision: (scene.pair(revision), scene.share(revision), revision == newest))


def _over(scene: _Scene, role: Role) -> int:
    """Replicas that there are and that nobody asks for any more."""
    return sum(state.pool(role).wanted for state in scene.revisions.values()) - scene.replicas[role]


def _rest_is_there(scene: _Scene, single: list[Role]) -> bool:
    return all(scene.revisions[scene.newest].pool(role).ready > 0 for role in scene.roles if role not in single)


def _routers(scene: _Scene, kept: str, *, early: bool) -> frozenset[str]:
    newest = scene.newest
    routers = {kept}
    others_serve = any(scene.serving(revision) for revision in scene.olds)
    able = scene.pair(newest) and scene.share(newest) >= ROUTED_FROM
    if able or early or not others_serve or scene.revisions[newest].routed:
        routers.add(newest)
    if not scene.serving(kept):
        # Whoever may serve meanwhile goes on.
        routers |= {revision for revision in scene.olds if scene.revisions[revision].routed and scene.pair(revision)}
    return frozenset(routers)


def _move(scene: _Scene, role: Role, kept: str, following: dict[str, dict[Role, int]], *, breaks: bool, calm: bool) -> None:
    newest, over = scene.newest, _over(scene, role)
    if over < 0:
        following[newest][role] += -over
        return
    for revision in (*_fading(scene, kept), kept):
        if revision == newest:
            continue
        idle = scene.with_router and revision != kept and not scene.revisions[revision].routed and scene.serving(kept)
        while over > 0 and following[revision][role] > 0 and _may_give(scene, revision, role, following, kept, breaks=breaks):
            following[revision][role] -= 1
            over -= 1
        if idle:  # nobody asks it any more: what it holds is room
            following[revision][role] = 0
    while over > 0 and following[newest][role] > 0 and _may_give(scene, newest, role, following, kept, breaks=False):
        following[newest][role] -= 1
        over -= 1
    if calm and _over(scene, role) == 0 and scene.lacks(role) and _turn(scene, role):
        _give_one(scene, role, kept, following, breaks=breaks)


def _give_one(scene: _Scene, role: Role, kept: str, following: dict[str, dict[Role, int]], *, breaks: bool) -> None:
    """One replica of an old revision makes room, first one that is not ready anyway."""
    before = {revision: scene.revisions[revision].pool(role) for revision in scene.revisions}
    if any(following[revision][role] < before[revision].wanted for revision in scene.olds):
        return
    whole = scene.whole(role)
    givers = [r for r in (*_fading(scene, kept), kept) if r != scene.newest and following[r][role] > 0]
    for revision in sorted(givers, key=lambda r: before[r].ready == before[r].wanted):
        spare = before[revision].ready < before[revision].wanted
        if (spare or whole) and _may_give(scene, revision, role, following, kept, breaks=breaks):
            following[revision][role] -= 1
            return


def _fading(scene: _Scene, kept: str) -> list[str]:
    return [revision for revision in scene.olds if revision != kept]


def _may_give(
    scene: _Scene, revision: str, role: Role, following: Mapping[str, Mapping[Role, int]], kept: str, *, breaks: bool
) -> bool:
    """Not the last ready one of a pair that is kept, or that a router may be asking."""
    asked = revision == kept or (scene.with_router and scene.revisions[revision].routed)
    if not asked or breaks or not scene.pair(revision) or role not in scene.roles:
        return True
    return min(scene.revisions[revision].pool(role).ready, following[revision][role] - 1) > 0


def _turn(scene: _Scene, role: Role) -> bool:
    """Whether this role is not ahead of the other."""
    newest = scene.revisions[scene.newest]
    mine = Fraction(newest.pool(role).wanted - newest.pool(role).gated, scene.places(role))
    others = (other for other in scene.roles if other != role)
    return all(mine <= Fraction(newest.pool(other).ready + 1, scene.places(other)) for other in others)


def _left(scene: _Scene) -> list[Role]:
    """Roles that the former have replicas of, while the newest does not serve yet."""
    if scene.serving(scene.newest):
        return []
    held = {role for revision in scene.olds for role, pool in scene.revisions[revision].pools.items() if pool.wanted}
    return [role for role in Role if role in held]


def _sentence(scene: _Scene, kept: str, single: list[Role], left: list[Role]) -> str:
    newest, words = scene.revisions[scene.newest], _moved(scene)
    if short := [(scene.replicas[role] - scene.places(role), role.value) for role in scene.roles if scene.short(role)]:
        counted = " and ".join(f"{count} {role}" for count, role in short)
        words = f"{words} {counted} have no watts, and the others move without them."
    if left:
        goes = " and ".join(role.value for role in left)
        return f"{words} Serving is interrupted: {goes} {'goes' if len(left) == 1 else 'go'} before the others are ready."
    if single:
        roles = " and ".join(role.value for role in single)
        one = "has one replica" if len(single) == 1 else "have one replica each"
        return (
            f"{words} Serving is interrupted: {roles} {one}, which makes room for the new one before that is "
            "ready; two of each role are rolled without an interruption."
        )
    if scene.with_router and scene.pair(scene.newest) and scene.revisions[scene.newest].routed and not newest.routers_ready:
        words = f"{words} The router of {scene.newest} is not ready yet."
    if not scene.serving(kept):
        return words
    ending = [revision for revision in scene.olds if scene.revisions[revision].routed and kept == scene.newest]
    waits = f" The router of {' and '.join(ending)} has pods that have not ended." if ending else ""
    return f"{words} {kept} serves.{waits}"


def _at_zero(roles: list[Role]) -> str:
    return f"{' and '.join(role.value for role in roles)} {'is' if len(roles) == 1 else 'are'} scaled to zero"


def _moved(scene: _Scene) -> str:
    newest = scene.revisions[scene.newest]
    moved = " and ".join(f"{newest.pool(role).ready} of {scene.replicas[role]} {role.value}" for role in scene.roles) or "no"
    return (
        f"Revision {scene.newest} has {moved} replicas ready; {', '.join(scene.olds)} {'goes' if len(scene.olds) == 1 else 'go'}."
    )
