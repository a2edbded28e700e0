"""The paper's figures beside the rules, its study on made-up programs, and real tensors from PyPI's packages."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from splitwatt_memory.files.gguf import strings_of
from splitwatt_memory.files.tensor import TensorFileError
from splitwatt_memory.reproduce import page
from splitwatt_memory.reproduce.hpc import PROGRAMS, SNAPSHOTS
from splitwatt_memory.reproduce.llama import VOCABULARY, KvCache, kv_cache, token_ids
from splitwatt_memory.reproduce.real import BF16, as_bf16, coded, weights_of
from splitwatt_memory.reproduce.samples import MINILM, SILERO, SMOLLM2, SampleError, ensure
from splitwatt_memory.reproduce.study import FIG12, FIG12_WITHIN, fig12, moments_of, studied
from splitwatt_memory.reproduce.training import NETWORKS
from splitwatt_memory.targets import chosen, selected
from splitwatt_memory.values import TYPES

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reproduce" / "buddy.md"
LAYERS, TOKENS = 30, 512


@pytest.mark.parametrize("link", FIG12)
def test_the_rule_meets_figure_12(link: int) -> None:
    assert fig12(link) == pytest.approx(FIG12[link], rel=FIG12_WITHIN)


@pytest.mark.parametrize("name", PROGRAMS)
def test_hpc_like_programs_keep_the_bound(name: str) -> None:
    moments = moments_of(PROGRAMS[name](), "bpc")
    one = studied(moments)
    assert all(len(row) == SNAPSHOTS for row in moments.values())
    assert 1.2 < one.each.target_ratio <= one.final.target_ratio < 4
    assert one.final.overflow_fraction <= 0.3


def test_zeros_win_more_than_bpc_where_relu_left_them() -> None:
    snapshots = [dict(snapshot) for snapshot in NETWORKS["CNN, batch-normalised"]()]
    bpc, zvc = (selected(moments_of(snapshots, codec)) for codec in ("bpc", "zvc"))
    for name in ("conv1 ReLU map", "conv2 ReLU map"):
        assert bpc[name].ratio == 1
        assert zvc[name].device_bytes == 96 and zvc[name].overflow_fraction <= 0.08
    assert {zvc[name].ratio for name in zvc if "weights" in name or "momentum" in name} == {1.0}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return ensure(SMOLLM2)


@pytest.fixture(scope="module")
def cache(smollm2: Path) -> KvCache:
    return kv_cache(smollm2, (ROOT / "LICENSE").read_text(encoding="utf-8"), TOKENS, LAYERS)


def test_bf16_weights_are_what_exponents_compress_and_bpc_does_not() -> None:
    for sample, most, least_bytes in ((MINILM, 0.005, 500_000), (SILERO, 0.02, 50_000)):
        one = coded(weights_of(ensure(sample), BF16, least_bytes)[:4], BF16)
        assert one.target("bpc").ratio == one.target("zvc").ratio == 1
        assert one.target("exponent").device_bytes == 96 and one.target("exponent").overflow_fraction <= most
    for wide in ("fp32", "fp16"):
        one = coded(weights_of(ensure(MINILM), TYPES[wide])[:4], TYPES[wide])
        assert {one.target(codec).ratio for codec in one.sizes} == {1.0}


def test_the_cache_is_a_working_models(cache: KvCache) -> None:
    """A wrong rotation, a wrong layer or a wrong weight guesses next to nothing."""
    assert cache.keys.shape == cache.values.shape == (LAYERS, TOKENS, 3, 64)
    assert cache.guessed > 0.25


def test_kv_caches_in_bf16(cache: KvCache) -> None:
    for values, most in ((cache.keys, 0.005), (cache.values, 0.06)):
        one = coded([as_bf16(values)], BF16)
        assert one.target("bpc").ratio == one.target("zvc").ratio == 1
        assert one.target("exponent").device_bytes == 96 and one.target("exponent").overflow_fraction <= most
    int8 = np.rint(cache.keys / np.abs(cache.keys).max((1, 3), keepdims=True) * 127).astype(np.int8)
    assert coded([int8.tobytes()], TYPES["int8"]).target("bpc").ratio == 1


def test_tokens_are_the_longest_that_fit(smollm2: Path) -> None:
    vocabulary = strings_of(smollm2, VOCABULARY)
    ids = token_ids("The license is here.\n", vocabulary)
    assert "".join(vocabulary[each] for each in ids) == "The\u0120license\u0120is\u0120here.\u010a" and len(ids) <= 7
    with pytest.raises(TensorFileError, match="no list of texts named nowhere"):
        strings_of(smollm2, "nowhere")
    with pytest.raises(ValueError, match="give a longer one"):
        kv_cache(smollm2, "short", 64)


def test_a_package_that_is_not_there_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    into = tmp_path / "splitwatt" / "tensors"
    into.mkdir(parents=True)
    (into / "silero_vad-6.2.3-py3-none-any.whl").write_bytes(b"no archive")
    with pytest.raises(SampleError, match="delete it, it is fetched again"):
        ensure(SILERO)


def test_the_page_has_what_these_tests_say() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page.link_table() in text, "run make reproduce-buddy"
    for name in ("study", "own links", "today", "guessed"):
        assert re.search(rf"<!-- figures: {name} -->\n\n[|O]", text), "run make reproduce-buddy"
    assert "BPC does not compress the tensors of modern LLMs" in text
    with pytest.raises(ValueError, match="once"):
        page.filled("nothing", {"links": ""})
    assert chosen([coded([bytes(128)], TYPES["int8"]).sizes["bpc"]]).ratio == 16
