"""The command line's own commands by name, as pyproject.toml registers them."""

from __future__ import annotations

import argparse
import tomllib
from importlib import import_module
from pathlib import Path

from splitwatt_cli.main import Command

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text())["project"]
OURS = {n: at for n, at in PROJECT["entry-points"]["splitwatt.commands"].items() if at.startswith("splitwatt_cli.")}


def command(name: str) -> Command:
    module, _, attribute = OURS[name].partition(":")
    found: Command = getattr(import_module(module), attribute)
    return found


def parser_of(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    command(name).add_arguments(parser)
    return parser
