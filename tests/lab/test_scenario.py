"""What the demo applies is what the examples say, but for the engines: there are no GPUs in the lab."""

from __future__ import annotations

import pytest
import yaml
from splitwatt_api.convert import cluster_from_wire
from splitwatt_core.clusters import Role
from splitwatt_lab.errors import LabError
from splitwatt_lab.scenario import clusters, example_paths
from splitwatt_lab.site import SiteSpec
from support.some import some


def test_the_demo_serves_the_examples_with_emulated_engines() -> None:
    documents = [doc for path in example_paths() for doc in yaml.safe_load_all(path.read_text(encoding="utf-8"))]
    examples = [doc for doc in documents if doc["kind"] == "InferenceCluster"]
    assert [doc["spec"]["engine"] for doc in examples] == [{"type": "VLLM"}] * 2, "examples are for real GPUs"
    applied = list(clusters(SiteSpec()))
    assert [doc["spec"].pop("engine") for doc in applied] == [{"type": "Emulated"}] * 2
    for doc in examples:
        del doc["spec"]["engine"]
    assert applied == examples


@pytest.mark.parametrize("gpus", [1, 4])
def test_replicas_fit_the_nodes_of_another_site(gpus: int) -> None:
    for doc in some(clusters(SiteSpec(gpus_per_node=gpus))):
        assert [doc["spec"][role]["gpusPerReplica"] for role in ("prefill", "decode")] == [gpus, gpus]


def test_a_third_pool_is_of_servers_that_the_service_has() -> None:
    (before, _), (chat, batch) = clusters(SiteSpec()), clusters(SiteSpec(mixed=1))
    was = before["spec"]["prefill"]
    assert chat["spec"]["mixed"] == {**was, "replicas": 1} and "mixed" not in batch["spec"]
    assert chat["spec"]["prefill"] == {**was, "replicas": was["replicas"] - 1}
    assert chat["spec"]["router"] == {"type": "None"}, "vllm-router knows no third pool"
    assert cluster_from_wire(chat).roles == tuple(Role)
    with pytest.raises(LabError, match=r"--mixed 2 leaves no prefill server: 1 of the chat service's 2 may be mixed; give fewer"):
        clusters(SiteSpec(mixed=2))
    assert clusters(SiteSpec(mixed=3, nodes_per_rack=8))[0]["spec"]["mixed"]["replicas"] == 3
