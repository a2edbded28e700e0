"""A plan's objects say what its design says, whatever its pools, and are rendered as such."""

from __future__ import annotations

import math
from typing import Any

import yaml
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_api.convert import cluster_from_wire
from splitwatt_api.inference_cluster import InferenceCluster
from splitwatt_api.power_budget import PowerBudget
from splitwatt_api.power_profile import PowerProfile
from splitwatt_core.clusters import PAIR, Role, RouterType
from splitwatt_core.names import LABEL_ROLE
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_sim.plan.objects import as_yaml, manifests, profile_manifests
from splitwatt_sim.plan.options import GPUS_2026, MODEL_2026, LatencySlo, option_for
from splitwatt_sim.plan.search import Option, PlanDesign
from splitwatt_sim.servers.catalogue import Catalogue

SLO = LatencySlo(1_500.0, 60.0)
KNOWN = {name: Catalogue().gpu(name) for name in GPUS_2026}


def option(gpu: str = "H100", cap_w: int = 700) -> Option:
    return option_for(MODEL_2026, gpu, cap_w, longest_prompt=512)


PREFILL = option()


def objects(design: PlanDesign) -> list[dict[str, Any]]:
    return manifests(design, name="chat", namespace="serving", model=MODEL_2026, slo=SLO, gpus=KNOWN)


def test_the_objects_say_what_the_design_says() -> None:
    design = PlanDesign(PREFILL, 3, option("H200", 280), 2)
    written = list(yaml.safe_load_all(as_yaml(objects(design), header="two\nlines")))
    assert [obj["kind"] for obj in written] == ["PowerBudget", "InferenceCluster"]
    budget, cluster = PowerBudget.from_wire(written[0]), InferenceCluster.from_wire(written[1])
    profiles = [PowerProfile.from_wire(obj).metadata.name for obj in profile_manifests(design, KNOWN)]
    assert profiles == ["h100-sxm", "h200-sxm"]
    assert budget.spec.limit_watts - budget.spec.reserve_watts == math.ceil(design.charge_w)
    assert said(cluster) == {"prefill": (3, 700), "decode": (2, 280)}
    assert written[1]["spec"]["slo"] == {"ttftP99Milliseconds": 1_500, "tbtP99Milliseconds": 60}


def said(cluster: InferenceCluster) -> dict[str, tuple[int, int | None]]:
    """Pool: replicas and ceiling."""
    pools = {role.value: getattr(cluster.spec, role.value) for role in Role}
    return {role: (pool.replicas, pool.power_ceiling_watts) for role, pool in pools.items() if pool is not None}


def test_an_unsplit_design_is_a_mixed_pool_behind_vllm_router() -> None:
    _, written = objects(PlanDesign(PREFILL, 3))
    cluster = InferenceCluster.from_wire(written)
    assert said(cluster) == {"mixed": (3, 700)} and cluster.spec.router.type is RouterType.VLLM
    assert written["spec"]["mixed"]["nodeSelector"] == {"splitwatt.io/pool": "chat-mixed"}


@given(
    prefill=st.integers(1, 1000), decode=st.just(0) | st.integers(1, 1000), mixed=st.integers(0, 4),
    gpus=st.tuples(*[st.sampled_from(["H100", "H200"])] * 3),
)  # fmt: skip
def test_every_design_is_written_as_it_is_and_can_be_rendered(
    prefill: int, decode: int, mixed: int, gpus: tuple[str, str, str]
) -> None:
    third = option(gpus[2], 500) if decode and mixed else None
    design = PlanDesign(
        option(gpus[0], 600), prefill, option(gpus[1], 300) if decode else None, decode, third, mixed if third else 0
    )  # fmt: skip
    budget, cluster = objects(design)
    spec = cluster_from_wire(cluster)
    read = {part: (spec.role(role).replicas, spec.role(role).power_ceiling_w) for part, role in PART_ROLES[spec.roles].items()}
    assert read == {part: (servers, bought.cap_w) for part, bought, servers in design.parts}
    assert (spec.router.type is RouterType.NONE) is (third is not None), "vllm-router knows no third pool"
    said = budget["spec"]
    assert said["mode"] == "Observe" and said["limitWatts"] - said["reserveWatts"] == math.ceil(design.charge_w)
    # 8 GPUs back from the lowest cap of the plan to their default, with losses: no less than from any of them.
    assert said["reserveWatts"] >= max(
        1.04 * 8 * (KNOWN[bought.gpu].profile.default_cap_w - bought.cap_w) for _, bought, _ in design.parts
    )
    names = {profile["metadata"]["name"] for profile in profile_manifests(design, KNOWN)}
    assert len(names) == len({bought.gpu for _, bought, _ in design.parts})
    rendered = {m["metadata"]["labels"].get(LABEL_ROLE) for m in render(spec, RenderContext())}
    assert rendered - {None} == {role.value for role in spec.roles}


PART_ROLES: dict[tuple[Role, ...], dict[str, Role]] = {
    (Role.MIXED,): {"unsplit": Role.MIXED},
    PAIR: {role.value: role for role in PAIR},
    tuple(Role): {role.value: role for role in Role},
}
