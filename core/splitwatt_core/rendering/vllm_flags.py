"""What is wrong with a vLLM engine's command line, before it is started; and what nobody can say without starting it.

Two rules. Some flags are the cluster's own: it renders them, or an engine with them would not be where the cluster looks for it.
They are refused for every version, by every spelling that is known without its list. The others are held to the list of the
version that the image's tag names (`rendering.command_line`). An image of another name, or of a version that was not recorded,
is refused nothing.

Source: vLLM 0.32, utils/argparse_utils.py (FlexibleArgumentParser) for spellings; config/parallel.py for how many GPUs an
engine takes; NixlConnector's base_worker.py (`_validate_remote_agent_handshake`) for what tensor parallelism may differ by.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from typing import Final

from splitwatt_core.clusters import PAIR, ClusterSpec, SpecError
from splitwatt_core.rendering.command_line import FlagError, KnownFlags, published_version

ENGINE: Final = "vllm"

_RENDERED: Final = "it follows from gpusPerReplica, port and kvTransfer"
_OWN: Final = {
    "--port": _RENDERED,
    "--tensor-parallel-size": _RENDERED,
    "-tp": _RENDERED,
    "--kv-transfer-config": _RENDERED,
    "--model": "it follows from model",
    "--help": "vLLM then serves nothing",
    "-h": "vLLM then serves nothing",
    "--headless": "vLLM then opens no port",
    "--grpc": "vLLM then answers no HTTP",
    "--uds": "vLLM then opens no port",
}
"""The cluster's own flags, and why."""
_DATA: Final = "--data-parallel-size"
_GROUPS: Final = ("--pipeline-parallel-size", "--prefill-context-parallel-size", _DATA)
"""Each multiplies the GPUs that tensor parallelism takes."""
_OUTSIDE: Final = ("--data-parallel-rank", "--data-parallel-start-rank", "--data-parallel-size-local")
"""Of an engine that is one of several in a data-parallel group."""
_TENSOR: Final = "--tensor-parallel-size"
_LEVELS: Final = ("0", "1", "2", "3")
_LEVEL: Final = "--optimization-level"

_PUBLISHED: Final = "vllm/vllm-openai"


def version_of(image: str) -> str | None:
    """Of vLLM; None where the image's name does not say it."""
    return published_version(_PUBLISHED, image)


def refuse_own(args: Sequence[str], *, where: str = "spec.engine.args") -> None:
    """Raises SpecError for a flag that is the cluster's own, as it is written out."""
    for arg in args:
        name = arg.split("=", 1)[0]
        spelled = _dashed(name).split(".", 1)[0]
        if spelled in _OWN:
            raise SpecError(f"{where} must not set {name}; {_OWN[spelled]}")


def refuse(flags: KnownFlags, args: Sequence[str], users: Sequence[str], *, gpus: int, where: str) -> None:
    """`args`: the whole command line behind `vllm serve`; `users`: those of them that are the user's. `gpus`: of one replica.

    Raises SpecError for what this version refuses, for the cluster's own flags under a name cut short, and for an engine that
    takes more than its replica's GPUs.
    """
    try:
        given = flags.given(plain(args))
        mine = flags.given(["model", *plain(users)])
    except FlagError as error:
        raise SpecError(f"{where}: {error}") from error
    for name in mine:
        if name in _OWN:
            raise SpecError(f"{where} must not set {name}; {_OWN[name]}")
    needs = {name: int(given.get(name, 1)) for name in (_TENSOR, *_GROUPS)}
    if any(name in given for name in _OUTSIDE):
        needs[_DATA] = int(given.get("--data-parallel-size-local", 1))
    product = prod(needs.values())
    if product > gpus:
        words = " and ".join(f"{name} {count}" for name, count in needs.items() if count != 1)
        raise SpecError(
            f"{where}: {words} take {product} GPUs, and gpusPerReplica is {gpus}: all GPUs of a replica are its tensor group"
        )


def unjudged(cluster: ClusterSpec) -> list[str]:
    """What cannot be known of its two pools before they run, in sentences."""
    prefill, decode = (cluster.role(role).gpus for role in PAIR)
    if prefill <= decode or cluster.kv_transfer.connector != "NixlConnector":
        return []
    return [
        f"prefill.gpusPerReplica {prefill} is above decode.gpusPerReplica {decode}: NixlConnector then transfers only for a "
        f"model with {prefill} KV heads or more, or with latent attention (MLA); KVTransferVerified will say."
    ]


# --------------------------------------------------------------------------------------------------------------- spelling


def plain(args: Sequence[str]) -> list[str]:
    """As vLLM's parser hands them on to argparse: dashes for underscores, -O3 written out, --flag.key joined to JSON."""
    spelled: list[str] = []
    for at, arg in enumerate(args):
        if arg.startswith("-O") and arg != "-O":
            spelled += [_LEVEL, arg[3:] if arg[2] == "=" else arg[2:]]
        elif arg == "-O" and args[at + 1 : at + 2] and args[at + 1] in _LEVELS:
            spelled.append(_LEVEL)
        else:
            spelled.append(_dashed(arg))
    return _joined(spelled)


def _dashed(arg: str) -> str:
    """Underscores before the first = and the first dot are dashes."""
    if not arg.startswith("--"):
        return arg
    name, is_given, value = arg.partition("=")
    head, dot, keys = name.partition(".")
    return f"{head.replace('_', '-')}{dot}{keys}{is_given}{value}"


def _joined(args: Sequence[str]) -> list[str]:
    """Each --flag.key and its value are one JSON value of --flag at the end. What they say is vLLM's to judge: here it is {}."""
    kept: list[str] = []
    dotted: dict[str, None] = {}
    skipped = False
    for at, arg in enumerate(args):
        if skipped:
            skipped = False
            continue
        name, is_given, _ = arg.partition("=")
        if not arg.startswith("-") or "." not in name:
            kept.append(arg)
            continue
        if not is_given:
            if at + 1 == len(args):
                raise FlagError(f"{arg} takes a value")
            skipped = True
        dotted[name.removesuffix("+").split(".", 1)[0]] = None
    return [*kept, *(word for name in dotted for word in (name, json.dumps({})))]
