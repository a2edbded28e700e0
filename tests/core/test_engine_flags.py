"""Command lines that an engine's own parser judged, judged by its recorded list; and what a cluster is told of them."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from splitwatt_api.convert_cluster import cluster_from_wire
from splitwatt_core.clusters import ClusterSpec, EngineSpec, EngineType, KvTransferSpec, Role, RoleSpec, SpecError
from splitwatt_core.rendering import vllm_flags
from splitwatt_core.rendering.command_line import FlagError, KnownFlags, known, published_version, versions
from splitwatt_core.rendering.engine import engine_args
from splitwatt_core.rendering.render import RenderContext, render, unjudged
from support.some import some

REPOSITORY = Path(__file__).parents[2]
RECORDED = Path(__file__).with_name("recorded")
VLLM_PYTHON = os.environ.get("SPLITWATT_VLLM_PYTHON", "")
CONTEXT = RenderContext()
CONTENT = ("--lora-modules", "--lora_modules", "--config")
"""What vLLM thinks of these it knows when it acts on them, or from a file."""
MOVED = "--model"
"""It makes this one the model that it serves, whatever stands behind it: the cluster's own, and refused in any case."""


def flags_of(version: str) -> KnownFlags:
    found = known("vllm", version)
    assert found is not None
    return found


def taken(flags: KnownFlags, args: list[str]) -> bool:
    try:
        flags.given(vllm_flags.plain(["org/model", *args]))
    except FlagError:
        return False
    return True


def cluster(*args: str, **changes: Any) -> ClusterSpec:
    spec = ClusterSpec(
        namespace="serving", name="chat", uid="u", generation=1, model="org/model",
        engine=EngineSpec(EngineType.VLLM, args=args), prefill=RoleSpec(1, 8), decode=RoleSpec(1, 8),
    )  # fmt: skip
    return replace(spec, **changes)


def refusal(spec: ClusterSpec) -> str:
    with pytest.raises(SpecError) as caught:
        render(spec, CONTEXT)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- as vLLM's parser judged


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0"])
def test_nothing_is_refused_that_vllm_takes_and_next_to_nothing_taken_that_it_refuses(version: str) -> None:
    rows = json.loads((RECORDED / f"vllm-{version}-verdicts.json").read_text(encoding="utf-8"))["verdicts"]
    flags, agreed, wrong = flags_of(version), 0, []
    for args, accepted in some(rows):
        if any(arg.split("=")[0] == MOVED for arg in args):
            continue
        mine = taken(flags, args)
        if mine is accepted:
            agreed += 1
        elif accepted or not any(arg.split("=")[0].split(".")[0] in CONTENT or "." in arg.split("=")[0] for arg in args):
            wrong.append((args, accepted))
    assert not wrong
    assert agreed > 0.97 * len(rows)
    assert 500 < sum(accepted for _, accepted in rows) < len(rows) - 500, "half of them are wrong on purpose"


@pytest.mark.skipif(not VLLM_PYTHON, reason="not run: SPLITWATT_VLLM_PYTHON names no Python that has vLLM 0.32.0")
def test_vllms_own_parser_takes_what_is_rendered() -> None:
    lines = [engine_args(spec, role) for spec in some(of_examples()) for role in Role]
    program = (
        "import json, sys\nfrom vllm.entrypoints.cli.serve import cmd_init\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\nroot = FlexibleArgumentParser(prog='vllm')\n"
        "cmd_init()[0].subparser_init(root.add_subparsers(dest='subparser'))\n"
        "for line in json.load(sys.stdin): root.parse_args(['serve', *line])\nprint('all taken')\n"
    )
    environment = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [VLLM_PYTHON, "-c", program], input=json.dumps(lines), env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.endswith("all taken\n"), done.stderr[-3000:]


def of_examples() -> list[ClusterSpec]:
    """Every InferenceCluster below examples/, and the ones whose arguments the docs show; as if their engines were vLLM."""
    found = []
    for file in sorted((REPOSITORY / "examples").glob("*.yaml")):
        for obj in yaml.safe_load_all(file.read_text(encoding="utf-8")):
            if obj and obj["kind"] == "InferenceCluster":
                obj["metadata"] |= {"namespace": "serving", "uid": "u", "generation": 1}
                spec = cluster_from_wire(obj)
                found.append(replace(spec, engine=replace(spec.engine, type=EngineType.VLLM, image=None)))
    assert found
    extra = {"kv_lease_duration": 60, "enable_permute_local_kv": True}
    return [
        *found,
        cluster("--max-model-len=8192", "--served-model-name", "a", "b", "-O3", "--kv-events-config.publisher", "zmq"),
        cluster(prefill=RoleSpec(1, 8), decode=RoleSpec(1, 4), kv_transfer=KvTransferSpec(extra_config=extra, recompute=False)),
    ]


@pytest.mark.parametrize("version", ["0.32.0", "0.33.0"])
def test_what_is_rendered_is_taken_by_every_version_that_is_known(version: str) -> None:
    for spec in some(of_examples()):
        for role in Role:
            assert taken(flags_of(version), engine_args(spec, role)[1:]), (spec.name, role)
            render(replace(spec, engine=replace(spec.engine, image=f"vllm/vllm-openai:v{version}")), CONTEXT)


# ----------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--max-model-length=8192",), "--max-model-length is no flag of vLLM 0.32.0: did you mean --max-model-len?"),
        (("--zzz",), "--zzz is no flag of vLLM 0.32.0: take it out"),
        (("--gpu_memory_utilisation", "0.9"), "--gpu-memory-utilisation is no flag of vLLM 0.32.0: did you mean --gpu-mem"),
        (("--max-model-len",), "--max-model-len takes a whole number"),
        (("--max-num-seqs=many",), "--max-num-seqs takes a whole number"),
        (("--enforce-eager=true",), "--enforce-eager takes no value: write it alone"),
        (("--enforce-eager", "true"), "true belongs to no flag"),
        (("--dtype", "fp8"), "--dtype takes one of auto, bfloat16, float, float16, float32, half"),
        (("--compilation-config", "3"), "--compilation-config takes a JSON object"),
        (("--max", "3"), "could match"),
        (("--tensor-parallel", "4"), "must not set --tensor-parallel-size; it follows from gpusPerReplica"),
        (("--tensor_parallel_size=4",), "must not set --tensor_parallel_size; it follows from gpusPerReplica"),
        (("--kv_transfer_config.kv_role", "kv_both"), "must not set --kv_transfer_config.kv_role"),
        (("--model", "other"), "must not set --model; it follows from model"),
        (("--headless",), "must not set --headless; vLLM then opens no port"),
        (("-pp", "2"), "--tensor-parallel-size 8 and --pipeline-parallel-size 2 take 16 GPUs, and gpusPerReplica is 8"),
        (("-dp", "2"), "--tensor-parallel-size 8 and --data-parallel-size 2 take 16 GPUs"),
        (("--optimization-level.x",), "--optimization-level.x takes a value"),
    ],
)  # fmt: skip
def test_a_wrong_argument_gets_a_sentence(args: tuple[str, ...], says: str) -> None:
    sentence = refusal(cluster(*args))
    assert sentence.startswith("spec.engine.args") and says in sentence
    assert "\n" not in sentence


@pytest.mark.parametrize(
    "args",
    [
        ("--max_model_len", "8k"), ("--no-enable-prefix-caching",), ("-O3",), ("-O", "2"), ("-cc.mode", "3"),
        ("--compilation-config.mode=3",), ("--hf-token",), ("--served-model-name", "a", "b"), ("--max-model-len", "-1"),
        ("--data-parallel-size", "4", "--data-parallel-rank", "0"),
    ],
)  # fmt: skip
def test_what_vllm_takes_is_taken_by_every_spelling(args: tuple[str, ...]) -> None:
    render(cluster(*args), CONTEXT)


def test_an_overlay_is_judged_as_it_will_run() -> None:
    def laid(container: dict[str, Any]) -> ClusterSpec:
        overlay = {"spec": {"containers": [{"name": "engine", **container}]}}
        return cluster(prefill=RoleSpec(1, 8, template=overlay))

    assert refusal(laid({"args": ["org/model", "--nope"]})).startswith("spec.prefill.template: --nope is no flag")
    for free in ({"args": ["--nope"], "command": ["bash", "-c"]}, {"args": ["--nope"], "image": "mine:1"}):
        render(laid(free), CONTEXT)


# ------------------------------------------------------------------------------------------------- which version, and none


@pytest.mark.parametrize(
    ("image", "version"),
    [
        ("vllm/vllm-openai:v0.32.0", "0.32.0"), ("docker.io/vllm/vllm-openai:v0.33.0-cu129", "0.33.0"),
        ("mirror.example:5000/a/vllm/vllm-openai:v0.32.0-aarch64@sha256:" + "a" * 64, "0.32.0"),
        ("vllm/vllm-openai:latest", None), ("vllm/vllm-openai:v0.32.0-patched", None), ("mine/vllm-openai:v0.32.0", None),
        ("vllm/vllm-openai", None), ("vllm/vllm-openai@sha256:" + "a" * 64, None), ("xvllm/vllm-openai:v0.32.0", None),
    ],
)  # fmt: skip
def test_a_version_is_read_from_the_publishers_tag_and_never_guessed(image: str, version: str | None) -> None:
    assert published_version("vllm/vllm-openai", image) == version


def test_of_an_unknown_version_nothing_is_refused_but_the_clusters_own_flags() -> None:
    for image in ("mine:1", "vllm/vllm-openai:v0.1.0", "vllm/vllm-openai:v9.0.0"):
        spec = cluster("--flag-of-the-future", "-pp", "2")
        spec = replace(spec, engine=replace(spec.engine, image=image))
        render(spec, CONTEXT)
        [told] = unjudged(spec, CONTEXT)
        assert told.startswith(f"The flags of {image} are not known") and all(version in told for version in versions("vllm"))
        own = replace(spec, engine=replace(spec.engine, args=("--port=1",)))
        assert "must not set --port" in refusal(own)
    assert not unjudged(cluster(), CONTEXT)
    assert not unjudged(cluster(engine=EngineSpec(EngineType.EMULATED, image="mine:1")), CONTEXT)


def test_more_prefill_than_decode_gpus_is_said_to_depend_on_the_model() -> None:
    wide, narrow = RoleSpec(1, 8), RoleSpec(1, 4)
    [told] = unjudged(cluster(prefill=wide, decode=narrow), CONTEXT)
    assert "a model with 8 KV heads or more" in told
    assert not unjudged(cluster(prefill=narrow, decode=wide), CONTEXT)
    assert not unjudged(cluster(prefill=wide, decode=narrow, kv_transfer=KvTransferSpec("MooncakeConnector")), CONTEXT)


# ------------------------------------------------------------------------------------------------------------- properties

WORDS = st.one_of(st.sampled_from(sorted(flags_of("0.32.0").by_name)), st.text(min_size=0, max_size=12))


@given(st.lists(WORDS, max_size=8))
def test_any_words_are_taken_or_get_one_sentence(args: list[str]) -> None:
    try:
        render(cluster(*args), CONTEXT)
    except SpecError as error:
        assert str(error).startswith("spec.engine.args")


@given(st.sampled_from(sorted(flags_of("0.32.0").by_name)), st.data())
def test_underscores_and_a_value_behind_an_equals_sign_change_nothing(name: str, data: st.DataObject) -> None:
    flag = flags_of("0.32.0").by_name[name]
    if not name.startswith("--") or flag.takes == "none":
        return
    value = data.draw(st.sampled_from(flag.choices) if flag.choices else st.sampled_from(["1", "{}", "0.5", "word", "2k"]))
    spelled = f"--{name[2:].replace('-', '_')}"
    verdicts = {taken(flags_of("0.32.0"), args) for args in ([name, value], [f"{name}={value}"], [spelled, value])}
    assert len(verdicts) == 1
    if flag.choices:
        assert verdicts == {True}


@given(st.sampled_from(sorted(flags_of("0.32.0").by_name)), st.text(alphabet="abcdefgh", min_size=1, max_size=3))
def test_a_misspelt_flag_is_never_taken(name: str, tail: str) -> None:
    flags = flags_of("0.32.0")
    if not name.startswith("--"):
        return
    wrong = f"{name}-{tail}"
    if not any(known_name.startswith(wrong) for known_name in flags.by_name):
        assert not taken(flags, [wrong])
