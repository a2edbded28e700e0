"""What `splitwatt faults` started ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil

BEGINS_A_SITE = """
import time
from splitwatt_lab.faults.command import pool
if __name__ == "__main__":
    with pool(1) as sites:
        print(sites.submit(__import__("os").getpid).result(), flush=True)
        sites.submit(time.sleep, 600).result()
"""
WAIT_S = 20.0


def test_a_site_ends_with_a_runner_that_was_killed(tmp_path):
    script = tmp_path / "runner.py"
    script.write_text(BEGINS_A_SITE)
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        site = psutil.Process(int(runner.stdout.readline()))
        os.kill(runner.pid, signal.SIGKILL)
    until_s = time.monotonic() + WAIT_S
    while site.is_running() and site.status() != psutil.STATUS_ZOMBIE and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not site.is_running() or site.status() == psutil.STATUS_ZOMBIE
