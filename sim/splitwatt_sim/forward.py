"""The way to `splitwatt papers`, for command lines that led elsewhere before it was a command of its own.

Protected: the simulator imports nothing of the papers, which may not be installed. Their command is found by its entry point, as
`splitwatt` itself finds it, and it is given a line to read as if it had been typed.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Final, Protocol, cast

from rich.console import Console

GROUP: Final = "splitwatt.commands"
PAPERS: Final = "papers"


class PapersMissingError(RuntimeError):
    """The papers are not installed, or not whole; the message is one sentence that says what to install."""


class Command(Protocol):
    """As every room registers its own with `splitwatt`."""

    help: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def to_papers(line: Sequence[str], *, instead_of: str) -> int:
    """Run `splitwatt papers LINE`, and say on stderr that this is what to type now; its exit code. Raises PapersMissingError, and
    SystemExit as argparse does where the line is wrong."""
    command = _papers(instead_of)
    parser = argparse.ArgumentParser(prog=f"splitwatt {PAPERS}")
    command.add_arguments(parser)
    now = shlex.join(["splitwatt", PAPERS, *line])
    said = f"{instead_of} still works, and is a command of its own now: {now}"
    Console(stderr=True, highlight=False).print(said, soft_wrap=True, markup=False)
    return command.run(parser.parse_args(list(line)))


def _papers(instead_of: str) -> Command:
    for entry in entry_points(group=GROUP, name=PAPERS):
        try:
            return cast(Command, entry.load())
        except ImportError as error:
            raise PapersMissingError(
                f"{instead_of} needs {error.name or error}, which comes with the papers: pip install 'splitwatt[papers]'"
            ) from error
    raise PapersMissingError(
        f"{instead_of} only reproduces published results, which is not part of splitwatt: pip install 'splitwatt[papers]'"
    )
