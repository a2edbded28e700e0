"""`python -m splitwatt_lab.images`."""

from __future__ import annotations

import sys

from splitwatt_lab.images.command import main

if __name__ == "__main__":
    sys.exit(main())
