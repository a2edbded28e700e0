"""Container images written by hand: a docker archive of one layer, for images that hold a program and nothing else."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import subprocess
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}

PAUSE_IMAGE: Final = "localhost/splitwatt-e2e-pause:1"
_PAUSE: Final = """
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void end(int number) { (void)number; _exit(0); }
static void reap(int number) { (void)number; while (waitpid(-1, 0, WNOHANG) > 0) ; }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); signal(SIGCHLD, reap); for (;;) pause(); }
"""
"""What holds a pod's namespaces open: it does nothing but end when told and reap orphans."""


def architecture() -> str:
    """Of this machine, as images name it."""
    return _MACHINES.get(platform.machine(), platform.machine())


def write(archive: Path, *, name: str, files: Mapping[str, Path], entrypoint: Sequence[str]) -> Path:
    """An image `name` whose one layer has `files` by their path in the image, all executable. The same input, the same bytes."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for inside, source in sorted(files.items()):
            _add(tar, inside.lstrip("/"), source.read_bytes(), mode=0o755)
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config: dict[str, Any] = {
        "architecture": architecture(),
        "os": "linux",
        "config": {"Entrypoint": list(entrypoint), "Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    text = json.dumps(config).encode()
    config_name = f"{hashlib.sha256(text).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{digest}/layer.tar"]}]
    archive.parent.mkdir(parents=True, exist_ok=True)
    fresh = archive.with_suffix(".new")
    with tarfile.open(fresh, mode="w") as tar:
        _add(tar, config_name, text)
        _add(tar, f"{digest}/layer.tar", layer.getvalue())
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return fresh.rename(archive)


def _add(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), mode
    tar.addfile(member, io.BytesIO(content))


def pause_program(folder: Path) -> Path:
    """Compiled into `folder`. Needs a C compiler."""
    source, program = folder / "pause.c", folder / "pause"
    source.write_text(_PAUSE)
    subprocess.run(["cc", "-Os", "-static", "-s", "-o", str(program), str(source)], check=True)
    return program


def pause(folder: Path) -> Path:
    """The archive of the pause image."""
    with tempfile.TemporaryDirectory() as scratch:
        files = {"/pause": pause_program(Path(scratch))}
        return write(folder / "pause.tar", name=PAUSE_IMAGE, files=files, entrypoint=["/pause"])
