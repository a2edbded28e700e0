"""report.html and report.json: what a pass measured, for people and for programs. The page needs nothing but itself."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from splitwatt_core import __version__

from splitwatt_lab import figures
from splitwatt_lab.run import PassResult

MAX_EVENTS: Final = 40


def write_report(results: Sequence[PassResult], directory: Path, *, site: Mapping[str, Any]) -> Path:
    """Write both files; returns the page's path. `site` describes what ran (racks, nodes, trace, seed, minutes)."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = [figures.as_json(result) for result in results]
    about = {
        "written_at": time.strftime("%Y-%m-%d %H:%M %Z"),
        "version": __version__,
        "machine": f"{os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    (directory / "report.json").write_text(json.dumps({"site": {**site, **about}, "passes": rows}, indent=1))
    environment = Environment(loader=PackageLoader("splitwatt_lab"), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template("report.html").render(
        site=site,
        about=about,
        words=in_words(rows[0]),
        passes=[
            {
                "row": row,
                "power": [figures.power_plot(result, name) for name in sorted(result.counts, key=_root_first)],
                "caps": figures.caps_plot(result),
                "ttft": figures.latency_plot(result, "ttft_ms", "TTFT"),
                "tbt": figures.latency_plot(result, "tbt_ms", "TBT"),
                "events": events_since(result.events, result.started_s),
            }
            for row, result in zip(rows, results, strict=True)
        ],
        compare=figures.compare_plot(rows) if len(rows) > 1 else None,
    )
    path = directory / "report.html"
    path.write_text(page)
    return path


def in_words(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a pass showed, for whoever reads one paragraph: `verdict`, whether it is `good`, three `numbers` (value, what it is),
    and what would stand without Splitwatt. `row`: `figures.as_json` of the pass."""
    over_s, promised = row["budget_violations_s"], row["promises"]
    kept = sum(promise["kept"] for promise in promised)
    if row["problems"]:
        verdict = "This run proves nothing: " + "; ".join(row["problems"])
    elif over_s:
        verdict = f"A power budget was exceeded for {max(over_s, 0.1):.1f} s: Splitwatt failed."
    else:
        verdict = f"Every power budget was kept for all {row['seconds']:.0f} s, through everything that was done to the site."
    if promised and not row["problems"]:
        missed = ", ".join(
            f"{p['cluster']} {p['figure'].removesuffix('_ms').upper()} {p['served_ms']} of {p['promised_ms']} ms"
            for p in promised
            if not p["kept"]
        )
        verdict += f" Of {len(promised)} promised latencies {kept} were kept{f'; missed: {missed}' if missed else ''}."
    numbers = [(f"{over_s:.1f} s", "above a limit in force")]
    if promised:
        numbers.append((f"{kept} of {len(promised)}", "promised P99 latencies kept"))
    joules = row["gpu_joules_per_output_token"]
    numbers.append((f"{joules} J" if joules is not None else "–", "of GPU energy per output token"))
    return {
        "verdict": verdict,
        "good": not row["problems"] and not over_s,
        "numbers": numbers,
        "without": [
            {"budget": name, "nameplate_w": watts, "limit_w": row["limits_w"][name], "over_w": watts - row["limits_w"][name]}
            for name, watts in row["nameplate_w"].items()
            if name in row["limits_w"]
        ],
    }


def events_since(events: Sequence[Mapping[str, Any]], started_s: float) -> list[dict[str, Any]]:
    """The last ones in their order, each with seconds since the first request (before it: below 0)."""
    timed = sorted(events, key=lambda event: str(event["time"]))
    return [
        {**event, "at_s": datetime.fromisoformat(event["time"].replace("Z", "+00:00")).timestamp() - started_s}
        for event in timed[-MAX_EVENTS:]
    ]


def _root_first(name: str) -> tuple[bool, str]:
    return (not name.startswith("row"), name)
