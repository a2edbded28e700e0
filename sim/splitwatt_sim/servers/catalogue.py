"""Which GPUs can be simulated, and as what: a user's own profiles and timing tables before the built-in ones.

Profiles that share a name or an NVML product name speak of one GPU. As in the operator the user's own stand first, those that
the chart ships next, the built-in ones last; a phase is taken from the first that describes it, one for the served model before
one for any. Step times come from a given table, else from the profile that says them first. So a profile of one's own H100, which
says watts alone, is simulated with the built-in times of an H100.

A GPU goes by a short name where it is a built-in one (`H100`), else by its profile's name; each of its other names finds it too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from splitwatt_core.gpus.profiles import Profile, ProfileError, Timing, builtin
from splitwatt_core.protocol.contract import Phase

from splitwatt_sim.servers.kinds import GPU_OF_KIND, GPUS, Links, memory_of
from splitwatt_sim.servers.kinds_2026 import LLAMA_70B
from splitwatt_sim.servers.profile_files import Given, ProfileFile
from splitwatt_sim.servers.table_files import FIT_ERROR, fit_timing
from splitwatt_sim.servers.tables import TableError
from splitwatt_sim.servers.tables import builtin as builtin_tables

MODEL_2026: Final = LLAMA_70B.name
GPUS_2026: Final[Mapping[str, str]] = {"A100": "A100-SXM-80GB", "H100": "H100-SXM", "H200": "H200-SXM", "B200": "B200"}
MEASURED: Final = Links()
BUILT_IN: Final = "built in"


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as it is simulated. `profile` has one row for each phase, and timing where the model is of 2026. `written`: the
    profile as it was given, with what other files gave, to be written again: alone it is simulated alike. Its timing, and
    `memory_bytes`, are there where a file said them, and None where they are built in. `times_from`: words for people."""

    name: str
    profile: Profile
    written: Profile
    memory_bytes: float | None
    source: str
    times_from: str


@dataclass(frozen=True)
class Catalogue:
    """GPUs for one served model. `fit_error`: how far a fit may miss a row of a table (0.03: 3 %). `links`: over what their
    servers hand KV caches on."""

    model: str = MODEL_2026
    files: tuple[ProfileFile, ...] = ()
    fit_error: float = FIT_ERROR
    links: Links = MEASURED

    def names(self) -> list[str]:
        """Built-in ones first, as a user may name them."""
        return [*self._shorts, *(name for name in self._groups if name not in self._shorts)]

    def given(self) -> list[str]:
        """GPUs that files speak of, in their order."""
        spoken = [given.profile.name for file in self.files for given in file.profiles]
        spoken += [table.gpu for file in self.files for table in file.tables if self._fits(table.model, table.tensor_parallel)]
        return list(dict.fromkeys(name for s in spoken if (name := self._find(s)) is not None))

    def name_of(self, wanted: str) -> str:
        """The name that a GPU goes by. Raises TableError that lists what there is."""
        found = self._find(wanted)
        if found is None:
            raise TableError(f"there is no table of {self.model} on {wanted}; choose from {', '.join(self.names())}")
        return found

    def gpu(self, wanted: str) -> Gpu:
        """Raises TableError that names the file and what it lacks."""
        name = self.name_of(wanted)
        group = self._groups[name]
        first = group[0]
        where = f"{first.source}: PowerProfile {first.profile.name}"
        phases, borrowed = [], []
        for phase in (Phase.PREFILL, Phase.DECODE):
            rows = [(row, given) for given in group if (row := given.profile.phase(phase, model=self.model)) is not None]
            if not rows:
                raise TableError(f"{where}: phases: {phase.value} is missing; add it, a server runs both")
            row, giver = next((pair for pair in rows if pair[0].model), rows[0])
            phases.append(replace(row, model=""))
            if giver is not first and giver.source != BUILT_IN:
                borrowed.append(row)
        timing, times_from = self._times(group)
        if timing is None and self.model == MODEL_2026:
            raise TableError(
                f"{where}: there are no step times of {self.model} on {GPUS} of them: give a timing table whose column gpu says "
                f"{first.profile.product_names[0]} by another --profile, or leave this GPU out"
            )
        memory = next(((given.memory_bytes, given.source) for given in group if given.memory_bytes is not None), None)
        if memory is None:
            raise TableError(
                f"{where}: the memory of this GPU is not known: add the annotation splitwatt.io/memory-gibibytes to its metadata"
            )
        said = timing if times_from != BUILT_IN else None
        try:
            profile = replace(first.profile, phases=tuple(phases), timing=timing)
        except ProfileError as error:
            raise TableError(f"{where}: {error}") from error
        return Gpu(
            name=name,
            profile=profile,
            written=replace(first.profile, phases=(*first.profile.phases, *borrowed), timing=said),
            memory_bytes=memory[0] if memory[1] != BUILT_IN else None,
            source=first.source,
            times_from=times_from,
        )

    def said_of(self, names: Collection[str]) -> list[str]:
        """One line for each of these GPUs that a file speaks of: where its watts and its times come from."""
        spoken = [self.gpu(name) for name in self.given() if name in names]
        return [f"{gpu.name}: watts {gpu.source} ({gpu.profile.name}), times {gpu.times_from}" for gpu in spoken]

    def check(self) -> None:
        """That every table speaks of a known GPU, and of the served model. Raises TableError."""
        for file in self.files:
            if file.tables and self.model != MODEL_2026:
                raise TableError(f"{file.path} holds times, and {self.model} has tables of its own: leave it out")
            fitting = [table for table in file.tables if self._fits(table.model, table.tensor_parallel)]
            if file.tables and not fitting:
                has = ", ".join(sorted({f"{t.model} on {t.tensor_parallel}" for t in file.tables}))
                raise TableError(f"{file.path} has no rows of {self.model} with tensor_parallel {GPUS}; it has {has}")
            for table in fitting:
                if self._find(table.gpu) is None:
                    raise TableError(
                        f"{file.path}: gpu {table.gpu} has no power profile: give its PowerProfile by another --profile, or name "
                        f"one of {', '.join(self.names())}"
                    )

    # ---------------------------------------------------------------------------------------------------------- inside

    @property
    def _shorts(self) -> Mapping[str, str]:
        return GPUS_2026 if self.model == MODEL_2026 else GPU_OF_KIND

    @cached_property
    def _groups(self) -> Mapping[str, Sequence[Given]]:
        given = sorted((g for file in self.files for g in file.profiles), key=lambda g: g.shipped)
        known = [_built_in(profile) for profile in builtin() if profile.name in self._shorts.values()]
        heads: list[list[Given]] = []
        for one in (*given, *known):
            group = next((group for group in heads if any(_same(one.profile, other.profile) for other in group)), None)
            if group is None:
                heads.append([one])
            else:
                group.append(one)
        shorts = {full: short for short, full in self._shorts.items()}
        named: dict[str, Sequence[Given]] = {}
        for group in heads:
            short = next((shorts[g.profile.name] for g in group if g.source == BUILT_IN), None)
            if short is None and self.model != MODEL_2026:
                continue  # the tables of 2023 know no other GPU
            named[short or group[0].profile.name] = group
        return named

    def _find(self, wanted: str) -> str | None:
        folded = wanted.strip().casefold()
        for name, group in self._groups.items():
            if folded == name.casefold() or any(given.profile.matches(folded) for given in group):
                return name
        return None

    def _fits(self, model: str, tensor_parallel: int) -> bool:
        return model == self.model and tensor_parallel == GPUS

    def _times(self, group: Sequence[Given]) -> tuple[Timing | None, str]:
        for file in self.files:
            for table in file.tables:
                if self._fits(table.model, table.tensor_parallel) and any(g.profile.matches(table.gpu) for g in group):
                    try:
                        fit = fit_timing(table, allowed_error=self.fit_error)
                    except TableError as error:
                        raise TableError(f"{file.path}: {error}") from error
                    return fit.timing, f"{file.path}, fitted within {max(fit.prefill_error, fit.decode_error):.1%}"
        for given in group:
            timing = given.profile.timing
            if timing is not None and self._fits(timing.model, timing.tensor_parallel):
                return timing, given.source
        return None, "tables of 2023" if builtin_tables().shapes.get(self.model) else BUILT_IN


def _built_in(profile: Profile) -> Given:
    return Given(profile, BUILT_IN, memory_of(profile))


def _same(one: Profile, other: Profile) -> bool:
    return any(one.matches(name) for name in (other.name, *other.product_names))
