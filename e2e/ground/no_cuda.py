"""One small library in the place of NVIDIA's, for a torch from PyPI on a machine without GPUs.

PyPI's torch is linked against a dozen of them, 2.7 GB, and calls none where there is no GPU. The loader asks that each name is
found, with its symbols and their versions: this library is all of them by symbolic links, and each function answers 100, CUDA's
"no device".
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from ground import rootfs

LIBRARY: Final = "libno-cuda.so"
_SYSTEM: Final = ("libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2")
_OF_SYSTEM: Final = re.compile(r"^(libstdc\+\+|libgcc_s|libc|libm|libdl|librt|libpthread|libutil|ld-linux-x86-64)\.so")
_NEEDED: Final = re.compile(r"\(NEEDED\).*\[(.+)\]")
_PYTHON: Final = re.compile(r"^_?Py")
_NO_DEVICE: Final = 'movl $100, %eax\nret\n.section .note.GNU-stack,"",@progbits\n'


def lay(torch: Path) -> Sequence[str]:
    """Into the folder of an installed torch; the names it stands for. Raises LabError."""
    folder = torch / "lib"
    libraries = sorted(folder.glob("*.so*"))
    here = {library.name for library in libraries}
    missing = {name for each in libraries for name in _needed(each) if name not in here and not _OF_SYSTEM.match(name)}
    defined = {name for each in (*libraries, *_system()) for name, _ in _symbols(each, "--defined-only")}
    wanted: dict[str, str] = {}
    for each in libraries:
        wanted |= {name: version for name, version in _symbols(each, "--undefined-only") if not _PYTHON.match(name)}
    _build(folder / LIBRARY, {name: version for name, version in sorted(wanted.items()) if name not in defined})
    for name in missing:
        (folder / name).symlink_to(LIBRARY)
    return sorted(missing)


def _build(target: Path, symbols: dict[str, str]) -> None:
    """`symbols`: each with its version, empty for none."""
    source, versions = target.with_suffix(".s"), target.with_suffix(".map")
    source.write_text(".text\n" + "".join(f".globl {name}\n.type {name}, @function\n{name}:\n" for name in symbols) + _NO_DEVICE)
    nodes = (
        f"{v} {{ global: {' '.join(f'{n};' for n, of in symbols.items() if of == v)} }};\n" for v in set(symbols.values()) if v
    )
    versions.write_text("".join(nodes))
    rootfs.run(
        ["gcc", "-shared", "-nostdlib", f"-Wl,--version-script={versions}", "-o", target, source],
        what="building a library in the place of NVIDIA's",
    )
    source.unlink()
    versions.unlink()


def _symbols(library: Path, which: str) -> Iterator[tuple[str, str]]:
    """(name, version) of dynamic symbols; weak ones may stay undefined."""
    for line in rootfs.run(["nm", "-D", which, library], what="nm").splitlines():
        *_, kind, symbol = line.split()
        if which == "--defined-only" or kind == "U":
            name, _, version = symbol.partition("@")
            yield name, version.lstrip("@")


def _needed(library: Path) -> Sequence[str]:
    return _NEEDED.findall(rootfs.run(["readelf", "-d", library], what="readelf"))


def _system() -> Iterator[Path]:
    for name in _SYSTEM:
        found = subprocess.run(["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout
        yield Path(found.strip()).resolve()
