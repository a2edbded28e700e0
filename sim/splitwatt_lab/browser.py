"""Chromium, in which the page of the dashboards is tried and photographed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Final

from splitwatt_lab.errors import LabError
from splitwatt_lab.prometheus import install_package

NAMES: Final = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")


def browser_program() -> Path:
    """Chromium on PATH, under whatever name. Raises LabError that says how to get it."""
    for name in NAMES:
        if (found := shutil.which(name)) is not None:
            return Path(found)
    raise LabError("there is no Chromium on PATH; run `make test-pages` as root on Debian or Ubuntu, or install chromium")


def main() -> int:
    """`python -m splitwatt_lab.browser`: have Chromium installed."""
    try:
        install_package("chromium", browser_program)
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
