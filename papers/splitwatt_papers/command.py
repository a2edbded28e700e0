"""`splitwatt papers`: the commands that only reproduce published results. The pages below docs/reproduce are `make reproduce`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Final

from splitwatt_sim.forward import Command

from splitwatt_papers.equal_power.command import EqualPowerCommand
from splitwatt_papers.reference.command import ReplayCommand

COMMANDS: Final[Mapping[str, Command]] = {"simulate": ReplayCommand(), "plan": EqualPowerCommand()}


class PapersCommand:
    help = "reproduce published results: Splitwise's designs, and plans at its equal power"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        subparsers = parser.add_subparsers(dest="papers_command", required=True, metavar="COMMAND")
        for name, command in COMMANDS.items():
            command.add_arguments(subparsers.add_parser(name, help=command.help, description=command.help))

    def run(self, args: argparse.Namespace) -> int:
        return COMMANDS[args.papers_command].run(args)


COMMAND = PapersCommand()
