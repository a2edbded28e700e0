"""Another process that uses the real pynvml on a simulated node, driven line by line."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from splitwatt_nvml_twin.handle import environment

ANSWER_TIMEOUT_S = 60.0

WORKER = """
import json, sys, time
import pynvml as n

def gpu(i):
    return n.nvmlDeviceGetHandleByIndex(i)

def field(i, field_id):
    return n.nvmlDeviceGetFieldValues(gpu(i), [field_id])[0]

print(json.dumps(["ready"]), flush=True)
for line in sys.stdin:
    try:
        answer = [eval(json.loads(line))]
    except n.NVMLError as error:
        answer = {"nvml": error.value, "text": str(error)}
    print(json.dumps(answer), flush=True)
"""


class NvmlFailed(Exception):  # noqa: N818 - reads better in `pytest.raises`
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code


class NvmlClient:
    """`ask("n.nvmlDeviceGetUUID(gpu(0))")` evaluates there; NVMLError comes back as NvmlFailed."""

    def __init__(self, state_file: Path, *, initialise: bool = True) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            env={**os.environ, **environment(state_file)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._rest = b""
        self.finish()
        if initialise:
            self.ask("n.nvmlInit()")

    def begin(self, expression: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(expression).encode() + b"\n")
        self.process.stdin.flush()

    def answered(self, within_s: float) -> bool:
        assert self.process.stdout is not None
        return b"\n" in self._rest or bool(select.select([self.process.stdout], [], [], within_s)[0])

    def finish(self) -> Any:
        assert self.process.stdout is not None
        while b"\n" not in self._rest:
            assert self.answered(ANSWER_TIMEOUT_S), "the NVML client does not answer"
            chunk = os.read(self.process.stdout.fileno(), 65536)
            assert chunk, "the NVML client died"
            self._rest += chunk
        line, self._rest = self._rest.split(b"\n", 1)
        answer = json.loads(line)
        if isinstance(answer, dict):
            raise NvmlFailed(answer["nvml"], answer["text"])
        return answer[0]

    def ask(self, expression: str) -> Any:
        self.begin(expression)
        return self.finish()

    def set_limit(self, gpu: int, limit_mw: int) -> None:
        self.ask(f"n.nvmlDeviceSetPowerManagementLimit(gpu({gpu}), {limit_mw})")

    def limits(self, gpu: int) -> tuple[int, int]:
        """(management, enforced) in milliwatts."""
        return (
            self.ask(f"n.nvmlDeviceGetPowerManagementLimit(gpu({gpu}))"),
            self.ask(f"n.nvmlDeviceGetEnforcedPowerLimit(gpu({gpu}))"),
        )

    def kill(self, *, reap: bool = True) -> None:
        """Without `reap` a zombie stays behind, as when the parent does not look."""
        self.process.send_signal(signal.SIGKILL)
        if reap:
            self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()

    def __enter__(self) -> NvmlClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
