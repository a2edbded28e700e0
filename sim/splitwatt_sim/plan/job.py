"""A sweep as an Indexed Job: the objects to apply, and the commands to type next. Nothing is applied here.

Each pod searches one shard and writes its result onto a claim; a small pod beside them keeps the claim mounted, so that
`kubectl cp` can bring the results home. The trace and the profiles go along as a ConfigMap where they are small enough. Names
end in a hash of what is asked, and results go into a folder of that name: another question is another Job, and never meets
the results of this one.

Protects: a pod needs no right, no root, no network of its own. Wrong options end an index at once (exit code 2), a drained node
costs no try, and what fails otherwise is tried again without stopping the other indexes.
"""

from __future__ import annotations

import gzip
import re
import shlex
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import yaml
from rich.console import Console

from splitwatt_sim.plan.arguments import said_again
from splitwatt_sim.plan.command_options import PlanOptions
from splitwatt_sim.plan.errors import PlanError
from splitwatt_sim.plan.shards import Fingerprint

DEFAULT_SHARDS: Final = 16
MAX_CONFIG_BYTES: Final = 1024**2
"""Of all values of a ConfigMap together: the API server's bound."""
READABLE_BYTES: Final = 64 * 1024
"""Larger files are compressed; smaller ones stay as they are, to be read in the object."""
INPUTS: Final = "/inputs"
TRACES: Final = "/trace"
SHARDS: Final = "/shards"
SCRATCH: Final = "/tmp"
INDEX: Final = "$(JOB_COMPLETION_INDEX)"
USER: Final = 65_532
TRIES_AGAIN: Final = 3
DAY_S: Final = 86_400
SHARD_LIMITS: Final = {"requests": {"cpu": "1", "memory": "512Mi"}, "limits": {"cpu": "1", "memory": "2Gi"}}
READER_LIMITS: Final = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "64Mi"}}
CLAIM_SIZE: Final = "1Gi"
CONTAINER: Final = "plan"
CONDITIONS: Final = 'jsonpath={.status.conditions[?(@.status=="True")].type}'
"""Those of a Job that are true, for kubectl's `-o`."""
BAD_INPUT: Final = 2
"""The command's exit code for options that no second try makes right."""


class JobError(PlanError):
    """A sweep that cannot become a Job; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Files for the pods, and where they find them. `data`: text by key; `binary`: bytes by key."""

    requests: str | None = None
    profiles: tuple[str, ...] = ()
    data: Mapping[str, str] = field(default_factory=dict)
    binary: Mapping[str, bytes] = field(default_factory=dict)


def inputs(*, requests: Path | None, profiles: Sequence[Path], on_claim: bool) -> Inputs:
    """`on_claim`: the file of requests lies at the root of a claim. Raises JobError where files are too large for a ConfigMap,
    and OSError."""
    data: dict[str, str] = {}
    binary: dict[str, bytes] = {}

    def put(name: str, path: Path) -> str:
        """The path in the pod. The ends of names are kept: they tell a table from a profile."""
        raw, suffix = path.read_bytes(), "".join(s for s in path.suffixes if re.fullmatch(r"\.[A-Za-z0-9]{1,8}", s))
        key = name + suffix
        try:
            text = raw.decode() if len(raw) <= READABLE_BYTES else None
        except UnicodeDecodeError:
            text = None
        if text is not None:
            data[key] = text
        elif name == "requests" and path.suffix != ".gz":
            key += ".gz"
            binary[key] = gzip.compress(raw, mtime=0)
        else:
            binary[key] = raw
        return f"{INPUTS}/{key}"

    at = tuple(put(f"profile-{number}", path) for number, path in enumerate(profiles))
    if requests is None or on_claim:
        trace = None if requests is None else f"{TRACES}/{requests.name}"
    else:
        trace = put("requests", requests)
    sizes = {key: len(text.encode()) for key, text in data.items()} | {key: len(raw) for key, raw in binary.items()}
    if sum(sizes.values()) > MAX_CONFIG_BYTES:
        asked = sum(size for key, size in sizes.items() if key.startswith("profile"))
        if trace is None or on_claim or asked > MAX_CONFIG_BYTES:
            raise JobError(
                f"the files of --profile are {asked} bytes, and a ConfigMap holds {MAX_CONFIG_BYTES}: leave out the GPUs that "
                "are not asked for"
            )
        raise JobError(
            f"{requests} is {sizes[Path(trace).name]} bytes even when compressed, and a ConfigMap holds {MAX_CONFIG_BYTES}: put "
            "it at the root of a PersistentVolumeClaim and give --trace-claim PVC"
        )
    return Inputs(trace, at, data, binary)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Names of one sweep's objects, and its size."""

    name: str
    namespace: str
    run: str
    shards: int
    image: str
    claim: str | None = None
    trace_claim: str | None = None

    @property
    def job(self) -> str:
        return f"{self.name}-sweep-{self.run}"

    @property
    def reader(self) -> str:
        return f"{self.job}-results"

    @property
    def results(self) -> str:
        """The claim for results."""
        return self.claim or self.job

    @property
    def folder(self) -> str:
        return f"{SHARDS}/{self.run}"


def manifests(sweep: Sweep, given: Inputs, line: Sequence[str]) -> list[dict[str, Any]]:
    """Objects in the order in which they are applied. `line`: the command line of a pod, without its shard."""
    objects: list[dict[str, Any]] = []
    if given.data or given.binary:
        content: dict[str, Any] = {"immutable": True}
        if given.data:
            content["data"] = dict(given.data)
        if given.binary:
            content["binaryData"] = {key: b64encode(raw).decode() for key, raw in given.binary.items()}
        objects.append(_object(sweep, "v1", "ConfigMap", sweep.job, **content))
    if sweep.claim is None:
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": CLAIM_SIZE}}}
        objects.append(_object(sweep, "v1", "PersistentVolumeClaim", sweep.results, spec=spec))
    objects.append(_object(sweep, "batch/v1", "Job", sweep.job, spec=_job(sweep, given, line)))
    objects.append(_object(sweep, "v1", "Pod", sweep.reader, spec=_reader(sweep)))
    return objects


def _object(sweep: Sweep, api_version: str, kind: str, name: str, **rest: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": sweep.namespace, "labels": _labels(sweep)}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **rest}


def _labels(sweep: Sweep) -> dict[str, str]:
    return {"app.kubernetes.io/name": "splitwatt-plan", "app.kubernetes.io/instance": sweep.job}


def _job(sweep: Sweep, given: Inputs, line: Sequence[str]) -> dict[str, Any]:
    volumes: list[dict[str, Any]] = [_results(sweep), {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}}]
    mounts: list[dict[str, Any]] = [
        {"name": "shards", "mountPath": SHARDS}, {"name": "scratch", "mountPath": SCRATCH}
    ]  # fmt: skip
    if given.data or given.binary:
        volumes.append({"name": "inputs", "configMap": {"name": sweep.job}})
        mounts.append({"name": "inputs", "mountPath": INPUTS, "readOnly": True})
    if sweep.trace_claim is not None:
        volumes.append({"name": "trace", "persistentVolumeClaim": {"claimName": sweep.trace_claim}})
        mounts.append({"name": "trace", "mountPath": TRACES, "readOnly": True})
    container = {
        "name": CONTAINER,
        "image": sweep.image,
        "command": ["splitwatt"],
        "args": [*line, "--jobs", "1", "--shard", f"{INDEX}/{sweep.shards}", "--shards-dir", sweep.folder],
        # Compiled loops and fonts are kept in the scratch volume: nothing else can be written.
        "env": [{"name": name, "value": SCRATCH} for name in ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR")],
        "resources": SHARD_LIMITS,
        "securityContext": _locked(),
        "volumeMounts": mounts,
    }
    return {
        "completionMode": "Indexed",
        "completions": sweep.shards,
        "parallelism": sweep.shards,
        "backoffLimitPerIndex": TRIES_AGAIN,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailIndex",
                    "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [BAD_INPUT]},
                },
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "ttlSecondsAfterFinished": DAY_S,
        "template": {"metadata": {"labels": _labels(sweep)}, "spec": _pod([container], volumes)},
    }


def _reader(sweep: Sweep) -> dict[str, Any]:
    container = {
        "name": "results",
        "image": sweep.image,
        "command": ["sleep", "infinity"],
        "resources": READER_LIMITS,
        "securityContext": _locked(),
        "volumeMounts": [{"name": "shards", "mountPath": SHARDS}],
    }
    # It ends by itself, should nobody come for the results; they stay on the claim.
    return {**_pod([container], [_results(sweep)]), "activeDeadlineSeconds": 7 * DAY_S, "terminationGracePeriodSeconds": 0}


def _results(sweep: Sweep) -> dict[str, Any]:
    return {"name": "shards", "persistentVolumeClaim": {"claimName": sweep.results}}


def _pod(containers: list[dict[str, Any]], volumes: list[dict[str, Any]]) -> dict[str, Any]:
    """What Pod Security's profile `restricted` asks for."""
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True, "runAsUser": USER, "runAsGroup": USER, "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch", "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": containers,
        "volumes": volumes,
    }  # fmt: skip


def _locked() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def default_image() -> str:
    """As `make images` names it where no registry is given: the version is the chart's, and the distribution's."""
    try:
        return f"localhost/splitwatt-sim:{version('splitwatt')}"
    except PackageNotFoundError as error:
        raise JobError("the version of splitwatt is not known here: give --image") from error


def write_job(options: PlanOptions, run: Fingerprint, item_count: int, console: Console) -> int:
    """Write the manifest of what is asked, and print what to type next. Raises JobError, OSError."""
    job, output, requests = options.job, options.output, options.search.requests
    if job.shards is not None and job.shards > item_count:
        raise JobError(f"there are {item_count} pairs of servers to search: give --shards {item_count} or less")
    if job.trace_claim is not None and requests is None:
        raise JobError("--trace-claim holds the file of --requests: give that too, it is looked at here and never copied")
    paths = [file.path for file in options.search.profiles]
    given = inputs(requests=requests, profiles=paths, on_claim=job.trace_claim is not None)
    sweep = Sweep(
        name=output.name,
        namespace=output.namespace,
        run=run.short,
        shards=job.shards or min(item_count, DEFAULT_SHARDS),
        image=job.image or default_image(),
        claim=job.claim,
        trace_claim=job.trace_claim,
    )
    objects = manifests(sweep, given, said_again(options, requests=given.requests, profiles=given.profiles))
    target = job.output or output.out / "sweep.yaml"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        f"# {sweep.shards} shards of {item_count} pairs of servers, one pod each. `kubectl delete -f` this file takes all away.\n"
        + "---\n".join(yaml.safe_dump(obj, sort_keys=False, width=120) for obj in objects),
        encoding="utf-8",
    )
    home = output.out / f"shards-{sweep.run}"
    here = None if requests is None else str(requests)
    again = said_again(options, requests=here, profiles=[str(path) for path in paths], with_output=True)
    console.print(
        f"written to {target}: a Job of {sweep.shards} pods for {item_count} pairs of servers, image {sweep.image}. Type next:",
        soft_wrap=True, markup=False,
    )  # fmt: skip
    for command in next_commands(sweep, target, home, again):
        console.print(f"\n{command}", soft_wrap=True, markup=False)
    why = f"kubectl --namespace {sweep.namespace} describe job/{sweep.job}"
    console.print(f"\nShould the first end with Failed, this says why: {why}", soft_wrap=True, markup=False)
    return 0


def next_commands(sweep: Sweep, manifest: Path, home: Path, again: Sequence[str]) -> tuple[str, str]:
    """Apply, and wait until the Job is complete or has failed (`kubectl wait` knows one of them only); bring the results home and
    merge them. Applied by the server: a ConfigMap of more than 256 KiB does not fit the annotation that kubectl would keep
    beside it."""
    kubectl = f"kubectl --namespace {sweep.namespace}"
    return (
        f"kubectl apply --server-side -f {shlex.quote(str(manifest))} && "
        f"until {kubectl} get job/{sweep.job} -o {shlex.quote(CONDITIONS)} | grep -wE 'Complete|Failed'; do sleep 10; done",
        f"{kubectl} cp {sweep.reader}:{sweep.folder} {shlex.quote(str(home))} && "
        f"{shlex.join(['splitwatt', *again, '--merge', str(home)])}",
    )
