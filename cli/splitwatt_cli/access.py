"""The way to a cluster as kubectl has it: which kubeconfig, which context, which namespace; and how a question ends that could
not be asked."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from splitwatt_client import ApiError, Connection
from splitwatt_core.names import API_GROUP

OK: Final = 0
BROKEN: Final = 1
"""The question was answered, and something is broken."""
UNASKED: Final = 2
"""It could not be asked: a wrong command line, no API server, no such object."""
SHAPE: Final = f"cli.{API_GROUP}/v1alpha1"
"""apiVersion of what `-o json` prints: fields are added to a shape, never renamed or taken away, while this is the same."""
DEFAULT_KUBECONFIG: Final = Path("~/.kube/config")
REQUEST_S: Final = 15.0


class UnaskedError(Exception):
    """Why the question could not be asked, in one sentence that says what to change."""


def add_arguments(parser: argparse.ArgumentParser, *, namespace: str = "") -> None:
    """Flags that kubectl has as well. `namespace`: what it is for, "" where a command has none."""
    number = parser.add_argument
    number("--kubeconfig", metavar="FILE", help="default: $KUBECONFIG, ~/.kube/config, or the pod's own service account")
    number("--context", metavar="NAME", help="default: the file's current one")
    if namespace:
        number("-n", "--namespace", metavar="NAME", help=namespace)
    number(
        "--operator-namespace",
        metavar="NAME",
        help="where the operator runs (default: where its Lease lies, or splitwatt-system)",
    )
    number("-o", "--output", choices=("text", "json"), default="text", help="json: a documented shape (%(default)s)")


def kubeconfig_of(given: str | None, environment: Mapping[str, str]) -> Path | None:
    """As kubectl looks for it; several files with colons between are merged. None: the pod's own account."""
    if given:
        return Path(given)
    if environment.get("KUBECONFIG"):
        return Path(environment["KUBECONFIG"])
    default = DEFAULT_KUBECONFIG.expanduser()
    return default if default.is_file() or "KUBERNETES_SERVICE_HOST" not in environment else None


def connect(args: argparse.Namespace) -> Connection:
    path = kubeconfig_of(args.kubeconfig, os.environ)
    return Connection(path, context=args.context, request_timeout_s=REQUEST_S, user_agent="splitwatt-cli")


def ask(name: str, question: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run a command's question; a sentence and UNASKED where it could not be asked."""
    try:
        return asyncio.run(question())
    except (ApiError, UnaskedError) as error:
        sys.stderr.write(f"splitwatt {name}: {error}\n")
        return UNASKED


def console(args: argparse.Namespace) -> Console:
    """For text. Off a terminal lines are as long as they are: whoever greps them wants whole sentences."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=max(made.width, 160), soft_wrap=True)


def print_json(kind: str, body: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps({"apiVersion": SHAPE, "kind": kind, **body}, indent=2, ensure_ascii=False) + "\n")
