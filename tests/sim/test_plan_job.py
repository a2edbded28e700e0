"""A sweep as a Job: what the pods are told is what was asked, and what does not fit is refused."""

from __future__ import annotations

import argparse
import base64
import gzip
import os
import random
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from splitwatt_cli.main import main
from splitwatt_core.gpus import profiles
from splitwatt_sim.plan.arguments import add_arguments, options_of, said_again
from splitwatt_sim.plan.command_options import PlanOptions
from splitwatt_sim.plan.job import CONDITIONS, INDEX, JobError, Sweep, inputs, manifests
from splitwatt_sim.plan.resolve import search_of
from splitwatt_sim.plan.shards import fingerprint
from splitwatt_sim.servers.profile_files import profile_object
from support.some import some

ASKED = ["--servers", "3", "--seconds", "20", "--step", "20"]
H100 = next(profile for profile in profiles.builtin() if profile.name == "H100-SXM")


def parsed(arguments: list[str]) -> PlanOptions:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return options_of(parser.parse_args(arguments))


def trace(folder: Path, rows: int, name: str = "conv.csv") -> Path:
    noise = random.Random(rows)
    lines = [f"{i},{i * 0.01:.2f},{noise.randint(1, 4000)},{noise.randint(1, 400)}" for i in range(rows)]
    path = folder / name
    path.write_text("\n".join(["request_id,arrival_timestamp,prompt_size,token_size", *lines, ""]), encoding="utf-8")
    return path


def profile(folder: Path) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump(profile_object(replace(H100, timing=None))), encoding="utf-8")
    return path


def rendered(folder: Path, *arguments: str) -> dict[str, dict[str, Any]]:
    """The objects by kind."""
    assert main(["plan", *ASKED, *arguments, "--on-kubernetes", "--out", str(folder / "out")]) == 0
    return {obj["kind"]: obj for obj in yaml.safe_load_all((folder / "out" / "sweep.yaml").read_text())}


def container(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    (found,) = objects["Job"]["spec"]["template"]["spec"]["containers"]
    return dict(found)


def test_a_small_sweep_needs_a_job_a_claim_and_a_pod_to_copy_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objects = rendered(tmp_path, "--name", "chat", "--namespace", "lab", "--shards", "4", "--image", "example.org/sim:1")
    assert list(objects) == ["PersistentVolumeClaim", "Job", "Pod"]
    job, name = objects["Job"]["spec"], objects["Job"]["metadata"]["name"]
    assert (job["completionMode"], job["completions"], job["parallelism"]) == ("Indexed", 4, 4)
    run = name.removeprefix("chat-sweep-")
    assert container(objects)["args"] == [
        "plan", "--servers", "3", "--seconds", "20", "--step", "20", "--jobs", "1",
        "--shard", f"{INDEX}/4", "--shards-dir", f"/shards/{run}",
    ]  # fmt: skip
    assert container(objects)["image"] == objects["Pod"]["spec"]["containers"][0]["image"] == "example.org/sim:1"
    assert {obj["metadata"]["namespace"] for obj in objects.values()} == {"lab"}
    apply, merge = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kubectl")]
    assert shlex.split(apply) == [
        "kubectl", "apply", "--server-side", "-f", f"{tmp_path}/out/sweep.yaml", "&&",
        "until", "kubectl", "--namespace", "lab", "get", f"job/{name}", "-o", CONDITIONS,
        "|", "grep", "-wE", "Complete|Failed;", "do", "sleep", "10;", "done",
    ]  # fmt: skip
    home = f"{tmp_path}/out/shards-{run}"
    assert shlex.split(merge) == [
        "kubectl", "--namespace", "lab", "cp", f"{name}-results:/shards/{run}", home, "&&",
        "splitwatt", "plan", *ASKED, "--name", "chat", "--namespace", "lab", "--out", f"{tmp_path}/out", "--merge", home,
    ]  # fmt: skip


@pytest.mark.parametrize("ends", ["SuccessCriteriaMet Complete", "FailureTarget Failed"])
def test_the_wait_ends_when_the_job_does_either_way(ends: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rendered(tmp_path, "--namespace", "lab")
    said = capsys.readouterr().out
    command = next(line for line in said.splitlines() if line.startswith("kubectl"))
    (tmp_path / "answers").write_text(f"\nFailureTarget\n{ends}\n", encoding="utf-8")
    tools = tmp_path / "tools"
    tools.mkdir()
    # Each question takes the next answer; to apply takes none.
    stub = f'#!/bin/sh\n[ "$1" = apply ] && exit\nsed -n 1p {tmp_path}/answers\nsed -i 1d {tmp_path}/answers\n'
    for name, text in (("kubectl", stub), ("sleep", "#!/bin/sh\n")):
        (tools / name).write_text(text, encoding="utf-8")
        (tools / name).chmod(0o755)
    path = {"PATH": f"{tools}:{os.environ['PATH']}"}
    ran = subprocess.run(["sh", "-c", command], env=path, capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout.split() == ends.split(), "an earlier condition is no end"
    assert "Should the first end with Failed, this says why: kubectl --namespace lab describe job/plan-sweep-" in said


def test_pods_have_no_rights_and_bounded_resources(tmp_path: Path) -> None:
    objects = rendered(tmp_path)
    job = objects["Job"]["spec"]
    assert job["backoffLimitPerIndex"] > 0 and job["ttlSecondsAfterFinished"] > 0
    for pod in (job["template"]["spec"], objects["Pod"]["spec"]):
        assert pod["restartPolicy"] == "Never" and pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] != 0
        for one in some(pod["containers"]):
            assert one["securityContext"]["readOnlyRootFilesystem"] is True
            assert set(one["resources"]) == {"requests", "limits"}
            assert set(one["resources"]["limits"]) == set(one["resources"]["requests"]) == {"cpu", "memory"}
    scratch = next(m["mountPath"] for m in container(objects)["volumeMounts"] if m["name"] == "scratch")
    assert {e["value"] for e in container(objects)["env"]} == {scratch}, "what is written goes where it can be"


def test_without_a_count_there_is_a_pod_for_each_pair_up_to_16(tmp_path: Path) -> None:
    assert rendered(tmp_path)["Job"]["spec"]["completions"] == 12
    assert rendered(tmp_path, "--gpus", "H100,H200")["Job"]["spec"]["completions"] == 16


def test_trace_and_profiles_go_along_and_the_large_one_is_compressed(tmp_path: Path) -> None:
    small, large, own = trace(tmp_path, 100, "small.csv"), trace(tmp_path, 20_000), profile(tmp_path)
    objects = rendered(tmp_path, "--requests", str(small), "--profile", str(own))
    config = objects["ConfigMap"]
    assert config["data"] == {"requests.csv": small.read_text(), "profile-0.yaml": own.read_text()}
    assert container(objects)["args"][1:5] == ["--requests", "/inputs/requests.csv", "--profile", "/inputs/profile-0.yaml"]
    objects = rendered(tmp_path, "--requests", str(large))
    (packed,) = objects["ConfigMap"]["binaryData"].values()
    assert gzip.decompress(base64.b64decode(packed)) == large.read_bytes() and "data" not in objects["ConfigMap"]
    assert container(objects)["args"][1:3] == ["--requests", "/inputs/requests.csv.gz"]
    assert objects["ConfigMap"]["immutable"] is True
    assert base64.b64decode(packed)[4:8] == bytes(4), "no time of day in it: equal questions give equal objects"


def test_equal_questions_give_equal_manifests_and_others_other_names(tmp_path: Path) -> None:
    large = trace(tmp_path, 20_000)
    first, again = (rendered(tmp_path, "--requests", str(large)) for _ in range(2))
    other = rendered(tmp_path, "--requests", str(large), "--seed", "2")
    assert first == again
    names = [{kind: obj["metadata"]["name"] for kind, obj in objects.items()} for objects in (first, other)]
    assert all(names[0][kind] != names[1][kind] for kind in some(names[0])), "delete -f of one never takes what is another's"


def test_claims_that_exist_are_used_and_none_is_made(tmp_path: Path) -> None:
    large = trace(tmp_path, 300_000)
    objects = rendered(tmp_path, "--requests", str(large), "--trace-claim", "traces", "--claim", "results")
    assert list(objects) == ["Job", "Pod"]
    volumes = objects["Job"]["spec"]["template"]["spec"]["volumes"]
    claims = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in volumes if "persistentVolumeClaim" in v}
    assert claims == {"shards": "results", "trace": "traces"}
    assert container(objects)["args"][1:3] == ["--requests", "/trace/conv.csv"]


def test_a_trace_that_fits_no_config_map_says_where_to_put_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large = trace(tmp_path, 300_000)
    assert main(["plan", *ASKED, "--requests", str(large), "--on-kubernetes", "--out", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{large} is" in said
    assert "bytes even when compressed, and a ConfigMap holds 1048576: put it at the root of a PersistentVolumeClaim" in said
    assert "and give --trace-claim PVC" in said and not (tmp_path / "sweep.yaml").exists()


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_the_bound_of_a_config_map_is_kept_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spare: int, fits: bool
) -> None:
    own = profile(tmp_path)
    monkeypatch.setattr("splitwatt_sim.plan.job.MAX_CONFIG_BYTES", 2 * own.stat().st_size + spare)
    if fits:
        assert len(inputs(requests=None, profiles=[own, own], on_claim=False).data) == 2
    else:
        with pytest.raises(JobError, match=r"the files of --profile are \d+ bytes, .* leave out the GPUs that are not asked for"):
            inputs(requests=None, profiles=[own, own], on_claim=False)


def test_a_file_that_is_no_text_goes_along_as_bytes(tmp_path: Path) -> None:
    packed = tmp_path / "conv.csv.gz"
    packed.write_bytes(gzip.compress(trace(tmp_path, 50).read_bytes()))
    found = inputs(requests=packed, profiles=[], on_claim=False)
    assert found.requests == "/inputs/requests.csv.gz" and found.binary == {"requests.csv.gz": packed.read_bytes()}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--shards", "13"], "there are 12 pairs of servers to search: give --shards 12 or less"),
        (["--trace-claim", "traces"], "--trace-claim holds the file of --requests: give that too"),
    ],
)
def test_what_makes_no_job_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    assert main(["plan", *ASKED, *arguments, "--on-kubernetes", "--out", str(tmp_path)]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_the_longest_name_makes_a_host_name_for_every_index() -> None:
    sweep = Sweep(name="a" * 40, namespace="default", run="0" * 10, shards=9_999, image="i")
    assert len(f"{sweep.job}-{sweep.shards - 1}") <= 63 and len(sweep.reader) <= 253
    assert {len(label) <= 63 for obj in manifests(sweep, inputs(requests=None, profiles=[], on_claim=False), ["plan"])
            for label in obj["metadata"]["labels"].values()} == {True}  # fmt: skip


FLOATS = st.floats(1.0, 5e4)
OPTIONS = st.fixed_dictionaries(
    {"--watts": FLOATS, "--seconds": st.floats(6_000.0, 7_000.0)},
    optional={
        "--rate": FLOATS, "--usd-per-hour": FLOATS, "--servers": st.integers(1, 500), "--ttft-p99-ms": FLOATS,
        "--tbt-p99-ms": FLOATS, "--margin": st.floats(0, 99), "--step": FLOATS, "--seed": st.integers(0, 99),
        "--gpus": st.sampled_from(["H100", "h200,H100", "nvidia h100 80gb hbm3"]), "--fit-error": st.floats(0, 99),
        "--price": st.sampled_from(["H100=1e-3", "H200=17.25", "h100=40"]),
    },
)  # fmt: skip


@settings(max_examples=40)
@given(options=OPTIONS, shards=st.integers(1, 9))
def test_a_command_line_that_is_said_again_asks_the_same(options: dict[str, object], shards: int) -> None:
    said = [part for option, value in options.items() for part in (option, str(value))]
    asked = parsed(
        [
            *said,
            "--price",
            "H200=60",
            "--on-kubernetes",
            "--shards",
            str(shards),
            "--check",
            "9",
            "--name",
            "x",
            "--servers-per-rack",
            "3",
        ]
    )
    again = said_again(asked, requests=None, profiles=[])
    assert again[0] == "plan" and "--check" not in again and "--on-kubernetes" not in again
    assert fingerprint(search_of(parsed(again[1:]).search)) == fingerprint(search_of(asked.search))
    whole = parsed(said_again(asked, requests=None, profiles=[], with_output=True)[1:])
    assert whole.search == asked.search and whole.output == asked.output and whole.output.checked == 9
    assert whole.servers_per_rack == asked.servers_per_rack == 3
