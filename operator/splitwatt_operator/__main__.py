"""`python -m splitwatt_operator`."""

from __future__ import annotations

import sys

from splitwatt_shell.supervise import run_main

from splitwatt_operator.app import Application
from splitwatt_operator.logs import configure
from splitwatt_operator.options import Options, parse


def main() -> int:
    """Exit codes: 0 stopped by a signal, 1 failed, 2 wrong usage, 3 superseded by a higher term, 4 stuck at the end."""
    options = parse()
    configure(options.log_level)
    return run_main(_run(options))


async def _run(options: Options) -> int:
    return await Application(options).run()


if __name__ == "__main__":
    sys.exit(main())
