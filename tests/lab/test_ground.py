"""The parts of the end-to-end harness that need no cluster."""

from __future__ import annotations

import json
import re
import subprocess
import tarfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ground import any as any_ground
from ground import archive, caps, fixtures, host, lws, node_config, nvidia, run, site, tools
from ground.cluster import NotHereError
from splitwatt_lab import toolchain
from splitwatt_lab.errors import LabError
from support.some import some
from support.waiting import eventually


def test_the_programs_of_a_node_are_a_set_of_their_own() -> None:
    """So that a new pin of kubelet does not build the control plane anew."""
    names = [tool.name for tool in tools.TOOLS]
    assert names == ["kubelet", "kube-proxy", "kubeadm", "kind"] and not set(names) & {tool.name for tool in toolchain.TOOLS}
    own = toolchain.tools_directory(tools.TOOLS, tools.PINS)
    assert own != toolchain.tools_directory() and own.parent == toolchain.tools_directory().parent


def test_a_node_runs_the_control_planes_kubernetes() -> None:
    versions = {tool.version for tool in (*toolchain.TOOLS, *tools.TOOLS) if tool.module == "k8s.io/kubernetes"}
    assert len(versions) == 1, "kubelet, kubeadm and API server of one release"


def test_a_program_that_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "find", lambda program: None if program == "runc" else Path("/usr/bin") / program)
    monkeypatch.setattr(host, "can_install", lambda: False)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    with pytest.raises(LabError, match=r"^runc must be installed first \(on Debian: runc\)"):
        host.ensure(host.NODE)


def test_only_root_makes_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(LabError, match="run this as root"):
        host.ensure(())


def test_pods_of_the_runtime_class_get_library_state_and_boot_id() -> None:
    default: dict[str, Any] = {
        "process": {"env": ["PATH=/bin"], "rlimits": [{"type": "RLIMIT_NOFILE"}]},
        "mounts": [{"destination": "/proc"}],
    }
    spec = json.loads(nvidia.base_spec(default, twin_folder="/twin"))
    assert "rlimits" not in spec["process"] and spec["process"]["env"][0] == "PATH=/bin"
    sources = [mount.get("source") for mount in spec["mounts"]]
    assert sources == [None, "/twin/libnvidia-ml.so.1", "/twin"]
    assert default["process"]["env"] == ["PATH=/bin"], "what was given is left as it is"


@pytest.mark.parametrize(
    ("status", "at", "ready"),
    [("True", "2026-01-01T00:00:10Z", True), ("True", "2026-01-01T00:00:01Z", False), ("False", "2026-01-01T00:00:10Z", False)],
)
def test_a_node_is_ready_when_its_kubelet_said_so_since(status: str, at: str, ready: bool) -> None:
    conditions = [{"type": "Ready", "status": status, "lastHeartbeatTime": at}]
    node = {"status": {"conditions": conditions, "nodeInfo": {"bootID": "b"}}}
    since_s = 1_767_225_605.0  # 2026-01-01T00:00:05Z
    assert node_config.ready(node, since_s=since_s) is ready
    assert not node_config.ready(node, since_s=since_s, boot_id="another")


def test_the_readme_is_typed_as_it_stands() -> None:
    commands = [words for block in site.written("Install", "sh") for words in site.commands_of(block)]
    helm = some([words for words in commands if words[0] == "helm"])
    assert all(site.RELEASE in words and "--install" in words for words in helm)
    assert {budget["metadata"]["name"] for budget in site.readme_budgets()} == {"row-a", "rack-a1"}
    with pytest.raises(LabError, match=r"README.md has no go block under `Install`"):
        site.written("Install", "go")


def test_an_image_by_hand_is_the_same_each_time(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    made = [
        archive.write(
            tmp_path / f"{name}.tar", name="localhost/x:1", files={"/bin/program": program}, entrypoint=["/bin/program"]
        )
        for name in ("one", "two")
    ]
    assert made[0].read_bytes() == made[1].read_bytes()
    with tarfile.open(made[0]) as tar:
        manifest = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        assert manifest[0]["RepoTags"] == ["localhost/x:1"] and set(tar.getnames()) >= {
            manifest[0]["Config"],
            *manifest[0]["Layers"],
        }


def test_a_cluster_of_somebodys_is_left_alone_until_they_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.touch()
    asked: list[tuple[str, ...]] = []

    def kubectl(_: object, *words: str) -> subprocess.CompletedProcess[str]:
        asked.append(words)
        config = {"clusters": [{"cluster": {"server": "https://prod:6443"}}], "current-context": "prod"}
        return subprocess.CompletedProcess(words, 0, stdout=json.dumps(config))

    monkeypatch.setattr(any_ground.KubeconfigCluster, "kubectl", kubectl)
    monkeypatch.setattr(any_ground, "ensure_tools", lambda: toolchain.Tools({}, ()))
    with pytest.raises(LabError, match="nothing was touched: add --may-change"):
        any_ground.KubeconfigCluster(kubeconfig, tmp_path, any_ground.Theirs())
    with pytest.raises(LabError, match="nothing was touched: --registry says"):
        any_ground.KubeconfigCluster(kubeconfig, tmp_path, any_ground.Theirs(may_change=True))
    assert [words[0] for words in asked] == ["config", "config"], "it only read the kubeconfig"
    assert "context prod, server https://prod:6443" in capsys.readouterr().err


def test_pytest_is_sent_to_the_scenarios_unless_files_are_named() -> None:
    assert run.names_tests(["-q", "e2e/soak.py::test_x"]) and not run.names_tests(["-k", "no-such-file", "-q"])


def test_what_failed_is_played_again_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "OUT", tmp_path / "e2e")
    with pytest.raises(LabError, match="no run before"):
        run.failed_before()
    rows = {"test_a": {"passed": True}, "test_b[x]": {"passed": False}, "test_c": {"passed": None}, "test_d": {"passed": False}}
    lines = [json.dumps({"scenarios": {"test_z": {"passed": False}}}), json.dumps({"scenarios": rows})]
    (tmp_path / "e2e.json").write_text("\n".join(lines) + "\n")
    assert run.failed_before() == ["-k", "test_b or test_d"]
    (tmp_path / "e2e.json").write_text(json.dumps({"scenarios": {"test_a": {"passed": True}}}))
    with pytest.raises(LabError, match="nothing failed"):
        run.failed_before()


@pytest.mark.parametrize("hook", [fixtures.pytest_runtest_setup, fixtures.pytest_runtest_call])
def test_a_scenario_that_needs_what_a_ground_lacks_is_told_as_not_run(hook: Callable[[], Generator[None, object, None]]) -> None:
    for error, becomes in ((NotHereError("not ours to restart"), pytest.skip.Exception), (ValueError("broken"), ValueError)):
        playing = hook()
        next(playing)
        with pytest.raises(becomes, match=str(error)):
            playing.throw(error)


def test_a_cap_that_rose_is_named_with_its_watts(monkeypatch: pytest.MonkeyPatch) -> None:
    watts = iter([[200.0, 300.0], *[[250.0, 300.0]] * 3, *[[200.0, 300.0]] * 1000])
    monkeypatch.setattr(caps, "PERIOD_S", 0.001)
    monkeypatch.setattr(caps, "caps_w", lambda _: {("n", slot): w for slot, w in enumerate(next(watts))})
    with caps.Highest(cast(Any, None)) as highest:
        eventually("it looked", lambda: highest.looks > 3)
    assert highest.raised() == ["n/0 from 200 to 250 W"]
    assert not highest.raised(but_not={("n", 0)})


def test_the_matrix_has_a_row_for_each_scenario() -> None:
    folder = Path(site.__file__).resolve().parents[1]
    files = some([*sorted(folder.glob("test_*.py")), *(folder / f"{name}.py" for name in ("groups", "streams", "soak"))])
    names = [name for file in files for name in re.findall(r"^def test_(\w+)\(", file.read_text(), re.MULTILINE)]
    table = (folder / "VERSION-MATRIX.md").read_text().partition("| scenario |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+?) \|", table.partition("|---|---|---|")[2], re.MULTILINE)
    assert rows == [name.replace("_", " ") for name in names]


def test_leaderworkersets_own_manifests_are_fitted_and_no_other_is_touched() -> None:
    container = {
        "name": "manager",
        "image": "theirs",
        "resources": {"requests": {"cpu": 1}},
        "readinessProbe": {"periodSeconds": 10},
    }
    pod = {"containers": [container], "securityContext": {"runAsNonRoot": True}}
    deployment = {"kind": "Deployment", "spec": {"replicas": 2, "template": {"spec": pod}}}
    definition = "kind: CustomResourceDefinition\nspec: {text: 'a line\n\n  ---\n\n  kind: Deployment'}\n"
    made = lws.fitted(f"{definition}---\n{yaml.safe_dump(deployment)}---\nkind: Service\n")
    parts = made.split("\n---\n")
    assert parts[0] + "\n" == definition and parts[2] == "kind: Service\n"
    fitted = json.loads(parts[1])["spec"]
    [found] = fitted["template"]["spec"]["containers"]
    assert (fitted["replicas"], found["image"], "resources" in found) == (1, lws.IMAGE, False)
    assert fitted["template"]["spec"]["securityContext"] == {"runAsNonRoot": True, "runAsUser": 65532}


def test_the_controller_of_leaderworkersets_is_built_apart_from_the_programs_of_a_node() -> None:
    [tool] = lws.TOOLS
    assert tool.version == "v0.9.0"
    assert toolchain.tools_directory(lws.TOOLS, lws.PINS) not in (
        toolchain.tools_directory(tools.TOOLS, tools.PINS),
        toolchain.tools_directory(),
    )
