"""The images there are, what each is called, and where its archive lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from splitwatt_core import __version__

CONTAINERFILE: Final = Path("images") / "Containerfile"
OUT: Final = Path("out") / "images"
LOCAL: Final = "localhost"
"""Where no registry is given: a name without one would mean somebody else's image on docker.io."""


@dataclass(frozen=True, slots=True)
class Image:
    """`name` is the target in images/Containerfile as well."""

    name: str

    def reference(self, registry: str = LOCAL) -> str:
        """Its whole name."""
        return f"{registry.rstrip('/') or LOCAL}/splitwatt-{self.name}:{__version__}"

    def archive(self, root: Path) -> Path:
        return root / OUT / f"splitwatt-{self.name}.tar"


IMAGES: Final = tuple(Image(name) for name in ("operator", "agent", "engine", "router", "sim"))
