"""A user's own servers: what a file says is what is simulated, and a wrong file is one sentence with its field."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from splitwatt_core.gpus import profiles
from splitwatt_core.gpus.profiles import Profile, Timing
from splitwatt_core.names import ANNOTATION_MEMORY, ANNOTATION_TIMING
from splitwatt_core.protocol.contract import Phase
from splitwatt_sim.plan.options import option_for
from splitwatt_sim.servers.catalogue import GPUS_2026, MODEL_2026, Catalogue
from splitwatt_sim.servers.profile_files import ProfileFile, profile_object, read_profile_file
from splitwatt_sim.servers.table_files import DecodeRow, PrefillRow, TimingTable, write_neutral_csv
from splitwatt_sim.servers.tables import GIB, TableError

H100 = next(profile for profile in profiles.builtin() if profile.name == "H100-SXM")
THIRD = Timing(MODEL_2026, 8, ((1, 1 / 3), (8192, 400.1)), ((1, 9.1), (256, 20.2)), 0.1 + 0.2)


def own(name: str = "l40s", product: str = "NVIDIA L40S", **changes: Any) -> Profile:
    return replace(H100, name=name, product_names=(product,), **changes)


def wire(profile: Profile, **more: Any) -> dict[str, Any]:
    return profile_object(profile, **more)


def table(gpu: str = "NVIDIA L40S", *, ms_per_token: float = 1 / 16, model: str = MODEL_2026, parallel: int = 8) -> TimingTable:
    return TimingTable(
        gpu, model, parallel,
        tuple(PrefillRow(n, n * ms_per_token) for n in (1, 512, 8192)),
        tuple(DecodeRow(b, c, 12 + b / 32 + b * c / 1e6) for b in (1, 32, 256) for c in (1024, 4096)),
    )  # fmt: skip


def saved(folder: Path, *objects: dict[str, Any], name: str = "own.yaml") -> ProfileFile:
    path = folder / name
    path.write_text(yaml.safe_dump_all(objects), encoding="utf-8")
    return read_profile_file(path)


def saved_table(folder: Path, *tables: TimingTable, name: str = "times.csv") -> ProfileFile:
    file = io.StringIO()
    write_neutral_csv(tables, file)
    path = folder / name
    path.write_text(file.getvalue(), encoding="utf-8")
    return read_profile_file(path)


# --------------------------------------------------------------------------------------------------------------- files


def test_a_profile_comes_back_from_its_file_with_times_and_memory_to_the_last_bit(tmp_path: Path) -> None:
    profile = own(timing=THIRD, sources={})
    (given,) = saved(tmp_path, wire(profile, memory_bytes=47.5 * GIB)).profiles
    assert (given.profile, given.memory_bytes, given.shipped) == (profile, 47.5 * GIB, False)


def test_what_was_not_said_stays_unknown(tmp_path: Path) -> None:
    (given,) = saved(tmp_path, wire(own(timing=None))).profiles
    assert (given.profile.timing, given.memory_bytes) == (None, None)


def test_the_list_that_kubectl_gives_is_read_and_its_own_fields_do_no_harm(tmp_path: Path) -> None:
    one = wire(own(timing=None))
    one["metadata"] |= {"uid": "7d0c", "resourceVersion": "12", "generation": 1, "creationTimestamp": "2026-01-01T00:00:00Z"}
    shipped = wire(replace(H100, timing=None))
    shipped["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "splitwatt"}
    listed = {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": [shipped, one]}
    read = saved(tmp_path, listed).profiles
    assert [(given.profile.name, given.shipped) for given in read] == [("h100-sxm", True), ("l40s", False)]


def _changed(**changes: Any) -> Callable[[], dict[str, Any]]:
    def make() -> dict[str, Any]:
        obj = wire(own(timing=None))
        for path, value in changes.items():
            at, *rest = path.split("__")
            inside = obj[at]
            for part in rest[:-1]:
                inside = inside[int(part) if part.isdigit() else part]
            inside[rest[-1]] = value
        return obj

    return make


TIMING = "metadata.annotations.splitwatt.io/timing"


@pytest.mark.parametrize(
    ("obj", "says"),
    [
        (_changed(spec__idleWatts="70"), "own.yaml: PowerProfile l40s: spec.idleWatts: Input should be a valid integer"),
        (_changed(spec__idleWats=70), "own.yaml: PowerProfile l40s: spec.idleWats: Extra inputs are not permitted"),
        (_changed(spec__phases__0__cliffWatts=900), "own.yaml: PowerProfile l40s: profile of phase Prefill: cliff of 900 W"),
        (_changed(spec__phases__1__latencyCurve=[]), "spec.phases.1.latencyCurve: List should have at least 1 item"),
        (_changed(metadata__annotations={ANNOTATION_TIMING: "{"}), f"l40s: {TIMING}: Invalid JSON"),
        (_changed(metadata__annotations={ANNOTATION_TIMING: "{}"}), f"l40s: {TIMING}: model: Field required"),
        (
            _changed(metadata__annotations={ANNOTATION_TIMING: '{"model":"m","tensorParallel":0}'}),
            f"l40s: {TIMING}: tensorParallel: Input should be greater than or equal to 1",
        ),
        (_changed(metadata__annotations={ANNOTATION_MEMORY: "48 GB"}), "the memory of one GPU in GiB, above 0, not '48 GB'"),
        (_changed(metadata__name=None), "own.yaml: PowerProfile without a name: metadata.name: Input should be a valid string"),
        (lambda: {"kind": "PowerBudget"}, "own.yaml: document 1: kind: must be PowerProfile, not PowerBudget"),
        (lambda: {"kind": "List", "items": 3}, "own.yaml: document 1: items: must be a list"),
        (lambda: {"kind": "List", "items": []}, "own.yaml holds 0 PowerProfiles; give 1 to 256"),
    ],
)  # fmt: skip
def test_a_wrong_profile_names_file_object_and_field(tmp_path: Path, obj: Callable[[], dict[str, Any]], says: str) -> None:
    with pytest.raises(TableError) as refused:
        saved(tmp_path, obj())
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("own.yaml", "a: [", "own.yaml is not YAML"),
        ("own.yaml", "a: " + "[" * 2000 + "]" * 2000, "own.yaml is not YAML"),
        ("own.yaml", "a: 2026-13-45", "own.yaml is not YAML"),
        ("own.yaml", "- 1", "document 1 is no object; give a PowerProfile"),
        ("own.yaml", "", "holds 0 PowerProfiles"),
        ("times.CSV", "gpu,model\n", "times.CSV lacks the columns tensor_parallel, phase"),
    ],
)
def test_a_file_that_is_neither_says_what_is_wanted(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match=says):
        read_profile_file(tmp_path / name)
    with pytest.raises(TableError, match=r"cannot read the profile .*none\.yaml"):
        read_profile_file(tmp_path / "none.yaml")


# ----------------------------------------------------------------------------------------------------------- catalogue


def test_without_files_there_are_the_built_in_gpus_as_they_are() -> None:
    catalogue = Catalogue()
    assert catalogue.names() == list(GPUS_2026) and catalogue.given() == []
    for name, full in GPUS_2026.items():
        gpu, profile = catalogue.gpu(name), next(p for p in profiles.builtin() if p.name == full)
        assert gpu.profile == profile and gpu.written == replace(profile, timing=None) and gpu.memory_bytes is None
    assert catalogue.gpu("nvidia h100 80gb hbm3").name == catalogue.gpu("h100-sxm").name == "H100"


def test_ones_own_profile_stands_before_the_shipped_one_and_keeps_the_built_in_times(tmp_path: Path) -> None:
    shipped = wire(replace(H100, timing=None, idle_w=71))
    shipped["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "splitwatt"}
    mine = wire(own("my-h100", H100.product_names[0], idle_w=72, timing=None))
    catalogue = Catalogue(files=(saved(tmp_path, shipped, mine),))
    gpu = catalogue.gpu("H100")
    assert (gpu.profile.name, gpu.profile.idle_w, gpu.name) == ("my-h100", 72, "H100")
    assert gpu.profile.timing == H100.timing and gpu.written.timing is None and gpu.times_from == "built in"
    assert catalogue.given() == ["H100"] and catalogue.names() == list(GPUS_2026)


def test_a_row_for_the_served_model_goes_before_one_for_any(tmp_path: Path) -> None:
    prefill, decode = H100.phases
    phases = (prefill, decode, replace(decode, natural_w=402, model=MODEL_2026))
    mine = own("my-h100", H100.product_names[0], timing=None, phases=phases)
    catalogue = Catalogue(files=(saved(tmp_path, wire(mine)),))
    found = catalogue.gpu("H100").profile.phase(Phase.DECODE)
    assert found is not None and found.natural_w == 402
    assert catalogue.gpu("H100").written.phases == mine.phases, "what is written again is what was given"


def test_a_later_profile_that_names_the_served_model_goes_before_an_earlier_one_for_any(tmp_path: Path) -> None:
    first = own("a", H100.product_names[0], timing=None)
    named = tuple(replace(row, natural_w=row.natural_w + 1, model=MODEL_2026) for row in H100.phases)
    second = own("b", H100.product_names[0], timing=None, phases=named, idle_w=99)
    gpu = Catalogue(files=(saved(tmp_path, wire(first), wire(second)),)).gpu("H100")
    assert [row.natural_w for row in gpu.profile.phases] == [row.natural_w + 1 for row in H100.phases]
    assert gpu.profile.idle_w == H100.idle_w, "the rest is the first one's, as in the operator"
    alone = Catalogue(files=(saved(tmp_path, wire(gpu.written), name="alone.yaml"),)).gpu("H100")
    assert alone.profile == gpu.profile and alone.written == gpu.written, "what is written again is simulated alike"
    looked_up = [profiles.lookup([first, second], H100.product_names[0], row.phase, model=MODEL_2026) for row in H100.phases]
    assert [replace(row, model="") for row in looked_up if row] == list(gpu.profile.phases)


def test_a_phase_that_ones_own_profile_leaves_out_is_the_built_in_one(tmp_path: Path) -> None:
    mine = own("my-h100", H100.product_names[0], timing=None, phases=(replace(H100.phases[1], natural_w=444),))
    gpu = Catalogue(files=(saved(tmp_path, wire(mine)),)).gpu("H100")
    assert [row.natural_w for row in gpu.profile.phases] == [H100.phases[0].natural_w, 444]


def test_a_table_goes_before_the_times_of_a_profile_and_both_are_written_again(tmp_path: Path) -> None:
    profile = saved(tmp_path, wire(own(timing=THIRD), memory_bytes=48 * GIB))
    assert Catalogue(files=(profile,)).gpu("l40s").profile.timing == THIRD
    both = Catalogue(files=(profile, saved_table(tmp_path, table())))
    both.check()
    gpu = both.gpu("NVIDIA L40S")
    assert gpu.profile.timing is not None and dict(gpu.profile.timing.prefill_points)[512] == 32.0
    assert gpu.times_from.endswith("times.csv, fitted within 0.0%")
    again = Catalogue(files=(saved(tmp_path, wire(gpu.written, memory_bytes=gpu.memory_bytes), name="again.yaml"),))
    assert replace(again.gpu("l40s"), source="", times_from="") == replace(gpu, source="", times_from="")


def test_what_a_table_says_of_a_built_in_gpu_is_what_is_simulated(tmp_path: Path) -> None:
    slow = Catalogue(files=(saved_table(tmp_path, table("H100-SXM", ms_per_token=1.0)),))
    slow.check()
    assert slow.given() == ["H100"]
    kind = option_for(MODEL_2026, "H100", None, longest_prompt=8192, catalogue=slow).kind
    assert kind.prefill_s[512] == pytest.approx(0.512) and kind.prefill_s[8192] == pytest.approx(8.192)


def test_more_memory_makes_more_room_for_kv_cache(tmp_path: Path) -> None:
    def room(memory_gib: int) -> int:
        files = (saved(tmp_path, wire(own(timing=THIRD), memory_bytes=memory_gib * GIB)),)
        return option_for(MODEL_2026, "l40s", None, longest_prompt=100, catalogue=Catalogue(files=files)).kind.kv_room

    assert room(96) - room(48) == pytest.approx(8 * 48 * GIB * 0.9 / (80 * 2 * 8 * 128 * 2), abs=1)
    with pytest.raises(TableError, match=r"8 x l40s with 16 GiB each do not hold the 141 GB of weights of meta-llama"):
        room(16)


@pytest.mark.parametrize(
    ("profile", "memory", "says"),
    [
        (own(timing=None), 48 * GIB, r"own\.yaml: PowerProfile l40s: there are no step times of meta-llama/.* column gpu says"),
        (own(timing=replace(THIRD, tensor_parallel=4)), 48 * GIB, "there are no step times of .* on 8 of them"),
        (own(timing=THIRD), None, r"own\.yaml: PowerProfile l40s: the memory of this GPU is not known: add the annotation"),
        (own(timing=THIRD, phases=H100.phases[:1]), 48 * GIB, "PowerProfile l40s: phases: Decode is missing; add it"),
    ],
)
def test_what_a_server_lacks_is_named(tmp_path: Path, profile: Profile, memory: float | None, says: str) -> None:
    catalogue = Catalogue(files=(saved(tmp_path, wire(profile, memory_bytes=memory)),))
    with pytest.raises(TableError, match=says):
        catalogue.gpu("l40s")
    assert catalogue.gpu("H100").profile.timing == H100.timing, "one that is not asked for does no harm"


def test_an_unknown_gpu_is_answered_with_those_there_are(tmp_path: Path) -> None:
    catalogue = Catalogue(files=(saved(tmp_path, wire(own(timing=None))),))
    with pytest.raises(TableError, match=r"on K80; choose from A100, H100, H200, B200, l40s$"):
        catalogue.gpu("K80")


@pytest.mark.parametrize(
    ("given", "model", "says"),
    [
        (table(), MODEL_2026, "gpu NVIDIA L40S has no power profile: give its PowerProfile by another --profile"),
        (table("H100-SXM", parallel=4), MODEL_2026, "has no rows of .* with tensor_parallel 8; it has meta-llama/.* on 4"),
        (table("H100-SXM"), "bloom-176b", "holds times, and bloom-176b has tables of its own: leave it out"),
    ],
)
def test_a_table_that_fits_nothing_is_refused(tmp_path: Path, given: TimingTable, model: str, says: str) -> None:
    with pytest.raises(TableError, match=says):
        Catalogue(model, (saved_table(tmp_path, given),)).check()


def test_a_bad_fit_names_its_file_and_may_be_allowed(tmp_path: Path) -> None:
    good = table("H100-SXM")
    rows = (row._replace(time_ms=row.time_ms * (1.2 if row.context == 4096 else 1)) for row in good.decode)
    bad = replace(good, decode=tuple(rows))
    file = saved_table(tmp_path, bad)
    with pytest.raises(TableError, match=r"times\.csv: table of .* the fit misses the decode of batch"):
        Catalogue(files=(file,)).gpu("H100")
    assert Catalogue(files=(file,), fit_error=0.3).gpu("H100").profile.timing is not None


def test_the_models_of_2023_take_ones_own_watts_with_their_own_times(tmp_path: Path) -> None:
    mine = own("my-h100", H100.product_names[0], timing=None, idle_w=99)
    catalogue = Catalogue("bloom-176b", (saved(tmp_path, wire(mine), wire(own())),))
    assert catalogue.names() == ["A100", "H100"]
    asked, plain = (option_for("bloom-176b", "H100", 350, longest_prompt=100, catalogue=c).kind for c in (catalogue, None))
    assert asked.idle_w - plain.idle_w == 8 * (99 - H100.idle_w)
    assert asked.decode_s.tolist() == plain.decode_s.tolist()
