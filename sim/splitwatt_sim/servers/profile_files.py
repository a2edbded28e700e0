"""A user's own servers from files: PowerProfiles as the API server gives them, and timing tables in the neutral CSV.

A PowerProfile says what a GPU draws and what a cap costs; a simulation also asks how long steps take and what memory there
is. Both ride on the object as annotations, so that a profile survives `kubectl apply` and `kubectl get -o yaml` whole:

    splitwatt.io/timing: {"model": …, "tensorParallel": 8, "prefillPoints": [[tokens, ms], …], "decodePoints": [[batch, ms], …],
                          "kvMsPerMtoken": …}
    splitwatt.io/memory-gibibytes: "141"

A file is a table when its name ends in .csv, else it holds PowerProfiles: one or more documents, or the List of `kubectl get`.

Protects: nothing of a file is passed over in silence. A field that the API does not know is refused with its path, as the API
server refuses it, and numbers that contradict each other are refused by the core's own checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import Field, ValidationError
from splitwatt_api.base import Wire
from splitwatt_api.convert_profile import profile_to_core
from splitwatt_api.power_profile import PowerProfile
from splitwatt_core.gpus.profiles import MAX_POINTS, Profile, ProfileError, Timing
from splitwatt_core.names import ANNOTATION_MEMORY, ANNOTATION_TIMING, GROUP_VERSION, LABEL_MANAGED_BY, MANAGED_BY

from splitwatt_sim.servers.table_files import TimingTable, read_neutral_csv, to_power_profile
from splitwatt_sim.servers.tables import GIB, TableError

TABLE_SUFFIX: Final = ".csv"
MAX_FILE_BYTES: Final = 16 * 1024**2
MAX_PROFILES: Final = 256
MAX_MEMORY_GIB: Final = 65_536.0
LISTS: Final = ("List", "PowerProfileList")


@dataclass(frozen=True, slots=True)
class Given:
    """One profile of a file. `profile.timing` and `memory_bytes` (of one GPU) are None where the file does not say them.
    `shipped`: it came with the chart, and a user's own stand before it, as in the operator."""

    profile: Profile
    source: str
    memory_bytes: float | None = None
    shipped: bool = False


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """What a file holds: profiles, or timing tables."""

    path: Path
    profiles: tuple[Given, ...] = ()
    tables: tuple[TimingTable, ...] = ()


_Points = Annotated[list[tuple[Annotated[int, Field(ge=0)], Annotated[float, Field(gt=0)]]], Field(max_length=MAX_POINTS)]
_Permille = Annotated[int, Field(ge=0)]


class _Written(Wire):
    """The timing annotation."""

    model: str
    tensor_parallel: Annotated[int, Field(ge=1)]
    prefill_points: _Points
    decode_points: _Points
    kv_ms_per_mtoken: Annotated[float, Field(ge=0)]
    prefill_error_permille: _Permille = 0
    decode_error_permille: _Permille = 0


def read_profile_file(path: Path) -> ProfileFile:
    """Raises TableError: one sentence that names the file, and the object and field in it."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TableError(f"{path} is larger than {MAX_FILE_BYTES // 1024**2} MiB; give PowerProfiles or a timing table")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TableError(f"cannot read the profile {path} ({error}); pass the path of a YAML or CSV file") from error
    if path.suffix.casefold() == TABLE_SUFFIX:
        return ProfileFile(path, tables=read_neutral_csv(text.splitlines(), name=str(path)))
    found = tuple(_given(raw, str(path)) for raw in _objects(text, str(path)))
    if not 0 < len(found) <= MAX_PROFILES:
        raise TableError(f"{path} holds {len(found)} PowerProfiles; give 1 to {MAX_PROFILES}, or end a table's name in .csv")
    return ProfileFile(path, profiles=found)


def _objects(text: str, name: str) -> Iterator[Mapping[str, Any]]:
    try:
        documents = [document for document in yaml.safe_load_all(text) if document is not None]
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # also a day that is none, and lists a thousand deep
        raise TableError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    for number, document in enumerate(documents, 1):
        where = f"{name}: document {number}"
        if not isinstance(document, dict):
            raise TableError(f"{where} is no object; give a PowerProfile with apiVersion, kind, metadata and spec")
        items = document.get("items") if document.get("kind") in LISTS else [document]
        if not isinstance(items, list):
            raise TableError(f"{where}: items: must be a list")
        for item in items:
            kind = item.get("kind") if isinstance(item, dict) else None
            if kind != "PowerProfile":
                raise TableError(f"{where}: kind: must be PowerProfile, not {kind}; take the other objects out")
            yield item


def _given(raw: Mapping[str, Any], name: str) -> Given:
    metadata = raw.get("metadata")
    called = metadata.get("name") if isinstance(metadata, dict) else None
    where = f"{name}: PowerProfile {called or 'without a name'}"
    try:
        wire = PowerProfile.from_wire(raw)
        annotations = wire.metadata.annotations
        profile = profile_to_core(wire)
        timing = annotations.get(ANNOTATION_TIMING)
        profile = replace(profile, timing=None if timing is None else _timing(timing))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        timed = f"metadata.annotations.{ANNOTATION_TIMING}: " if error.title == _Written.__name__ else ""
        raise TableError(f"{where}: {timed}{path}{': ' if path else ''}{first['msg']}") from error
    except ProfileError as error:
        raise TableError(f"{where}: {error}") from error
    shipped = wire.metadata.labels.get(LABEL_MANAGED_BY) == MANAGED_BY
    return Given(profile, name, _memory_bytes(annotations.get(ANNOTATION_MEMORY), where), shipped)


def _timing(text: str) -> Timing:
    written = _Written.model_validate_json(text)
    return Timing(
        model=written.model,
        tensor_parallel=written.tensor_parallel,
        prefill_points=tuple(written.prefill_points),
        decode_points=tuple(written.decode_points),
        kv_ms_per_mtoken=written.kv_ms_per_mtoken,
        prefill_error_permille=written.prefill_error_permille,
        decode_error_permille=written.decode_error_permille,
    )


def _memory_bytes(text: str | None, where: str) -> float | None:
    if text is None:
        return None
    try:
        memory_gib = float(text)
    except ValueError:
        memory_gib = 0.0
    if not 0 < memory_gib <= MAX_MEMORY_GIB:
        raise TableError(
            f"{where}: metadata.annotations.{ANNOTATION_MEMORY}: must be the memory of one GPU in GiB, above 0, not {text!r}"
        )
    return memory_gib * GIB


def profile_object(profile: Profile, *, memory_bytes: float | None = None) -> dict[str, Any]:
    """The PowerProfile to write, without the fields that the API server fills in. The profile's timing and `memory_bytes` go
    along as annotations, to the last bit; None: left out. Raises TableError where the API would refuse it."""
    written = to_power_profile(profile)
    annotations = {}
    if profile.timing is not None:
        annotations[ANNOTATION_TIMING] = _timing_text(profile.timing)
    if memory_bytes is not None:
        annotations[ANNOTATION_MEMORY] = f"{memory_bytes / GIB!r}".removesuffix(".0")
    metadata = {"name": written["metadata"]["name"], **({"annotations": annotations} if annotations else {})}
    return {"apiVersion": GROUP_VERSION, "kind": "PowerProfile", "metadata": metadata, "spec": written["spec"]}


def _timing_text(timing: Timing) -> str:
    return json.dumps(_Written.model_validate(asdict(timing)).to_wire())
