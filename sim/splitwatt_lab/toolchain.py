"""Where the control plane's programs come from.

Theory: a pinned program is one and the same wherever it was found, so each is looked for in the order cheap to dear:

    KUBEBUILDER_ASSETS  ->  the user's cache  ->  PATH, at the pinned minor version  ->  built from pinned Go modules

A set KUBEBUILDER_ASSETS is a decision, not a hint: what is missing there is an error. The cache is one folder per hash of
all pins and build flags, filled by renames only, so a program in it is whole and of the version the pins name.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError

ASSETS_VARIABLE: Final = "KUBEBUILDER_ASSETS"
PINS: Final = Path(__file__).resolve().parent / "tools"
BUILD_FLAGS: Final = ("-mod=readonly", "-trimpath", "-buildvcs=false")
BUILD_ENVIRONMENT: Final = {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
_VERSION_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Tool:
    """One program: `pins` is its folder below `root`, `module` the Go module whose version is the tool's version."""

    name: str
    pins: str
    package: str
    module: str
    version_arguments: Sequence[str] = ("--version",)
    root: Path = PINS

    @property
    def folder(self) -> Path:
        """Of its go.mod."""
        return self.root / self.pins

    @property
    def version(self) -> str:
        """The pinned version, such as `v1.37.2`."""
        return _pinned_version(self.folder / "go.mod", self.module)

    @property
    def ldflags(self) -> str:
        # Without it the Kubernetes programs call themselves v0.0.0-master+$Format, and clients refuse features by version.
        if self.module == "k8s.io/kubernetes":
            return f"-s -w -X k8s.io/component-base/version.gitVersion={self.version}"
        return "-s -w"


def _kubernetes(name: str, version_arguments: Sequence[str] = ("--version",)) -> Tool:
    return Tool(name, "kubernetes", f"k8s.io/kubernetes/cmd/{name}", "k8s.io/kubernetes", version_arguments)


TOOLS: Final[Sequence[Tool]] = (
    Tool("etcd", "etcd", "go.etcd.io/etcd/server/v3", "go.etcd.io/etcd/server/v3"),
    _kubernetes("kube-apiserver"),
    _kubernetes("kube-controller-manager"),
    _kubernetes("kube-scheduler"),
    _kubernetes("kubectl", ("version", "--client")),
    Tool("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", "sigs.k8s.io/kwok"),
    Tool("helm", "helm", "helm.sh/helm/v4/cmd/helm", "helm.sh/helm/v4", ("version", "--short")),
)

STAGES_FOLDER: Final = "kwok-stages"
STAGE_FILES: Final = (
    "node/fast/node-initialize.yaml",
    "node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
    "pod/fast/pod-ready.yaml",
    "pod/fast/pod-complete.yaml",
    "pod/fast/pod-delete.yaml",
)
"""What kwok does to nodes and pods, taken from its own module, under kustomize/stage."""


@dataclass(frozen=True, slots=True)
class Tools:
    """Paths of the programs, and of kwok's Stage files."""

    paths: Mapping[str, Path]
    stages: Sequence[Path]

    def __getitem__(self, name: str) -> Path:
        return self.paths[name]


def cache_directory() -> Path:
    """The user's cache of this project, by the XDG convention."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "splitwatt"


def pins_hash(tools: Sequence[Tool] | None = None, pins: Path | None = None) -> str:
    """Sixteen hex digits over every pin and flag that decides what the built programs are, and over sources beside the pins.
    None: those of the control plane."""
    tools, pins = TOOLS if tools is None else tools, PINS if pins is None else pins
    digest = hashlib.sha256(f"{platform.system()} {platform.machine()}\n".encode())
    for tool in tools:
        digest.update(f"{tool.name} {tool.package} {' '.join(BUILD_FLAGS)} {tool.ldflags}\n".encode())
    for file in sorted({*pins.glob("*/go.*"), *pins.glob("*/*.go")}):
        digest.update(f"{file.parent.name}/{file.name}\n".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def tools_directory(tools: Sequence[Tool] | None = None, pins: Path | None = None) -> Path:
    """The cache folder for the present pins, of the control plane where none are named."""
    return cache_directory() / "tools" / pins_hash(tools, pins)


def stage_names() -> Sequence[str]:
    return [Path(file).name for file in STAGE_FILES]


def stages_in(folder: Path) -> Sequence[Path] | None:
    """The Stage files beside the programs in `folder`; None unless all are there."""
    stages = [folder / STAGES_FOLDER / name for name in stage_names()]
    return stages if all(stage.is_file() for stage in stages) else None


def assets_from_environment() -> Mapping[str, Path] | None:
    """The programs under KUBEBUILDER_ASSETS; None when it is not set. Raises LabError when some are missing there."""
    folder_name = os.environ.get(ASSETS_VARIABLE)
    if not folder_name:
        return None
    folder = Path(folder_name)
    missing = [tool.name for tool in TOOLS if not _is_program(folder / tool.name)]
    if missing:
        raise LabError(
            f"{ASSETS_VARIABLE} is set to {folder} but {_listed(missing)} {'is' if len(missing) == 1 else 'are'} not there; "
            f"put {'it' if len(missing) == 1 else 'them'} there or unset {ASSETS_VARIABLE}"
        )
    return {tool.name: (folder / tool.name).absolute() for tool in TOOLS}


def found(tool: Tool, cache_folder: Path | None = None) -> Path | None:
    """The program in the cache, or on PATH at the pinned minor version."""
    cached = (cache_folder or tools_directory()) / tool.name
    if _is_program(cached):
        return cached
    on_path = shutil.which(tool.name)
    if on_path and minor(_reported_version(Path(on_path), tool)) == minor(tool.version):
        return Path(on_path).absolute()
    return None


def minor(version: str) -> str:
    """`1.37` of anything that holds `v1.37.2` or `1.37.2`; empty when it holds no version."""
    match = re.search(r"\bv?(\d+\.\d+)(?:\.\d+)?\b", version)
    return match.group(1) if match else ""


def _reported_version(program: Path, tool: Tool) -> str:
    """What the program says of its version; empty when it does not answer (an older one may not know the option)."""
    try:
        result = subprocess.run(
            [program, *tool.version_arguments], capture_output=True, text=True, timeout=_VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


@cache
def _pinned_version(go_mod: Path, module: str) -> str:
    match = re.search(rf"^\s*(?:require\s+)?{re.escape(module)} (v\S+)", go_mod.read_text(), re.MULTILINE)
    if match is None:
        raise LabError(f"{go_mod} does not require {module}; add it with `go get -tool`")
    return match.group(1)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
