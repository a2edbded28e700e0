"""Records the flags of one version of vLLM or SGLang from its own parser, for `core/splitwatt_core/rendering/recorded`.

Runs by path in an environment that has the engine, which need not have Splitwatt: nothing of ours is imported.

    VLLM_TARGET_DEVICE=cpu python sim/splitwatt_lab/engine_flags/record.py vllm core/splitwatt_core/rendering/recorded \
        --verdicts tests/core/recorded

`VLLM_TARGET_DEVICE=cpu` lets vLLM's official wheel build its parser where no GPU is. What an argument is converted by is a
function: which kind it is, is found by giving it words. With `--verdicts` command lines are written too, right ones and wrong
ones, each with what the engine's own parser said of it: what our rule is held to where no engine is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any, Final

MODEL: Final = "org/model"
SEED: Final = 32
PAIRS: Final = 150
"""Command lines of two flags."""
NONE: Final = "None"
WORDS: Final = {"int": "3", "float": "0.5", "size": "2k", "json": "{}", "object": "{}", "text": "word"}
"""A right value of each kind."""

KINDS: Final = (
    ("text", "x!", ""), ("size", "2k", "2.5"), ("int", "3", "2.5"), ("float", "2.5", "{}"), ("object", "{}", "2.5"),
    ("json", "{}", ""),
)  # fmt: skip
"""Each by a word that is taken and one that is not; the first that fits."""

Parse = Callable[[Sequence[str]], object]


def vllm() -> tuple[argparse.ArgumentParser, str, Parse]:
    root = import_module("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm")
    serve = import_module("vllm.entrypoints.cli.serve").cmd_init()[0]
    parser: argparse.ArgumentParser = serve.subparser_init(root.add_subparsers(dest="subparser"))
    return parser, import_module("vllm").__version__, lambda args: root.parse_args(["serve", *args])


def sglang() -> tuple[argparse.ArgumentParser, str, Parse]:
    parser = argparse.ArgumentParser(prog="sglang")
    import_module("sglang.srt.server_args").ServerArgs.add_cli_args(parser)
    return parser, import_module("sglang").__version__, parser.parse_args


ENGINES: Final[Mapping[str, Callable[[], tuple[argparse.ArgumentParser, str, Parse]]]] = {"vllm": vllm, "sglang": sglang}


# ------------------------------------------------------------------------------------------------------------------ flags


def recorded(action: argparse.Action) -> dict[str, Any]:
    """One flag: its names, how many values it takes, of which kind, and which alone."""
    names = sorted(action.option_strings, key=lambda name: (not name.startswith("--"), action.option_strings.index(name)))
    if action.nargs == 0:
        return {"names": names, "takes": "none"}
    takes = {None: "one", "?": "optional", "+": "some", "*": "any"}[action.nargs]  # type: ignore[index]
    if type(action).__name__ == "BooleanAction" and action.nargs is None:
        takes = "one"
    flag: dict[str, Any] = {"names": names, "takes": takes, "kind": kind(action)}
    if takes_word(action, NONE) and flag["kind"] != "text":
        flag["orNone"] = True
    if action.choices is not None:
        flag["choices"] = sorted(str(choice) for choice in action.choices)
        if takes_word(action, "A-b") and _converted(action, "A-b") == "a_b":
            flag["folded"] = True
    return flag


def kind(action: argparse.Action) -> str:
    """By what it takes and what it does not."""
    for name, yes, no in KINDS:
        if takes_word(action, yes) and not (no and takes_word(action, no)):
            return name
    return "other"


def takes_word(action: argparse.Action, word: str) -> bool:
    try:
        _converted(action, word)
    except Exception:  # noqa: BLE001  # whatever an engine's own function raises: argparse would refuse or fall over it
        return False
    return True


def _converted(action: argparse.Action, word: str) -> object:
    convert: Any = action.type or str
    return convert(word)


# --------------------------------------------------------------------------------------------------------------- verdicts


def command_lines(flags: Sequence[dict[str, Any]], chance: random.Random) -> list[list[str]]:
    """Right ones and wrong ones, behind the model."""
    lines: list[list[str]] = [["stray"], ["--"], ["--no-such-flag"], ["--no-such-flag=1"], ["-O3"], ["-O", "2"], ["-O=1"], ["-O"]]
    for flag in flags:
        lines += _of(flag, chance)
    right = [line for flag in flags for line in _right(flag)]
    return lines + [[*chance.choice(right), *chance.choice(lines)] for _ in range(PAIRS)]


def _right(flag: dict[str, Any]) -> list[list[str]]:
    name = flag["names"][0]
    if flag["takes"] == "none":
        return [[each] for each in flag["names"] if each not in ("-h", "--help")]
    value = flag["choices"][0] if "choices" in flag else WORDS.get(flag["kind"])
    return [] if value is None else [[name, value], [f"{name}={value}"]]


def _of(flag: dict[str, Any], chance: random.Random) -> list[list[str]]:
    name, right = flag["names"][0], _right(flag)
    if not right:
        return []
    typo = name[:-2] + name[-1] + name[-2]
    if flag["takes"] == "none":
        wrong = [[f"{name}=true"], [name, "true"]]
    else:
        wrong = [[name], [name, "--enforce-eager"], [name, "x!"], [name, "-1"], [name, "2.5"], [name, NONE], [name, "a", "b"]]
    if flag.get("kind") in ("json", "object"):
        wrong += [
            [f"{name}.key", "1"],
            [f"{name}.key=1"],
            [f"{name}.key"],
            [f"{name.replace('-', '_').replace('__', '--', 1)}.key", "1"],
        ]
    if flag.get("folded"):
        wrong.append([name, flag["choices"][0].upper().replace("_", "-")])
    spelled = [name[0:2] + name[2:].replace("-", "_"), name[: chance.randrange(3, max(4, len(name)))], typo]
    wrong += [[each, *right[0][1:]] for each in spelled]
    return [chance.choice(right), *chance.sample(wrong, min(3, len(wrong)))]


def accepted(parse: Parse, args: Sequence[str]) -> bool:
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            parse(args)
        except (Exception, SystemExit):  # noqa: BLE001  # a refusal, or a parser that falls over: no engine either way
            return False
    return True


# ------------------------------------------------------------------------------------------------------------------- main


def _rows(head: dict[str, Any], name: str, rows: Sequence[object]) -> str:
    """JSON with one row a line, so that a change between versions can be read."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    return f'{json.dumps(head, indent=1)[:-2]},\n "{name}": [\n{lines}\n ]\n}}\n'


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("engine", choices=sorted(ENGINES))
    parser.add_argument("into", type=Path)
    parser.add_argument("--verdicts", type=Path)
    given = parser.parse_args()
    engine, version, parse = ENGINES[given.engine]()
    flags = [recorded(action) for action in engine._actions if action.option_strings]
    stem = f"{given.engine}-{version}"
    head = {"engine": given.engine, "version": version, "recorded": datetime.now(UTC).date().isoformat()}
    head["by"] = f"sim/splitwatt_lab/engine_flags/record.py {given.engine}, from the parser of its wheel on PyPI"
    flags.sort(key=lambda flag: flag["names"])
    (given.into / f"{stem}.json").write_text(_rows(head, "flags", flags))
    if given.verdicts is not None:
        model = [MODEL] if given.engine == "vllm" else ["--model-path", MODEL]
        lines = command_lines(flags, random.Random(SEED))
        rows = [[line, accepted(parse, [*model, *line])] for line in lines]
        (given.verdicts / f"{stem}-verdicts.json").write_text(_rows(head, "verdicts", rows))
    sys.stdout.write(f"{stem}: {len(flags)} flags\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
