"""The command line of a pool's engine, held to what its engine's version takes: as it is after the user's template."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from splitwatt_core.clusters import ClusterSpec, EngineType, Role
from splitwatt_core.rendering import sglang, vllm_flags
from splitwatt_core.rendering.command_line import known, versions
from splitwatt_core.rendering.engine import ENGINE_CONTAINER, VLLM_COMMAND
from splitwatt_core.rendering.objects import Manifest

PUBLISHED: Final = {vllm_flags.ENGINE: "vllm/vllm-openai", sglang.ENGINE: "lmsysorg/sglang"}
"""Whose tags name the version."""


def check(cluster: ClusterSpec, role: Role, plain: Manifest, template: Manifest) -> None:
    """`plain`: the pod's template as it is rendered; `template`: with the user's laid over it. Raises SpecError for what would
    never start."""
    container = _engine(template)
    args, image = container.get("args"), str(container.get("image", ""))
    if not isinstance(args, list) or not all(isinstance(arg, str) for arg in args):
        return
    ours = args == _engine(plain).get("args")
    where, users = ("spec.engine.args", cluster.engine.args) if ours else (f"spec.{role.value}.template", ())
    gpus = cluster.role(role).gpus
    match cluster.engine.type:
        case EngineType.VLLM if container.get("command") == VLLM_COMMAND:
            if (flags := known(vllm_flags.ENGINE, vllm_flags.version_of(image) or "")) is not None:
                vllm_flags.refuse(flags, args, users, gpus=gpus, where=where)
        case EngineType.SGLANG if container.get("command") == sglang.COMMAND:
            if (flags := known(sglang.ENGINE, sglang.version_of(image) or "")) is not None:
                sglang.refuse(flags, args, users, gpus=gpus, where=where)


def unjudged(cluster: ClusterSpec, templates: Sequence[Manifest]) -> list[str]:
    """What cannot be known before the engines run, in sentences. `templates`: of both pools, as in `check`."""
    images = sorted({str(_engine(template).get("image", "")) for template in templates})
    match cluster.engine.type:
        case EngineType.VLLM:
            return [*_unlisted(vllm_flags.ENGINE, images, vllm_flags.version_of), *vllm_flags.unjudged(cluster)]
        case EngineType.SGLANG:
            return _unlisted(sglang.ENGINE, images, sglang.version_of)
        case _:
            return []


def _unlisted(engine: str, images: Sequence[str], version_of: Callable[[str], str | None]) -> list[str]:
    listed = f"those of {PUBLISHED[engine]} {', '.join(versions(engine))} are"
    return [
        f"The flags of {image} are not known ({listed}): spec.engine.args were not checked."
        for image in images
        if known(engine, version_of(image) or "") is None
    ]


def _engine(template: Manifest) -> Mapping[str, Any]:
    containers = (template.get("spec") or {}).get("containers") or ()
    return next((each for each in containers if each.get("name") == ENGINE_CONTAINER), {})
