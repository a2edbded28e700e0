"""Cluster designs as Splitwise names them: which servers prefill, which decode, what they cost and are rated for.

`A100:70` and `H100:40` are unsplit. `AA:45/25`, `HH:25/15`, `HA:25/26` and `HHcap:25/21` are split, prompt machines before
the slash and token machines after it; in HHcap the token machines' GPUs are capped to half their power.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

MAX_SERVERS: Final = 2_000

UNSPLIT: Final = {"A100": "A100", "H100": "H100"}
SPLIT: Final = {
    "AA": ("A100", "A100"),
    "HH": ("H100", "H100"),
    "HA": ("H100", "A100"),
    "HHcap": ("H100", "H100-capped"),
}
RATED_POWER_UNITS: Final = {"A100": 24.8, "H100": 44.0, "H100-capped": 30.8}
"""Provisioned power of a server in the units of Splitwise's simulator (docs/facts.md, Splitwise; grade D): 40 H100 = 71 A100."""
USD_PER_HOUR: Final = {"A100": 17.6, "H100": 38.0, "H100-capped": 38.0}
"""Price of a server in the paper (arXiv:2311.18677, grade P)."""

_FORM: Final = re.compile(r"(?P<name>[A-Za-z0-9]+):(?P<first>\d+)(/(?P<second>\d+))?")


class DesignError(ValueError):
    """A design that cannot be read; the message is one sentence that says what to change."""


@dataclass(frozen=True, slots=True)
class Design:
    """`token_machines` 0: unsplit, `prompt_machines` servers do both phases."""

    name: str
    prompt_kind: str
    prompt_machines: int
    token_kind: str
    token_machines: int = 0

    @property
    def split(self) -> bool:
        return self.token_machines > 0

    @property
    def servers(self) -> int:
        return self.prompt_machines + self.token_machines

    @property
    def power_units(self) -> float:
        """Provisioned power, in the units of `RATED_POWER_UNITS`."""
        prompt, token = RATED_POWER_UNITS[self.prompt_kind], RATED_POWER_UNITS[self.token_kind]
        return prompt * self.prompt_machines + token * self.token_machines

    @property
    def usd_per_hour(self) -> float:
        prompt, token = USD_PER_HOUR[self.prompt_kind], USD_PER_HOUR[self.token_kind]
        return prompt * self.prompt_machines + token * self.token_machines

    def __str__(self) -> str:
        return f"{self.name}:{self.prompt_machines}" + (f"/{self.token_machines}" if self.split else "")


def parse_design(text: str) -> Design:
    """Read `NAME:COUNT` or `NAME:PROMPT/TOKEN`. Raises DesignError."""
    form = _FORM.fullmatch(text.strip())
    known = f"{', '.join(f'{n}:COUNT' for n in UNSPLIT)}, {', '.join(f'{n}:PROMPT/TOKEN' for n in SPLIT)}"
    if form is None or form["name"] not in UNSPLIT | SPLIT:
        raise DesignError(f"design {text!r} is not known; write one of {known}")
    name, first, second = form["name"], int(form["first"]), int(form["second"] or 0)
    if (name in SPLIT) != (form["second"] is not None):
        wanted = "two counts, prompt and token machines, as in HH:25/15" if name in SPLIT else "one count, as in H100:40"
        raise DesignError(f"design {text!r}: {name} takes {wanted}")
    if first < 1 or (name in SPLIT and second < 1) or first + second > MAX_SERVERS:
        raise DesignError(f"design {text!r}: write counts from 1, at most {MAX_SERVERS} servers in all")
    if name in UNSPLIT:
        return Design(name, UNSPLIT[name], first, UNSPLIT[name])
    prompt_kind, token_kind = SPLIT[name]
    return Design(name, prompt_kind, first, token_kind, second)
