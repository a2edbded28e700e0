"""`python -m splitwatt_twin --config FILE`: see config.py for the file, app.py for the process."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from splitwatt_client import ApiError
from splitwatt_shell.serve import ListenError
from splitwatt_shell.supervise import run_main
from splitwatt_truth.trace import TraceError

from splitwatt_twin.app import run
from splitwatt_twin.arrivals import read_trace
from splitwatt_twin.config import ConfigError, load
from splitwatt_twin.gpus import UnknownGpuError


def main() -> int:
    parser = argparse.ArgumentParser(prog="splitwatt_twin", description="Emulated engines, load and rack meters of the lab.")
    parser.add_argument("--config", type=Path, required=True, help="JSON file")
    parser.add_argument("--verbose", action="store_true", help="log more")
    args = parser.parse_args()
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        config = load(args.config)
        rows = None if config.trace is None else read_trace(config.trace, unit=config.trace_unit)
        run_main(run(config, rows))
    except (ConfigError, TraceError, UnknownGpuError, ApiError, ListenError, OSError) as error:
        sys.stderr.write(f"splitwatt_twin: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
