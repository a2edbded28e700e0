"""A small adversarial world around the core's real code: an API store that delays, reorders and loses, operators that are
replaced in mid-flight, agents that crash and hang, nodes that reboot. Nothing here decides anything about power: keepers
and enforcers do, and `check` compares what they believe with the truth.

Truth kept (docs/protocol.md): charge >= the true management limit of every GPU, except after a surprise nobody could have seen;
and no decision raises the sum of charges above the limit.

The plain world is two racks below a row. The rich one has a third level, losses, non-GPU watts, a reserve, unlike settle
times, a node without an agent, and agents whose node guard is at work.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from splitwatt_core.budget.claims import Claim
from splitwatt_core.budget.facts import PodFact
from splitwatt_core.budget.tree import BelowState, BudgetSpec, LimitState
from splitwatt_core.names import LABEL_MODE
from splitwatt_core.policies.shipped import POLICIES
from splitwatt_core.policies.signature import Policy
from splitwatt_core.protocol.contract import RELEASE_ALL
from support.api_store import ApiStore
from support.clocked import Clocked
from support.feeds import Feeds
from support.lines import Line
from support.machines import DEFAULT_W, LAG_S, MIN_W, Agent, Clock, Gpu, Node
from support.operators import Operator

__all__ = ["DEFAULT_W", "MIN_W", "OTHER_ROOT", "RACKS", "ROOT", "Agent", "ApiStore", "Gpu", "Line", "Node", "Operator", "World"]

ROOT = "row"
OTHER_ROOT = "row-2"
RACKS = ("a", "b")


@dataclass(slots=True)
class World(Clock):
    nodes_per_rack: int = 1
    gpus_per_node: int = 1
    limit_w: int = 900
    policy: str = "Uniform"
    rich: bool = False
    two_rows: bool = False
    """Another row beside the first, to which racks may be moved."""
    store: ApiStore = field(default_factory=ApiStore)
    nodes: dict[str, Node] = field(default_factory=dict)
    agents: dict[str, Agent] = field(default_factory=dict)
    lines: dict[str, Line] = field(default_factory=dict)
    budgets: dict[str, BudgetSpec] = field(default_factory=dict)
    pods: dict[tuple[str, str], PodFact] = field(default_factory=dict)
    operators: list[Operator] = field(default_factory=list)
    limits: dict[str, tuple[str, LimitState, bool]] = field(default_factory=dict)
    """What PowerBudget statuses say, with the uid they say it of: written by the holder of the Lease alone."""
    below: dict[str, tuple[BelowState, ...]] = field(default_factory=dict)
    """What PowerBudget statuses keep of the budgets below."""
    contract_uid: str = "crd-1"
    """Of the CustomResourceDefinition of NodePower; "": nobody tells."""
    noted: dict[str, str] = field(default_factory=dict)
    """What PowerBudget statuses say of it."""
    labels: dict[str, str | None] = field(default_factory=dict)
    """By node, the rack that its label names where it is not the one it stands in; None: it has no label."""
    released: set[str] = field(default_factory=set)
    """Nodes that a person labelled to be given their default limits back."""
    feeds: Feeds = field(default_factory=Feeds)
    """Where what draws must be counted, by the world's own knowledge (T3)."""
    dark: set[str] = field(default_factory=set)
    """Meters that give no reading."""
    reads_late: bool = False
    """No fresh read is answered: nobody is released."""
    undeclared_w: int = 0
    """Watts in every rack that no budget knows of."""
    terms: int = 0
    term_step: int = 1
    policies: dict[str, Policy] = field(default_factory=lambda: {**POLICIES, Clocked.name: Clocked()})

    def __post_init__(self) -> None:
        self.lines[ROOT] = Line(None, self.limit_w)
        if self.rich:
            self.lines[ROOT].reserve_w, self.lines[ROOT].fixed_w = 40, 30
            self.lines["cage"] = Line(ROOT, self.limit_w, fixed_w=10)
            self.lines["a"] = Line("cage", self.limit_w, leaf=True, overhead_percent=10, non_gpu_w=50, settle_ms=1300)
            self.lines["b"] = Line(ROOT, self.limit_w, leaf=True, overhead_percent=4, non_gpu_w=60, reserve_w=20)
        else:
            self.lines.update({rack: Line(ROOT, self.limit_w, leaf=True) for rack in RACKS})
        if self.two_rows:
            self.lines[OTHER_ROOT] = Line(None, self.limit_w)
        self.tell_budgets()
        for rack in RACKS:
            for k in range(self.nodes_per_rack):
                self.add_node(f"{rack}{k}", rack)
        if self.rich:
            self.add_node("bare", "b", managed=False)

    def add_node(self, name: str, rack: str, *, managed: bool = True) -> None:
        gpus = {f"{name}-g{i}": Gpu(f"{name}-g{i}") for i in range(self.gpus_per_node)}
        node = Node(name, rack, gpus, managed=managed)
        self.nodes[name] = node
        self.agents[name] = Agent(self, self.store, node, guarded=self.rich)

    def add_line(self, name: str, *, like: str, rack: str) -> None:
        """A leaf of another name over the same rack."""
        self.lines[name] = replace(self.lines[like], rack=rack, birth=1)

    # ----------------------------------------------------------------------------------------------------- the budgets

    def set_limit(self, limit_w: int, **limits_w: int) -> None:
        """The row's limit; every other budget may use all of it unless told otherwise: `set_limit(900, a=600, b=300)`."""
        self.limit_w = limit_w
        for name, line in self.lines.items():
            line.limit_w = limits_w.get(name, limit_w)
        self.tell_budgets()

    def tell_budgets(self) -> None:
        """All operators see what changed of the budgets."""
        before, self.budgets = self.budgets, {n: line.spec(n, self) for n, line in self.lines.items() if line.exists}
        for operator in self.operators:
            for name in before.keys() - self.budgets.keys():
                operator.keeper.on_budget_gone(name, self.now_s)
            for name, spec in self.budgets.items():
                if before.get(name) != spec:
                    operator.keeper.on_budget(spec, self.now_s)

    def flat_w(self, line: Line) -> int:
        """The most a node can draw in this leaf."""
        return int(line.loss_factor * DEFAULT_W * self.gpus_per_node) + 1 + line.non_gpu_w

    def chain(self, name: str) -> Iterator[str]:
        """Which lines feed it: cables stay where a field was left out or an object deleted."""
        up: str | None = name
        while up is not None:
            yield up
            up = self.lines[up].parent or self.lines[up].left_out

    def declared(self, name: str, *, gone: bool = False) -> Iterator[str]:
        """The budgets that it names above itself, as far as they are there; `gone`: and then the one that is not."""
        up: str | None = name
        while up is not None and self.lines[up].exists:
            yield up
            up = self.lines[up].parent
        if gone and up is not None:
            yield up

    def _sum(self, name: str, gpu_w: dict[str, float]) -> float:
        """Watts at a meter when GPUs draw `gpu_w`, by node, and all else what was declared. Nodes count where they stand."""
        name = self.lines[name].rack or name
        total_w = float(sum(line.fixed_w for n, line in self.lines.items() if not line.rack and name in self.chain(n)))
        for node in self.nodes.values():
            line = self.lines[node.rack]
            if name in self.chain(node.rack):
                total_w += line.loss_factor * gpu_w[node.name] + line.non_gpu_w
        return total_w

    def meter_w(self, name: str) -> float:
        """What the meter shows: real losses and real non-GPU watts, a bit below what was declared."""
        drawn_w = {n: 0.98 * sum(g.draw_w for g in node.gpus.values()) for n, node in self.nodes.items()}
        racks = sum((self.lines[name].rack or name) in self.chain(rack) for rack in RACKS)
        return 0.99 * self._sum(name, drawn_w) + racks * self.undeclared_w

    def allowed_w(self, name: str) -> float:
        """The most that can be drawn below the budget now: every GPU at its true limit."""
        return self._sum(name, {n: float(node.true_w) for n, node in self.nodes.items()})

    def floor_w(self, name: str) -> float:
        """What no decision can go below: minimum caps, and nodes without an agent at their flat rate."""
        total_w = self._sum(name, {n: float(MIN_W * len(x.gpus)) if x.managed else 0.0 for n, x in self.nodes.items()})
        for node in self.nodes.values():
            line = self.lines[node.rack]
            if not node.managed and (self.lines[name].rack or name) in self.chain(node.rack):
                total_w += self.flat_w(line) - line.non_gpu_w
        return total_w

    # ------------------------------------------------------------------------------------------------- what may happen

    def elect(self, *, keep_old_lease: bool = False) -> Operator:
        """A new operator start. The old one keeps running, without the Lease unless told otherwise."""
        for old in self.operators:
            old.holds_lease = old.holds_lease and keep_old_lease
        self.feeds.succeed(self)
        self.terms += self.term_step
        operator = Operator(self, self.terms)
        self.operators.append(operator)
        return operator

    @property
    def active(self) -> Operator:
        return self.operators[-1]

    def reboot(self, name: str) -> None:
        """All limits back to default, a new boot id, a new agent; Kubernetes' Node object tells the operator later."""
        node, agent = self.nodes[name], self.agents[name]
        agent.lose_power()
        node.boot += 1
        for gpu in node.gpus.values():
            self._surprise(gpu)
        agent.start()

    def reset(self, name: str, uuid: str) -> None:
        self._surprise(self.nodes[name].gpus[uuid])

    def _surprise(self, gpu: Gpu) -> None:
        self.count += 1
        gpu.true_w, gpu.surprised, gpu.surprised_at = DEFAULT_W, True, self.count

    def move(self, name: str, rack: str) -> None:
        self.nodes[name].rack = rack
        self.labels.pop(name, None)

    def label(self, node: Node) -> str | None:
        """The rack that its Node object names; None: it names none, or there is no such object."""
        return self.labels.get(node.name, node.rack) if node.present else None

    def node_labels(self, node: Node) -> dict[str, str]:
        label = self.label(node)
        mode = {LABEL_MODE: "Release"} if node.name in self.released else {}
        return mode if label is None else {"rack": label, **mode}

    def release(self, name: str) -> bool:
        """A person says of a node that is gone, by name, that it draws on nothing any more; whether there is such a node."""
        ghost = name in self.store.objects and not self.nodes[name].present
        if ghost:
            self.store.annotate(name, release=frozenset({RELEASE_ALL}))
        return ghost

    def lose_kind(self) -> None:
        """The NodePower CRD is deleted, and all NodePowers with it."""
        self.store.lose_kind()
        self.contract_uid = ""

    def make_kind(self) -> None:
        self.store.make_kind()
        self.contract_uid = self.store.kind_uid

    def confirm(self) -> None:
        """A person says at every root that no machine is missing under the present CRD: what nothing names there draws there no
        more."""
        for line in self.lines.values():
            if line.parent is None:
                line.confirmed_uid = self.contract_uid
        self.feeds.confirm(self)
        self.active.blind = False
        self.tell_budgets()

    def reads(self, claim: Claim) -> bool:
        """Whether fresh reads find the Node and the budgets as they are claimed."""
        node = self.nodes[claim.node]
        found = [self.budgets.get(name) for name, *_ in claim.budgets]
        same = all(
            spec is not None and row == (spec.name, spec.uid, spec.generation)
            for row, spec in zip(claim.budgets, found, strict=True)
        )
        return same and node.present and claim.labels == self.node_labels(node)

    def tell_nodes(self) -> None:
        for operator in self.operators:
            for node in self.nodes.values():
                operator.see_node(node)

    # -------------------------------------------------------------------------------------------------------- judgement

    def counted(self, name: str) -> bool:
        """Whether some budget of the active operator counts the node."""
        roster, budgets = self.active.keeper.roster, self.active.keeper.standing
        account = roster.nodes.get(name)
        if account is None:
            return False
        written = account.object.spec.budgets if account.object is not None and account.object.spec is not None else ()
        labels = roster._labels.get(name)
        return any(b in budgets for b in (*written, *roster.moves.get(name, ()))) or any(
            labels is not None and spec.selector is not None and spec.selector.matches(labels) for spec in budgets.values()
        )

    def stamped(self) -> bool:
        """The active operator's ledger is complete: every counted node carries its term (R3)."""
        accounts = self.active.keeper.roster.nodes
        for name, node in self.nodes.items():
            if name not in accounts:
                if node.present:
                    return False
            elif not accounts[name].stamped and (node.present or accounts[name].object is not None) and self.counted(name):
                return False
        return True

    def check(self) -> None:
        """charge >= truth for every GPU that some budget counts, as the active operator believes."""
        self.feeds.look(self)
        if not self.operators or not self.stamped():
            return
        for node in self.nodes.values():
            if not self.counted(node.name):
                continue
            for gpu in node.gpus.values():
                charge_w = self.active.charge_w(node.name, gpu.uuid)
                if gpu.surprised:
                    if not self.reported(node, gpu):
                        continue
                    gpu.surprised = False
                if charge_w is None:
                    assert not self.present_and_known(node), f"{gpu.uuid} is charged nothing, truth {gpu.true_w} W"
                    continue
                truth_w = gpu.true_w if self.now_s - self.active.born_s < LAG_S else gpu.may_draw_w(self.now_s)
                assert charge_w >= truth_w, f"{gpu.uuid}: charged {charge_w} W, true limit {truth_w} W"

    def reported(self, node: Node, gpu: Gpu) -> bool:
        """The active operator read of the surprise: from now on it must count."""
        account = self.active.keeper.roster.nodes.get(node.name)
        if account is None or account.object is None:
            return False
        seen = account.object.resource_version
        return any(read_at >= gpu.surprised_at for version, read_at in node.reports if version <= seen)

    def present_and_known(self, node: Node) -> bool:
        account = self.active.keeper.roster.nodes.get(node.name)
        return node.present and account is not None and bool(account.gpus)

    def true_sum_w(self) -> int:
        return sum(g.true_w for n in self.nodes.values() for g in n.gpus.values())

    def charged_w(self) -> float:
        return self.active.last.budgets[ROOT].charge_w
