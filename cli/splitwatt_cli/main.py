"""`splitwatt`, also `kubectl splitwatt`: a thin front door. Every room of the house registers its own subcommands by the
entry point group `splitwatt.commands`; one that cannot be loaded (its extra is not installed) is left out and named."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol

from splitwatt_core import __version__

GROUP: Final = "splitwatt.commands"
INTERRUPTED: Final = 130


class Command(Protocol):
    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def load_commands(asked: str = "") -> tuple[dict[str, Command], dict[str, str]]:
    """The commands that are installed, and for each other one the reason it is not. Where `asked` is one of them, that one alone:
    at night nobody waits for the simulator's compiler to be imported."""
    found: dict[str, Command] = {}
    missing: dict[str, str] = {}
    registered = sorted(entry_points(group=GROUP), key=lambda e: e.name)
    for entry in [e for e in registered if e.name == asked] or registered:
        try:
            found[entry.name] = entry.load()
        except ImportError as error:
            extra = entry.module.split(".")[0].removeprefix("splitwatt_")  # an extra is named after its package
            missing[entry.name] = (
                f"needs {error.name or error}; install the extra that brings it: pip install 'splitwatt[{extra}]'"
            )
    return found, missing


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command; 2 on a wrong command line, 130 after Ctrl-C."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands, missing = load_commands(given[0] if given else "")
    parser = argparse.ArgumentParser(prog="splitwatt", description="Power-aware split prefill/decode serving on Kubernetes.")
    parser.add_argument("--version", action="version", version=f"splitwatt {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in commands.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help, description=command.help))
    if given and given[0] in missing:
        parser.error(f"{given[0]} {missing[given[0]]}")
    args = parser.parse_args(given)
    try:
        return commands[args.command].run(args)
    except KeyboardInterrupt:
        sys.stderr.write("splitwatt: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
