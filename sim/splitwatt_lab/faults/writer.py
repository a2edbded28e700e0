"""Another program that sets a GPU's power limit, as an administrator's script would: `python -m splitwatt_lab.faults.writer`.

It talks to the same simulated NVML as the agent does, by NVIDIA's own binding.
"""

from __future__ import annotations

import argparse
import time
from typing import Final

import pynvml

EVERY_S: Final = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uuid", required=True)
    parser.add_argument("--watts", type=int, required=True)
    given = parser.parse_args()
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByUUID(given.uuid)
    while True:
        pynvml.nvmlDeviceSetPowerManagementLimit(handle, given.watts * 1000)
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main()
