"""A small CNN trained in NumPy, and ten snapshots of the allocations that a framework would hold for it.

Two blocks of convolution, with or without batch normalisation, ReLU and pooling, then a dense layer; SGD with momentum on made-up
images of ten classes. All fp32, as in 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from splitwatt_memory.reproduce.hpc import SNAPSHOTS, Snapshot

Array = npt.NDArray[Any]
SIDE: Final = 24
CLASSES: Final = 10
CHANNELS: Final = (1, 16, 32)
BATCH: Final = 48
STEPS_BETWEEN: Final = 4
RATE: Final = 0.02
MOMENTUM: Final = 0.9


def _columns(image: Array) -> Array:
    """(n, c, h, w) as the (n h w, 9 c) that a convolution multiplies, padded by one."""
    windows = sliding_window_view(np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
    return np.ascontiguousarray(windows.transpose(0, 2, 3, 1, 4, 5)).reshape(-1, image.shape[1] * 9)


def _convolved(image: Array, weight: Array) -> tuple[Array, Array]:
    columns = _columns(image)
    n, _, h, w = image.shape
    return (columns @ weight.T).reshape(n, h, w, -1).transpose(0, 3, 1, 2).copy(), columns


def _back_through(grad: Array, weight: Array) -> Array:
    """Gradient of the image: a convolution with the kernel turned round."""
    out, channels = weight.shape[0], weight.shape[1] // 9
    turned = weight.reshape(out, channels, 3, 3)[:, :, ::-1, ::-1].transpose(1, 0, 2, 3).reshape(channels, out * 9)
    return _convolved(grad, np.ascontiguousarray(turned))[0]


def _pooled(image: Array) -> tuple[Array, Array]:
    """Largest of each 2 x 2, and where it was."""
    n, c, h, w = image.shape
    parts = image.reshape(n, c, h // 2, 2, w // 2, 2)
    found = parts.max((3, 5), keepdims=True)
    return found.reshape(n, c, h // 2, w // 2), ((parts == found) & (parts > 0)).astype(np.float32)


def cnn(normalised: bool) -> Iterator[Snapshot]:
    """`normalised`: with batch normalisation, as networks after 2015 have it."""
    rng = np.random.default_rng(3)
    scenes = rng.normal(0, 1, (CLASSES, 1, SIDE, SIDE)).astype(np.float32)
    dense_in = CHANNELS[2] * (SIDE // 4) ** 2
    shapes = {"conv1": (CHANNELS[1], 9), "conv2": (CHANNELS[2], CHANNELS[1] * 9), "dense": (CLASSES, dense_in)}
    weights: dict[str, Array] = {k: rng.normal(0, (2 / s[1]) ** 0.5, s).astype(np.float32) for k, s in shapes.items()}
    speeds: dict[str, Array] = {k: np.zeros(s, np.float32) for k, s in shapes.items()}
    for _ in range(SNAPSHOTS):
        for _ in range(STEPS_BETWEEN):
            label = rng.integers(0, CLASSES, BATCH)
            image = np.maximum(scenes[label] + rng.normal(0, 0.7, (BATCH, 1, SIDE, SIDE)).astype(np.float32), 0)
            held, grads = _step(image, label, weights, normalised)
            for name, grad in grads.items():
                speeds[name] = MOMENTUM * speeds[name] - np.float32(RATE) * grad
                weights[name] = weights[name] + speeds[name]
        yield {
            "images": image, **held,
            **{f"{name} {what}": each for name in shapes
               for what, each in (("weights", weights[name]), ("momentum", speeds[name]), ("gradient", grads[name]))},
        }  # fmt: skip


def _step(
    image: Array, label: Array, weights: Mapping[str, Array], normalised: bool
) -> tuple[dict[str, Array], dict[str, Array]]:
    """What is held at the end of one step, and the gradients."""
    held: dict[str, Array] = {}
    grads: dict[str, Array] = {}
    kept: list[tuple[str, Array, Array, Array, Array]] = []
    here = image
    for name in ("conv1", "conv2"):
        out, columns = _convolved(here, weights[name])
        scale = np.ones((1, out.shape[1], 1, 1), np.float32)
        if normalised:
            held[f"{name} output"] = out
            scale = 1 / np.sqrt(out.var((0, 2, 3), keepdims=True) + np.float32(1e-5))
            out = (out - out.mean((0, 2, 3), keepdims=True)) * scale
        relu = np.maximum(out, 0)
        here, where = _pooled(relu)
        held |= {f"{name} ReLU map": relu, f"{name} pooled": here}
        kept.append((name, columns, relu, where, scale))
    flat = here.reshape(len(image), -1)
    scores = flat @ weights["dense"].T
    share = np.exp(scores - scores.max(1, keepdims=True))
    share /= share.sum(1, keepdims=True)
    share[np.arange(len(label)), label] -= 1
    grads["dense"] = share.T @ flat / len(label)
    back = (share @ weights["dense"] / len(label)).reshape(here.shape)
    for name, columns, relu, where, scale in reversed(kept):
        spread = (where * back[:, :, :, None, :, None]).reshape(relu.shape)
        held[f"{name} gradient of the map"] = spread
        through = spread * (relu > 0)
        if normalised:
            through = scale * (through - through.mean((0, 2, 3), keepdims=True))  # the variance's part is left out
        grads[name] = through.transpose(0, 2, 3, 1).reshape(-1, through.shape[1]).T @ columns
        if name != "conv1":
            back = _back_through(np.ascontiguousarray(through), weights[name])
    return held, {name: grad.astype(np.float32) for name, grad in grads.items()}


NETWORKS: Final[Mapping[str, Callable[[], Iterator[Snapshot]]]] = {
    "CNN, plain": partial(cnn, False),
    "CNN, batch-normalised": partial(cnn, True),
}
