"""`splitwatt support-bundle`."""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import platform
import sys
import tarfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from splitwatt_client import ApiError, Connection, Object
from splitwatt_client.connection import UNLIMITED
from splitwatt_core import __version__

from splitwatt_cli import access, prometheus
from splitwatt_cli.access import UnaskedError
from splitwatt_cli.bundle.redact import redact, redact_text
from splitwatt_cli.doctor.command import wire as diagnosis_of
from splitwatt_cli.doctor.facts import SiteFacts
from splitwatt_cli.doctor.gather import end_point, gather
from splitwatt_cli.doctor.verdict import diagnose
from splitwatt_cli.prometheus import PrometheusError
from splitwatt_cli.status.standing import standing_of

MAX_LOG_BYTES: Final = 4 << 20
"""Of one container: its end."""
LOG_LINES: Final = 20_000
LOG_S: Final = 30.0
SERIES: Final = '{__name__=~"splitwatt_.*"}'


class BundleCommand:
    help = "write objects, events, logs, metrics and versions into one archive, without Secrets and tokens, to send to somebody"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        access.add_arguments(parser)
        prometheus.add_arguments(parser)
        parser.add_argument("--out", type=Path, metavar="FILE", help="default: splitwatt-bundle-TIME.tar.gz")
        parser.add_argument("--decision-log", type=Path, metavar="FILE", help="what the operator writes under that flag")

    def run(self, args: argparse.Namespace) -> int:
        return access.ask("support-bundle", lambda: self._ask(args))

    async def _ask(self, args: argparse.Namespace) -> int:
        out = args.out or Path(f"splitwatt-bundle-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.tar.gz")
        async with access.connect(args) as connection:
            reach = partial(end_point, connection, args)
            facts = await gather(connection, namespace=args.operator_namespace, prometheus_of=reach, breakers_w={})
            files = objects_of(facts) | await _logs(connection, facts) | await _metrics(reach, facts)
        if args.decision_log is not None:
            try:
                files["decisions.jsonl"] = redact_text(
                    args.decision_log.read_text(encoding="utf-8", errors="replace")[-MAX_LOG_BYTES:]
                )
            except OSError as error:
                raise UnaskedError(f"cannot read --decision-log {args.decision_log} ({error.strerror})") from error
        try:
            write(out, files)
        except OSError as error:
            raise UnaskedError(f"cannot write {out} ({error.strerror}); name another file with --out") from error
        size = out.stat().st_size
        if args.output == "json":
            access.print_json("SupportBundle", {"file": str(out), "bytes": size, "entries": sorted(files)})
        else:
            sys.stdout.write(f"{out}: {len(files)} files, {size} bytes; look through it before you send it\n")
        return access.OK


def objects_of(facts: SiteFacts) -> dict[str, str]:
    """By file name its text, redacted."""
    seen = facts.seen
    lists: Mapping[str, Any] = {
        "powerbudgets": seen.budgets, "nodepowers": seen.node_powers, "inferenceclusters": seen.clusters,
        "powerprofiles": seen.profiles, "nodes": seen.nodes, "pods": seen.pods, "own-pods": seen.own_pods,
        "deployments": seen.deployments, "daemonsets": seen.daemon_sets, "customresourcedefinitions": seen.definitions,
        "leases": () if seen.lease is None else (seen.lease,),
    }  # fmt: skip
    files = {f"objects/{name}.json": _json(list(objects)) for name, objects in lists.items()}
    files["events.json"] = _json(list(seen.events))
    files["doctor.json"] = _json(diagnosis_of(facts, diagnose(facts)))
    files["status.json"] = _json(standing_of(seen).wire())
    files["versions.json"] = _json(
        {
            "command": __version__, "python": platform.python_version(), "kubernetes": facts.version,
            "images": sorted(_images(seen.deployments) | _images(seen.daemon_sets)),
            "at": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        }
    )  # fmt: skip
    files["unread.json"] = _json(dict(seen.unread))
    return files


def _images(workloads: Any) -> set[str]:
    return {c["image"] for w in workloads for c in w["spec"]["template"]["spec"]["containers"]}


def _json(value: Any) -> str:
    return json.dumps(redact(value), indent=1, ensure_ascii=False) + "\n"


async def _logs(connection: Connection, facts: SiteFacts) -> dict[str, str]:
    """Of the operator's and the agents' pods, the container before the last restart, too. What cannot be read says why."""
    files: dict[str, str] = {}
    for pod in facts.seen.own_pods:
        for container in pod["spec"]["containers"]:
            for previous in (False, True):
                text = await _log(connection, pod, container["name"], previous=previous)
                if text:
                    name = f"logs/{pod['metadata']['name']}/{container['name']}{'-previous' if previous else ''}.log"
                    files[name] = redact_text(text)
    return files


async def _log(connection: Connection, pod: Object, container: str, *, previous: bool) -> str:
    meta = pod["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}/log"
    query = [("container", container), ("tailLines", str(LOG_LINES)), ("limitBytes", str(MAX_LOG_BYTES))]
    try:
        async with asyncio.timeout(LOG_S):
            response = await connection.open(
                "GET", path, query=[*query, ("previous", str(previous).lower())], accept="*/*", limits=UNLIMITED
            )
            try:
                return (await response.read()).decode("utf-8", "replace")
            finally:
                response.close()
    except (ApiError, TimeoutError, OSError) as error:
        return "" if previous else f"this log could not be read: {error or 'no answer in time'}\n"


async def _metrics(reach: Any, facts: SiteFacts) -> dict[str, str]:
    """Our own series as they are now."""
    try:
        asked = reach(facts.seen)
        rows = [] if asked is None else await asked.query(SERIES)
    except PrometheusError as error:
        return {"metrics.json": _json({"problem": str(error)})}
    return {"metrics.json": _json([{"metric": dict(row.labels), "value": row.value} for row in rows])}


def write(out: Path, files: Mapping[str, str]) -> None:
    """Whole or not at all, and for its owner alone. Raises OSError."""
    folder, now_s = out.name.removesuffix(".tar.gz"), time.time()
    fresh = out.with_name(f".{out.name}.new")
    fresh.touch(mode=0o600)
    with tarfile.open(fresh, "w:gz") as archive:
        for name, text in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now_s), 0o600
            archive.addfile(entry, io.BytesIO(data))
    fresh.replace(out)


COMMAND: Final = BundleCommand()
