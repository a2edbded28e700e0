"""The real Prometheus, scraping the lab's processes every second.

Targets come from files (file_sd), so agents may come and go without a restart. The twin's samples carry the labels of the
pods they speak for, hence `honor_labels`. A failed scrape marks its series stale at once, which is what "no data" must
look like to the operator.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx

from splitwatt_lab.errors import LabError
from splitwatt_lab.ports import LOOPBACK
from splitwatt_lab.processes import Process, ProcessGroup
from splitwatt_lab.servers import answers, restart_server, start_server

SCRAPE_INTERVAL: Final = "1s"
RETENTION: Final = "12h"
JOBS: Final[Mapping[str, bool]] = {"agent": False, "operator": False, "twin": True}
"""Scrape jobs, and whether their own labels win."""
STOP_GRACE_S: Final = 5.0
_QUERY_S: Final = 10.0


def program() -> Path:
    """Prometheus on PATH. Raises LabError that says how to get it."""
    path = shutil.which("prometheus")
    if path is None:
        raise LabError(
            "there is no `prometheus` on PATH; run `make setup` as root on Debian or Ubuntu, or install Prometheus 2.40 or newer"
        )
    return Path(path)


class PrometheusServer:
    """One server under `group`, its data in `directory`. `rules` are Prometheus rule files, `flags` more of its command line;
    `listen`: its address."""

    def __init__(
        self,
        group: ProcessGroup,
        directory: Path,
        *,
        rules: Sequence[Path] = (),
        flags: Sequence[str] = (),
        port: int | None = None,
        listen: str = LOOPBACK,
    ) -> None:
        self._group = group
        self._directory = directory
        self._rules = rules
        self._flags = flags
        self._fixed = port
        self._listen = listen
        self._client = httpx.Client(timeout=_QUERY_S, trust_env=False)  # a site's proxy knows nothing of loopback
        self.port = 0
        self.process: Process | None = None

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    def start(self) -> None:
        """Start it (again, on its old port) and wait until it is ready. Raises LabError."""
        if self.process is not None:
            restart_server(self.process, self.port, healthy=self._ready)
            return
        executable = program()
        (self._directory / "targets").mkdir(parents=True, exist_ok=True)
        config = self._directory / "prometheus.yml"
        config.write_text(json.dumps(self._config(), indent=1))  # JSON is YAML
        self.process, self.port = start_server(
            self._group,
            "prometheus",
            lambda port: [
                executable,
                f"--config.file={config}",
                f"--storage.tsdb.path={self._directory / 'data'}",
                f"--storage.tsdb.retention.time={RETENTION}",
                f"--web.listen-address={self._listen}:{port}",
                "--log.level=warn",
                *self._flags,
            ],
            healthy=self._ready,
            port=self._fixed,
        )

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop(STOP_GRACE_S)

    def set_targets(self, job: str, targets: Mapping[str, Mapping[str, str]]) -> None:
        """What `job` scrapes: address (`127.0.0.1:9100`) -> labels to add. Noticed within about a second."""
        if job not in JOBS:
            raise LabError(f"there is no scrape job {job!r}; choose one of {', '.join(JOBS)}")
        groups = [{"targets": [address], "labels": dict(labels)} for address, labels in targets.items()]
        folder = self._directory / "targets"
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{job}.json.new"
        fresh.write_text(json.dumps(groups))
        fresh.rename(folder / f"{job}.json")

    def query(self, expression: str) -> Sequence[tuple[Mapping[str, str], float]]:
        """An instant vector as (labels, value). Raises LabError with Prometheus's own sentence."""
        answer: dict[str, Any] = self._client.get(f"{self.url}/api/v1/query", params={"query": expression}).json()
        if answer["status"] != "success":
            raise LabError(f"Prometheus refused {expression!r}: {answer.get('error', answer)}")
        if answer["data"]["resultType"] != "vector":
            raise LabError(f"{expression!r} is a {answer['data']['resultType']}, not an instant vector")
        return [(row["metric"], float(row["value"][1])) for row in answer["data"]["result"]]

    def query_range(
        self, expression: str, start_s: float, end_s: float, *, step_s: float
    ) -> Sequence[tuple[Mapping[str, str], list[tuple[float, float]]]]:
        """Series as (labels, [(Unix time, value)]). Raises LabError with Prometheus's own sentence."""
        params = {"query": expression, "start": str(start_s), "end": str(end_s), "step": str(step_s)}
        answer: dict[str, Any] = self._client.get(f"{self.url}/api/v1/query_range", params=params).json()
        if answer["status"] != "success":
            raise LabError(f"Prometheus refused {expression!r}: {answer.get('error', answer)}")
        return [(row["metric"], [(float(t), float(v)) for t, v in row["values"]]) for row in answer["data"]["result"]]

    def names(self, selector: str, start_s: float, end_s: float) -> Sequence[str]:
        """Names of metrics that had samples between the two (Unix seconds). Raises LabError."""
        params = {"match[]": selector, "start": str(start_s), "end": str(end_s)}
        answer: dict[str, Any] = self._client.get(f"{self.url}/api/v1/label/__name__/values", params=params).json()
        if answer["status"] != "success":
            raise LabError(f"Prometheus refused {selector!r}: {answer.get('error', answer)}")
        return [str(name) for name in answer["data"]]

    def _ready(self, port: int) -> bool:
        return answers(self._client, f"http://{LOOPBACK}:{port}/-/ready")

    def _config(self) -> Mapping[str, Any]:
        return {
            "global": {
                "scrape_interval": SCRAPE_INTERVAL,
                "scrape_timeout": SCRAPE_INTERVAL,
                "evaluation_interval": SCRAPE_INTERVAL,
            },
            "rule_files": [str(rule) for rule in self._rules],
            "scrape_configs": [
                {
                    "job_name": job,
                    "honor_labels": honor_labels,
                    "file_sd_configs": [{"files": [str(self._directory / "targets" / f"{job}.json")], "refresh_interval": "1s"}],
                }
                for job, honor_labels in JOBS.items()
            ],
        }


def install_package(name: str, there: Callable[[], object]) -> None:
    """Install Debian's package where `there` raises LabError and this is root on a machine with apt. Raises LabError."""
    try:
        there()
        return
    except LabError:
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
    for command in (["update", "-q"], ["install", "-qy", "--no-install-recommends", name]):
        result = subprocess.run(
            ["apt-get", *command],
            env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode != 0:
            reason = (result.stderr.strip() or result.stdout.strip()).splitlines()[-1:]
            raise LabError(f"`apt-get {' '.join(command)}` failed: {' '.join(reason)}; install {name} by hand")
    there()


def ensure_installed() -> None:
    """Install Debian's package when Prometheus is missing and this is root on a machine with apt. Raises LabError."""
    install_package("prometheus", program)


def main() -> int:
    """`python -m splitwatt_lab.prometheus`: have Prometheus installed."""
    try:
        ensure_installed()
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
