"""`plan --profile`: what a plan writes can be planned with again, and a wrong server is refused before anything runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from splitwatt_cli.main import main
from splitwatt_core.gpus import profiles
from splitwatt_core.names import ANNOTATION_MEMORY, ANNOTATION_TIMING
from splitwatt_sim.plan.options import MODEL_2026
from splitwatt_sim.servers.profile_files import profile_object
from splitwatt_sim.servers.table_files import DecodeRow, PrefillRow, TimingTable, write_neutral_csv
from splitwatt_sim.servers.tables import GIB

LIMITS = ["--servers", "3", "--seconds", "20", "--step", "20", "--check", "1", "--jobs", "1"]
FILES = ("plan.json", "plan.png", "plan.yaml", "profiles.yaml")
H100 = next(profile for profile in profiles.builtin() if profile.name == "H100-SXM")
OWN = replace(H100, name="x1", product_names=("Example X1",), timing=None)


def saved_profile(folder: Path, **more: float) -> str:
    path = folder / "x1.yaml"
    path.write_text(yaml.safe_dump(profile_object(OWN, **more)), encoding="utf-8")
    return str(path)


def saved_times(folder: Path) -> str:
    table = TimingTable(
        "Example X1", MODEL_2026, 8,
        tuple(PrefillRow(n, 3 + n / 30) for n in (1, 512, 2048, 8192)),
        tuple(DecodeRow(b, c, 11 + b / 30 + b * c / 3e6) for b in (1, 32, 256) for c in (1024, 4096)),
    )  # fmt: skip
    path = folder / "x1.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        write_neutral_csv([table], file)
    return str(path)


def planned(out: Path, *arguments: str) -> dict[str, float]:
    assert main(["plan", *LIMITS, *arguments, "--out", str(out)]) == 0
    return dict(json.loads((out / "plan.json").read_text()))


def same(one: Path, other: Path) -> list[bool]:
    return [(one / name).read_bytes() == (other / name).read_bytes() for name in FILES]


def test_a_plan_with_the_profiles_that_a_plan_wrote_is_the_same_plan(tmp_path: Path) -> None:
    planned(tmp_path / "first")
    planned(tmp_path / "again", "--profile", str(tmp_path / "first" / "profiles.yaml"))
    assert all(same(tmp_path / "first", tmp_path / "again"))


def test_so_is_one_with_a_server_of_ones_own_from_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own, times = saved_profile(tmp_path, memory_bytes=96 * GIB), saved_times(tmp_path)
    figures = planned(tmp_path / "first", "--profile", own, "--profile", times)
    said = " ".join(capsys.readouterr().out.split())
    assert f"x1: watts {own} (x1), times {times}, fitted within 0.0%" in said
    written = tmp_path / "first" / "profiles.yaml"
    (profile,) = yaml.safe_load_all(written.read_text())
    assert profile["metadata"]["name"] == "x1" and profile["metadata"]["annotations"][ANNOTATION_MEMORY] == "96"
    assert json.loads(profile["metadata"]["annotations"][ANNOTATION_TIMING])["tensorParallel"] == 8
    assert planned(tmp_path / "again", "--profile", str(written)) == figures
    assert all(same(tmp_path / "first", tmp_path / "again"))


def test_ones_own_server_and_a_built_in_one_are_chosen_from_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = ["--profile", saved_profile(tmp_path, memory_bytes=96 * GIB), "--profile", saved_times(tmp_path)]
    planned(tmp_path, *own, "--gpus", "example x1,h100", "--price", "Example X1=20")
    said = capsys.readouterr().out
    assert "x1, H100: best designs" in said and "×x1 at" in said and "×H100 at" in said


def test_a_slower_server_makes_a_smaller_plan(tmp_path: Path) -> None:
    slow = replace(OWN, name="h100-sxm", product_names=H100.product_names, timing=None)
    prefill = replace(slow.phases[0], latency_points=((200, 9000), (699, 9000), (700, 1000)))
    path = tmp_path / "slow.yaml"
    path.write_text(yaml.safe_dump(profile_object(replace(slow, phases=(prefill, slow.phases[1])))), encoding="utf-8")
    cheap = ["--watts", "20000", "--servers", "9"]
    fast, capped = planned(tmp_path / "a", *cheap), planned(tmp_path / "b", *cheap, "--profile", str(path))
    assert capped["rate_requests_per_s"] < fast["rate_requests_per_s"]
    assert capped["prefill_cap_w"] == 700, "where every lower cap costs nine times the time, none is chosen"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gpus", "K80"], "on K80; choose from A100, H100, H200, B200, x1"),
        (["--gpus", "x1"], "x1.yaml: PowerProfile x1: there are no step times of meta-llama/Llama-3.1-70B-Instruct on 8 of them"),
        ([], "whose column gpu says Example X1 by another --profile, or leave this GPU out"),
        (["--gpus", "H100", "--price", "K80=3"], "on K80; choose from A100"),
        (["--model", "bloom-176b", "--gpus", "x1"], "there is no table of bloom-176b on x1; choose from A100, H100"),
    ],
)
def test_a_server_that_cannot_be_simulated_is_named_before_the_trace_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    own = ["--profile", saved_profile(tmp_path)]
    assert main(["plan", *LIMITS, *own, *arguments, "--requests", "nowhere.csv"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_a_wrong_field_is_refused_by_the_command_line_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(saved_profile(tmp_path))
    path.write_text(path.read_text().replace("idleWatts:", "idleWats:"), encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--watts", "9000", "--profile", str(path)])
    assert ended.value.code == 2
    assert f"argument --profile: {path}: PowerProfile x1: spec.idleWatts: Field required" in capsys.readouterr().err


def test_the_example_is_a_server_to_plan_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    examples = Path(__file__).resolve().parents[2] / "examples" / "plan"
    assert planned(tmp_path, "--profile", str(examples / "x1.yaml"), "--profile", str(examples / "x1.csv"))["charge_w"] > 0
    said = capsys.readouterr().out
    assert "x1: watts" in said and "fitted within 0." in said
