"""report.html and report.json: what a pass measured, for people and for programs. The page needs nothing but itself."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from splitwatt_lab import figures
from splitwatt_lab.run import PassResult


def write_report(results: Sequence[PassResult], directory: Path, *, site: Mapping[str, Any]) -> Path:
    """Write both files; returns the page's path. `site` describes what ran (racks, nodes, trace, seed, minutes)."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [figures.as_json(result) for result in results]
    (directory / "report.json").write_text(json.dumps({"site": dict(site), "passes": rows}, indent=1))
    environment = Environment(loader=PackageLoader("splitwatt_lab"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html").render(
        site=site,
        passes=[
            {
                "row": row,
                "power": [figures.power_plot(result, name) for name in sorted(result.counts, key=_root_first)],
                "caps": figures.caps_plot(result),
                "ttft": figures.latency_plot(result, "ttft_ms", "TTFT"),
                "tbt": figures.latency_plot(result, "tbt_ms", "TBT"),
            }
            for row, result in zip(rows, results, strict=True)
        ],
        compare=figures.compare_plot(rows) if len(rows) > 1 else None,
    )
    path = directory / "report.html"
    path.write_text(page)
    return path


def _root_first(name: str) -> tuple[bool, str]:
    return (not name.startswith("row"), name)
