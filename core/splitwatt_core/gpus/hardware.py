"""Facts about hardware and served models, each once: limits, idle draw, clocks, memory, weights, links.

`hardware.json` beside this module gives every number with its source and grade; null means that nobody published it. The
power profiles, the simulated GPUs, the emulated engines and the planner all read it here. What a product draws and how fast
it is in a phase is no fact of this file: see `profiles`.

Protects: one number per fact. Whoever wants another one, as the simulated GPUs do where truth shall differ from what the law
believes, states the difference and why. Standard library only; nothing is read but that one file.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from splitwatt_core.gpus.graded import FactError, Numbers

_MIB = 1024**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A Grace module's own power scope: one limit over its GPUs and its CPU. Nothing of ours sets it."""

    min_cap_w: int
    default_cap_w: int
    max_cap_w: int
    idle_w: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One GPU product; watts of one GPU. None: not known.

    `product_names`: what NVML calls it. `default_cap_w`: its limit after a reboot, `max_cap_w`: the highest that may be set.
    `idle_w`: draw without a process, in the mean of those measured; some idle above their lowest cap. Clocks: of the SMs.
    `sources`: path of each number -> "grade: source". Raises FactError on limits or clocks out of order.
    """

    name: str
    product_names: tuple[str, ...]
    min_cap_w: int
    default_cap_w: int
    max_cap_w: int
    idle_w: int | None = None
    min_clock_mhz: int | None = None
    max_clock_mhz: int | None = None
    memory_mib: int | None = None
    module: Module | None = None
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.min_cap_w <= self.default_cap_w <= self.max_cap_w:
            raise FactError(f"product {self.name}: caps must satisfy 0 < minimum <= default <= maximum")
        if self.idle_w is not None and not 0 < self.idle_w < self.default_cap_w:
            raise FactError(f"product {self.name}: idle draw must lie between 0 and the default cap, or be null")
        clocks = (self.min_clock_mhz, self.max_clock_mhz)
        if clocks != (None, None) and not (clocks[0] and clocks[1] and 0 < clocks[0] <= clocks[1]):
            raise FactError(f"product {self.name}: clocks must satisfy 0 < minimum <= maximum, or both be null")
        if self.memory_mib is not None and self.memory_mib <= 0:
            raise FactError(f"product {self.name}: memory must be above 0, or null")

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory_mib is None else self.memory_mib * _MIB

    def matches(self, gpu_model: str) -> bool:
        return called(gpu_model, (self.name, *self.product_names))


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a served model takes of a server's memory. `kv_heads` below `heads`: grouped-query attention."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    bytes_per_value: int
    weights_bytes: int

    def kv_bytes_per_token(self, *, grouped: bool) -> int:
        """Key and value of one token in all layers; `grouped` False counts every head, as splitwise-sim does."""
        share = self.kv_heads / self.heads if grouped else 1.0
        return int(2 * self.hidden * share) * self.layers * self.bytes_per_value


@dataclass(frozen=True, slots=True, kw_only=True)
class HandOff:
    """How a prefill server's KV cache leaves it: over one link, and what is left of it behind the prefill."""

    link_gbit_per_s: int
    rest_ms: int

    @property
    def link_bytes_per_s(self) -> float:
        return self.link_gbit_per_s * 1e9 / 8

    @property
    def rest_s(self) -> float:
        return self.rest_ms / 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareFacts:
    """The whole file. `models`: by part of a served model's name in lower case, the more specific ones first. `hand_offs`: by
    the server that Splitwise measured, A100 or H100. `memory_share`: of a GPU's memory that an engine takes for weights and KV
    cache. `server_rest_w`: watts of a server of eight GPUs beside them. `sources`: of all but the products."""

    products: tuple[Product, ...]
    models: Mapping[str, ModelShape]
    hand_offs: Mapping[str, HandOff]
    memory_share: float
    server_rest_w: int
    sources: Mapping[str, str]

    def product(self, gpu_model: str) -> Product | None:
        """By name or NVML name; None when unknown."""
        return next((product for product in self.products if product.matches(gpu_model)), None)

    def model(self, served: str) -> ModelShape | None:
        """By a served model's name, whatever stands before and after; None when unknown."""
        folded = served.casefold()
        return next((shape for part, shape in self.models.items() if part in folded), None)


def called(gpu_model: str, names: Iterable[str]) -> bool:
    """Whether a GPU's name, as NVML or a person writes it, is one of these: case and outer blanks do not count."""
    wanted = gpu_model.strip().casefold()
    return bool(wanted) and any(wanted == name.casefold() for name in names)


def parse(text: str) -> HardwareFacts:
    """Read the form of hardware.json. Raises FactError naming what is missing or wrong."""
    try:
        raw = json.loads(text)
        sources: dict[str, str] = {}
        server = Numbers(raw["server"], "server.", sources)
        return HardwareFacts(
            products=tuple(_product(row) for row in raw["products"]),
            models={part: shape for row in raw["models"] for shape in [_model(row, sources)] for part in row["also"]},
            hand_offs={name: _hand_off(name, row, sources) for name, row in raw["hand_offs"].items()},
            memory_share=server.take("memory_share"),
            server_rest_w=server.take("server_rest_w"),
            sources=sources,
        )
    except KeyError as error:
        raise FactError(f"hardware: {error.args[0]} is missing") from error
    except FactError:
        raise
    except (TypeError, AttributeError, ValueError) as error:
        raise FactError(f"hardware: not in the form of hardware.json: {error}") from error


def _product(raw: Mapping[str, Any]) -> Product:
    sources: dict[str, str] = {}
    numbers = Numbers(raw, "", sources)
    module = raw.get("module")
    return Product(
        name=raw["name"],
        product_names=tuple(numbers.take("product_names")),
        **{key: numbers.take(key) for key in ("min_cap_w", "default_cap_w", "max_cap_w")},
        **{key: numbers.known(key) for key in ("idle_w", "min_clock_mhz", "max_clock_mhz", "memory_mib")},
        module=None if module is None else _module(Numbers(module, "module.", sources)),
        sources=sources,
    )


def _module(numbers: Numbers) -> Module:
    return Module(**{key: numbers.take(key) for key in ("min_cap_w", "default_cap_w", "max_cap_w", "idle_w")})


def _model(raw: Mapping[str, Any], sources: dict[str, str]) -> ModelShape:
    numbers = Numbers(raw, f"models.{raw['name']}.", sources)
    keys = ("layers", "hidden", "heads", "kv_heads", "bytes_per_value", "weights_bytes")
    return ModelShape(raw["name"], **{key: numbers.take(key) for key in keys})


def _hand_off(name: str, raw: Mapping[str, Any], sources: dict[str, str]) -> HandOff:
    numbers = Numbers(raw, f"hand_offs.{name}.", sources)
    return HandOff(link_gbit_per_s=numbers.take("link_gbit_per_s"), rest_ms=numbers.take("rest_ms"))


@cache
def builtin() -> HardwareFacts:
    """The file shipped with the product, parsed once."""
    return parse(files("splitwatt_core.gpus").joinpath("hardware.json").read_text(encoding="utf-8"))
