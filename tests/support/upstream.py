"""Definitions of others on a real API server, and what it would say to an object of ours without taking it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import httpx
from splitwatt_client.resources import resource_of
from splitwatt_lab.controlplane import ControlPlane
from splitwatt_lab.upstream import DEFINITIONS, definition_file
from support.waiting import eventually


@contextmanager
def served(plane: ControlPlane, *kinds: str) -> Iterator[None]:
    """Their definitions are installed, as their projects publish them, and are gone afterwards with all objects."""
    install(plane, *kinds)
    try:
        yield
    finally:
        uninstall(plane, *kinds)


def install(plane: ControlPlane, *kinds: str) -> None:
    for kind in kinds:
        plane.kubectl("apply", "--server-side", "-f", definition_file(DEFINITIONS[kind]))
        eventually(f"{kind} is served", partial(_established, plane, DEFINITIONS[kind].crd))


def _established(plane: ControlPlane, crd: str) -> bool:
    status = plane.http.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{crd}").json().get("status") or {}
    return any(row["type"] == "Established" and row["status"] == "True" for row in status.get("conditions") or ())


def uninstall(plane: ControlPlane, *kinds: str) -> None:
    plane.kubectl("delete", "crd", *(DEFINITIONS[kind].crd for kind in kinds), "--ignore-not-found")


def dry_run(plane: ControlPlane, manifest: Mapping[str, Any], path: str = "") -> httpx.Response:
    """A server-side apply that is not stored, with every unknown field refused."""
    meta = manifest["metadata"]
    where = path or resource_of(manifest).path(namespace=meta.get("namespace"), name=meta["name"])
    return plane.http.patch(
        where,
        params={"dryRun": "All", "fieldValidation": "Strict", "fieldManager": "test", "force": "true"},
        content=json.dumps(manifest),
        headers={"Content-Type": "application/apply-patch+yaml"},
    )
