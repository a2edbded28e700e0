"""The version is said once, in `splitwatt_core.__version__`; what cannot ask there is held to it here."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml
from splitwatt_core import __version__
from splitwatt_core.rendering.render import RenderContext
from splitwatt_lab.images.catalogue import IMAGES
from splitwatt_sim.plan.job import default_image
from support.imports import REPOSITORY


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((REPOSITORY / "helm" / "splitwatt" / "Chart.yaml").read_text(encoding="utf-8"))
    assert (chart["version"], chart["appVersion"]) == (__version__, __version__)


def test_the_papers_are_of_this_version() -> None:
    papers = tomllib.loads((REPOSITORY / "papers" / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert papers["version"] == __version__ and papers["dependencies"] == [f"splitwatt[sim]=={__version__}"]


def test_images_are_tagged_with_it_and_what_is_rendered_is_built() -> None:
    built = {image.reference() for image in IMAGES}
    assert all(reference.startswith("localhost/splitwatt-") and reference.endswith(f":{__version__}") for reference in built)
    assert {RenderContext().emulated_image, default_image()} <= built
    assert IMAGES[0].reference("registry.example/team/") == f"registry.example/team/splitwatt-{IMAGES[0].name}:{__version__}"


def test_the_command_says_it() -> None:
    command = [sys.executable, "-m", "splitwatt_cli.main", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == f"splitwatt {__version__}\n"


def test_the_changelog_has_a_section_for_it() -> None:
    assert f"## [{__version__}]" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")


def test_no_page_quotes_another_version_of_our_images() -> None:
    quoted: set[str] = set()
    pages: list[Path] = [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "images").iterdir()]
    for page in pages:
        quoted |= set(re.findall(r"splitwatt-(?:operator|agent|sim|engine):(\d[\w.]*\w)", page.read_text(encoding="utf-8")))
    assert quoted == {__version__}
