"""Whether an engine takes a command line, by the list of flags that was recorded from its own parser.

The list stands in `recorded/ENGINE-VERSION.json`, one file for each version that was asked (`splitwatt_lab.engine_flags`). From
it the same kind of parser is built that the engine has, so that prefixes, `--flag=value` and values that begin with a dash are
read as it reads them. What is checked: names, how many values, choices, numbers, and that JSON is JSON. What an engine thinks of
a value's content, or of two flags together, it alone knows: a command line that passes here may still be refused there, and one
that is refused here never starts.

An unknown version is no reason to refuse anything: there is no list of it, and none is guessed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, Final, NoReturn

NAMED: Final = 12
"""Choices that one sentence names."""
POSITIONAL: Final = "model"
_NARGS: Final[Mapping[str, str | None]] = {"one": None, "optional": "?", "some": "+", "any": "*"}
_WANTED: Final = {
    "int": "a whole number", "size": "a whole number, or one such as 2k", "float": "a number", "json": "JSON",
    "object": "a JSON object", "text": "a value", "other": "a value",
}  # fmt: skip
_SUFFIXES: Final = "kKmMgGtT"
_FOLD_FROM: Final = "-"


class FlagError(ValueError):
    """A command line that the engine refuses. The message begins with the flag and says what to change."""


@dataclass(frozen=True, slots=True)
class Flag:
    """`names`: the long ones first; `takes`: none, one, optional, some, any. `choices` empty: whatever `kind` allows. `or_none`:
    also the word None. `folded`: any case, and a dash for an underscore."""

    names: tuple[str, ...]
    takes: str
    kind: str = "text"
    choices: tuple[str, ...] = ()
    or_none: bool = False
    folded: bool = False

    @property
    def wanted(self) -> str:
        """What to give it, as the end of a sentence."""
        if self.takes == "none":
            return "takes no value"
        if self.choices:
            more = f" and {len(self.choices) - NAMED} more" if len(self.choices) > NAMED else ""
            return f"takes one of {', '.join(self.choices[:NAMED])}{more}"
        return f"takes {_WANTED[self.kind]}"

    def convert(self, word: str) -> str:
        """The word as the choices are written. Raises ValueError for a value of the wrong kind."""
        if self.or_none and word in ("None", ""):
            return "None"
        match self.kind:
            case "int":
                return str(int(word))
            case "float":
                float(word)
            case "size":
                return str(_size(word))
            case "json":
                json.loads(word)
            case "object":
                if not isinstance(json.loads(word), dict):
                    raise ValueError("no JSON object")
        return word.lower().replace(_FOLD_FROM, "_") if self.folded else word


def _size(word: str) -> int:
    """vLLM's human_readable_int: 2k is 2000, 2K is 2048, 2.5k is 2500; 2.5K is refused."""
    word = word.strip()
    if word[-1:] in tuple(_SUFFIXES):
        number, power = word[:-1], "kmgt".index(word[-1].lower()) + 1
        return int(float(number) * 1000**power) if word[-1].islower() else int(number) * 1024**power
    return int(word)


class KnownFlags:
    """The flags of one version of one engine."""

    def __init__(self, engine: str, version: str, flags: Sequence[Flag], *, positional: bool) -> None:
        """`positional`: one plain word before the flags names the model."""
        self.engine = engine
        self.version = version
        self.by_name: Mapping[str, Flag] = {name: flag for flag in flags for name in flag.names}
        self._parser = _Parser(add_help=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
        if positional:
            self._parser.add_argument(POSITIONAL, nargs="?")
        for flag in flags:
            kept: dict[str, Any] = {"dest": flag.names[0]}
            if flag.takes == "none":
                self._parser.add_argument(*flag.names, action="store_true", **kept)
                continue
            kept |= {"nargs": _NARGS[flag.takes], "type": flag.convert}
            if flag.choices:
                kept["choices"] = (*flag.choices, "None") if flag.or_none else flag.choices
            self._parser.add_argument(*flag.names, **kept)

    def given(self, args: Sequence[str]) -> Mapping[str, Any]:
        """Value of each flag that `args` set, by its first name; a list where it takes several. Raises FlagError."""
        try:
            found, left = self._parser.parse_known_args(list(args))
        except argparse.ArgumentError as error:
            raise FlagError(self._sentence(error)) from error
        if left:
            raise FlagError(self._unknown(left[0]))
        return vars(found)

    def _sentence(self, error: argparse.ArgumentError) -> str:
        name = (error.argument_name or "").split("/")[0]
        flag = self.by_name.get(name)
        if flag is None:
            return error.message
        return f"{name} {flag.wanted}{': write it alone' if flag.takes == 'none' else ''} ({error.message})"

    def _unknown(self, arg: str) -> str:
        name = arg.split("=", 1)[0]
        if not name.startswith("-") or name == "--":
            return f"{arg} belongs to no flag: write it behind one that takes a value, or take it out"
        near = get_close_matches(name, self.by_name, n=1)
        return f"{name} is no flag of {self.engine} {self.version}: {f'did you mean {near[0]}?' if near else 'take it out'}"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """For a prefix of several flags, which older Pythons do not raise as an ArgumentError."""
        raise argparse.ArgumentError(None, message)


_VARIANT: Final = (
    r":v(?P<version>\d+\.\d+\.\d+(?:\.post\d+)?)(?:-(?:x86_64|aarch64|amd64|arm64|cu\d+|ubuntu\d+))*(?:@sha256:[0-9a-f]{64})?"
)


def published_version(repository: str, image: str) -> str | None:
    """The version that the tag of a publisher's image names, on whatever registry. Any other name may be of anything: None."""
    found = re.fullmatch(rf"(?:[^@]*/)?{re.escape(repository)}{_VARIANT}", image)
    return None if found is None else found["version"]


_LABEL: Final = {"vllm": "vLLM", "sglang": "SGLang"}
_RECORDED: Final = files("splitwatt_core.rendering").joinpath("recorded")


@cache
def versions(engine: str) -> tuple[str, ...]:
    """Of which versions there is a list."""
    names = sorted(entry.name for entry in _RECORDED.iterdir())
    return tuple(name.removesuffix(".json").removeprefix(f"{engine}-") for name in names if name.startswith(f"{engine}-"))


@cache
def known(engine: str, version: str) -> KnownFlags | None:
    """None for a version that was not recorded."""
    if version not in versions(engine):
        return None
    raw = json.loads(_RECORDED.joinpath(f"{engine}-{version}.json").read_text(encoding="utf-8"))
    flags = [_flag(row) for row in raw["flags"]]
    return KnownFlags(_LABEL[engine], version, flags, positional=engine == "vllm")


def _flag(row: Mapping[str, Any]) -> Flag:
    return Flag(
        names=tuple(row["names"]),
        takes=row["takes"],
        kind=row.get("kind", "text"),
        choices=tuple(row.get("choices", ())),
        or_none=row.get("orNone", False),
        folded=row.get("folded", False),
    )
