"""`python -m splitwatt_lab.watch`: see `command`."""

from __future__ import annotations

import sys

from splitwatt_lab.watch.command import main

if __name__ == "__main__":
    sys.exit(main())
