"""Schemas and generated files: structural, bounded, described, current."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Union

import pytest
import yaml
from pydantic import Field
from splitwatt_api import generate
from splitwatt_api.base import ObjectMeta, Wire
from splitwatt_api.kinds import KINDS
from splitwatt_api.schema import SchemaError, structural
from splitwatt_core.protocol.contract import MAX_GPUS_PER_NODE, Health, Mode, Phase
from support.some import some


def nodes(schema: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for keyword in ("items", "additionalProperties"):
        if isinstance(schema.get(keyword), Mapping):
            yield from nodes(schema[keyword], f"{path}[]")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_node_is_structural_bounded_and_described(kind: Any) -> None:
    schema = structural(kind.model)
    found = list(nodes(schema))
    assert len(found) > 10
    for path, node in found:
        if path in (".apiVersion", ".kind", ".metadata"):
            continue
        assert not node.keys() & {"$ref", "anyOf", "oneOf", "allOf", "title", "const"}, path
        assert "type" in node or node.get("x-kubernetes-int-or-string"), path
        if not path.endswith("[]") and path:
            assert node["description"], path
        if node.get("type") == "array":
            assert node["maxItems"] <= 1024, path
        if node.get("type") == "integer":
            assert {"minimum", "maximum", "format"} <= node.keys(), path
        if node.get("type") == "number":
            pytest.fail(f"{path}: the API has no floats")


def test_watts_and_times_carry_their_unit() -> None:
    units = (
        "Watts",
        "Seconds",
        "Milliseconds",
        "Megahertz",
        "Percent",
        "Gibibytes",
        "Tokens",
        "Permille",
        "WattsPerNode",
        "WattsTotal",
    )
    counts = {
        "replicas", "wantedReplicas", "gpusPerReplica", "nodesPerReplica", "readyReplicas", "admittedReplicas", "port",
        "sideChannelPort", "metricsPort", "nodes", "gpus", "observedGeneration", "term", "observedTerm", "grant", "ackedGrant",
        "expectedSeries", "amount", "gpuCount", "healthyGpuCount", "watts", "numerator", "denominator", "maxNodes", "gpusPerNode",
        "priority",
    }  # fmt: skip
    integers = [
        f"{kind.name}{path}" for kind in KINDS for path, node in nodes(structural(kind.model)) if node.get("type") == "integer"
    ]
    for path in some(integers):
        name = path.rpartition(".")[2]
        assert name.endswith(units) or name in counts, path


def test_the_contracts_words_are_the_schemas_words() -> None:
    np = next(kind for kind in KINDS if kind.name == "NodePower")
    found = dict(nodes(structural(np.model)))
    assert found[".spec.mode"]["enum"] == [mode.value for mode in Mode if mode is not Mode.RELEASE]
    assert found[".spec.gpus[].phase"]["enum"] == [phase.value for phase in Phase]
    assert found[".status.gpus[].health"]["enum"] == [health.value for health in Health]
    assert found[".spec.gpus"]["maxItems"] == found[".status.gpus"]["maxItems"] == MAX_GPUS_PER_NODE
    for path in (".spec.gpus", ".status.gpus"):
        assert found[path]["x-kubernetes-list-type"] == "atomic"


class _Base(Wire):
    api_version: str = "v"
    kind: str = "k"
    metadata: ObjectMeta


def test_a_field_without_description_is_refused() -> None:
    class Silent(_Base):
        watts: int = Field(ge=0, le=1)

    with pytest.raises(SchemaError, match=r"Silent\.watts: needs a description"):
        structural(Silent)


@pytest.mark.parametrize(
    ("annotation", "complaint"),
    [
        (str, "maximum length"),
        (int, "maximum"),
        (list[bool], "maximum number of items"),
        (dict[str, bool], "maximum number of entries"),
        (Union[int, str], "union"),  # noqa: UP007  # read at run time
        (object, "type"),
    ],
)
def test_what_has_no_bound_or_no_form_is_refused(annotation: Any, complaint: str) -> None:
    model = type("Loose", (_Base,), {"__annotations__": {"x": annotation}, "x": Field(description="A thing.")})
    with pytest.raises(SchemaError, match=complaint):
        structural(model)


def test_an_unknown_keyword_is_refused_not_dropped() -> None:
    class Odd(_Base):
        x: int = Field(ge=0, le=9, multiple_of=3, description="A thing.")

    with pytest.raises(SchemaError, match="multipleOf"):
        structural(Odd)


def test_committed_files_are_current() -> None:
    assert generate.stale(generate.ROOT) == [], "run `make generate`"


def test_generating_twice_gives_equal_bytes() -> None:
    assert dict(generate.outputs()) == dict(generate.outputs())


def test_a_hand_edit_and_a_leftover_are_found_and_put_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.write(tmp_path)
    edited = tmp_path / "crds" / "powerbudgets.splitwatt.io.yaml"
    edited.write_text(edited.read_text().replace("26000", "1") + "\n")
    leftover = tmp_path / "crds" / "trainingruns.splitwatt.io.yaml"
    leftover.write_text("kind: CustomResourceDefinition\n")
    assert generate.main(["--root", str(tmp_path), "--check"]) == 1
    assert "stale crds/powerbudgets.splitwatt.io.yaml" in capsys.readouterr().out
    assert generate.main(["--root", str(tmp_path)]) == 0
    assert generate.stale(tmp_path) == []
    assert not leftover.exists()


def test_the_charts_crds_say_the_same_and_are_kept() -> None:
    for kind in KINDS:
        source = yaml.safe_load((generate.ROOT / "crds" / f"{kind.crd_name}.yaml").read_text())
        text = (generate.ROOT / generate.CHART_CRD_FOLDER / f"{kind.crd_name}.yaml").read_text()
        lines = [line for line in text.splitlines() if not line.startswith("{{-")]
        copy = yaml.safe_load("\n".join(lines))
        assert copy["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert copy == source
