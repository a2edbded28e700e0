"""A real KV cache: SmolLM2-135M reads a text on the CPU, in NumPy, with the weights of its GGUF file.

The layers are Llama's as llama.cpp keeps them (rotary pairs side by side; turned back here, for vLLM has the halves). Text is cut
into the longest tokens that fit and not by the tokenizer's merges: real tokens, now and then others than the model was taught.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from splitwatt_memory.files.gguf import strings_of, tensors_of
from splitwatt_memory.files.tensor import Tensor

Array = npt.NDArray[np.float32]
LAYERS: Final = 30
HEADS: Final = 9
KV_HEADS: Final = 3
HEAD_DIM: Final = 64
FFN: Final = 1536
THETA: Final = 100_000.0
EPSILON: Final = 1e-5
VOCABULARY: Final = "tokenizer.ggml.tokens"


@dataclass(frozen=True, slots=True)
class KvCache:
    """`keys`, `values`: (layers, tokens, KV heads, head size) as fp32; a token's heads lie together, as in vLLM's cache.
    `guessed`: share of the tokens that the model, if all its layers were asked, would have said next itself."""

    keys: Array
    values: Array
    guessed: float


def kv_cache(path: Path, text: str, tokens: int, layers: int = LAYERS) -> KvCache:
    """Of the text's first tokens, in the first layers. Raises ValueError where the text is too short; TensorFileError."""
    held = {tensor.name: tensor for tensor in tensors_of(path)}
    ids = token_ids(text, strings_of(path, VOCABULARY))[:tokens]
    if len(ids) < tokens:
        raise ValueError(f"the text has {len(ids)} tokens, {tokens} are wanted: give a longer one")
    width = HEADS * HEAD_DIM
    embedding = values_of(held["token_embd.weight"]).reshape(-1, width)
    hidden = embedding[ids]
    turns = np.arange(tokens)[:, None] * THETA ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    cos, sin = (each.astype(np.float32)[:, None, :] for each in (np.cos(turns), np.sin(turns)))
    keys, values = [], []
    for layer in range(layers):

        def weight(name: str, inputs: int = width, at: int = layer) -> Array:
            return values_of(held[f"blk.{at}.{name}.weight"]).reshape(-1, inputs)

        here = _norm(hidden, weight("attn_norm"))
        query, key = (
            _turned((here @ weight(name).T).reshape(tokens, heads, HEAD_DIM), cos, sin)
            for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS))
        )
        value = (here @ weight("attn_v").T).reshape(tokens, KV_HEADS, HEAD_DIM)
        hidden = hidden + _attended(query, key, value) @ weight("attn_output").T
        here = _norm(hidden, weight("ffn_norm"))
        gate, up = (here @ weight(name).T for name in ("ffn_gate", "ffn_up"))
        hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ weight("ffn_down", FFN).T
        keys.append(np.concatenate((key[..., 0::2], key[..., 1::2]), axis=-1))
        values.append(value)
    said = _norm(hidden[:-1], values_of(held["output_norm.weight"])) @ embedding.T
    return KvCache(np.stack(keys), np.stack(values), float((said.argmax(1) == ids[1:]).mean()))


def token_ids(text: str, vocabulary: list[str]) -> list[int]:
    """The longest token that fits, again and again; what none fits is left out."""
    known = {token: number for number, token in reversed(list(enumerate(vocabulary)))}
    longest = max(map(len, known))
    coded = text.replace(" ", "\u0120").replace("\n", "\u010a")
    found, at = [], 0
    while at < len(coded):
        length = next((n for n in range(min(longest, len(coded) - at), 0, -1) if coded[at : at + n] in known), 0)
        if length:
            found.append(known[coded[at : at + length]])
        at += max(length, 1)
    return found


def values_of(tensor: Tensor) -> Array:
    """Its values as fp32, of Q4_1, Q8_0 and fp32 (ggml-quants.c)."""
    raw = np.frombuffer(b"".join(tensor.blocks()), np.uint8)
    if tensor.held == "fp32":
        return raw.view("<f4")
    block = {"Q4_1": 20, "Q8_0": 34}[tensor.held]
    rows = raw.reshape(-1, block)
    scale = rows[:, :2].copy().view("<f2").astype(np.float32)
    if tensor.held == "Q8_0":
        return (scale * rows[:, 2:].view(np.int8)).ravel()
    least = rows[:, 2:4].copy().view("<f2").astype(np.float32)
    nibbles = np.concatenate((rows[:, 4:] & 15, rows[:, 4:] >> 4), axis=1)
    found: Array = (scale * nibbles + least).ravel()
    return found


def _norm(hidden: Array, weight: Array) -> Array:
    found: Array = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + np.float32(EPSILON)) * weight
    return found


def _turned(heads: Array, cos: Array, sin: Array) -> Array:
    """By each token's place; pairs lie side by side."""
    even, odd = heads[..., 0::2], heads[..., 1::2]
    found: Any = np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1)
    return np.asarray(found.reshape(heads.shape))


def _attended(query: Array, key: Array, value: Array) -> Array:
    """Of each head over what came before; `HEADS // KV_HEADS` heads share keys and values."""
    tokens = len(query)
    ahead = np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1)
    found = np.empty_like(query)
    for head in range(HEADS):
        shared = head * KV_HEADS // HEADS
        scores = query[:, head] @ key[:, shared].T / np.float32(HEAD_DIM**0.5) + ahead
        share = np.exp(scores - scores.max(1, keepdims=True))
        found[:, head] = share / share.sum(1, keepdims=True) @ value[:, shared]
    return found.reshape(tokens, -1)
