"""The Kubernetes client as images carry it: a copy of the installed one, after images/trim.py."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import kubernetes
from support.imports import REPOSITORY

TRIM: Final = REPOSITORY / "images" / "trim.py"


def carried_client(folder: Path) -> Path:
    """`folder`, to stand first in PYTHONPATH."""
    source = Path(kubernetes.__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, TRIM, folder], check=True, timeout=120)
    return folder


def size_mb(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
