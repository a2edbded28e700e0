"""The numbers and plots of one pass: report.json's rows and the report's pictures."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from splitwatt_lab.run import PassResult, count_row

mpl.use("Agg")
LEVELS: Final = (50, 90, 99)
COLORS: Final = {"Prefill": "#c2410c", "Decode": "#1d4ed8", "Unassigned": "#6b7280"}
WINDOW_S: Final = 5.0


def latency_rows(result: PassResult) -> list[dict[str, Any]]:
    """TTFT, TBT and E2E percentiles (ms, linear interpolation) and tokens served, by cluster."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result.requests:
        groups.setdefault(f"{row['namespace']}/{row['cluster']}", []).append(row)
    rows = []
    for cluster, requests in sorted(groups.items()):
        out: dict[str, Any] = {"cluster": cluster, "requests": len(requests)}
        out["output_tokens"] = sum(r["output"] for r in requests)
        out["prompt_tokens"] = sum(r["prompt"] for r in requests)
        for name in ("ttft_ms", "tbt_ms", "e2e_ms"):
            values = [r[name] for r in requests if r[name] is not None]
            for level in LEVELS:
                out[f"{name}_p{level}"] = round(float(np.percentile(values, level)), 1) if values else None
        rows.append(out)
    return rows


def nameplate_w(result: PassResult) -> dict[str, int]:
    """By budget, what its GPUs at their default limits may draw at the meter, with all that is declared: as the judge saw it
    before any cap was set."""
    seen: dict[str, float] = {}
    for sample in result.samples:
        if not sample.in_force:
            seen[sample.budget] = max(seen.get(sample.budget, 0.0), sample.capped_w)
    return {name: round(watts) for name, watts in sorted(seen.items())}


def first_limits_w(result: PassResult) -> dict[str, int]:
    """By budget, the limit that it began with."""
    first: dict[str, int] = {}
    for sample in result.samples:
        first.setdefault(sample.budget, sample.limit_w)
    return dict(sorted(first.items()))


def promises(result: PassResult) -> list[dict[str, Any]]:
    """Each promised P99 beside what was served: cluster, figure, promised_ms, served_ms (None: nothing was), kept."""
    found = []
    for row in latency_rows(result):
        for figure, promised_ms in result.slos.get(row["cluster"], {}).items():
            served_ms = row[f"{figure}_p99"]
            kept = served_ms is not None and served_ms <= promised_ms
            found.append(
                {
                    "cluster": row["cluster"],
                    "figure": figure,
                    "promised_ms": promised_ms,
                    "served_ms": served_ms,
                    "kept": kept,
                }
            )
    return found


def as_json(result: PassResult) -> dict[str, Any]:
    """One pass as report.json holds it, without its long series."""
    tokens = sum(r["output"] for r in result.requests)
    return {
        "policy": result.policy,
        "seconds": round(result.ended_s - result.started_s, 1),
        "gpus": result.gpus,
        "budget_violations_s": round(result.violations_s, 3),
        "problems": result.problems,
        "promises": promises(result),
        "nameplate_w": nameplate_w(result),
        "limits_w": first_limits_w(result),
        "budgets": {name: count_row(count) for name, count in sorted(result.counts.items())},
        "adoption_s": result.adoption_s,
        "patch_to_enforced_s": None if result.patch_to_enforced_s is None else round(result.patch_to_enforced_s, 3),
        "gpu_energy_kj": round(result.energy_j / 1000, 1),
        "output_tokens": tokens,
        "joules_per_token": {name: round(price_j, 3) for name, price_j in sorted(result.joules_per_token.items())},
        "gpu_joules_per_output_token": round(result.energy_j / tokens, 2) if tokens else None,
        "clusters": latency_rows(result),
        "happenings": [{"at_s": round(h.at_s, 2), "what": h.what} for h in result.happenings],
        "events": result.events,
        "decisions": result.decisions,
        "kubectl": result.kubectl_view,
    }


def _png(figure: Figure) -> str:
    """As a PNG data address: self-contained, and small whatever the number of samples."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _mark(axes: Axes, result: PassResult) -> None:
    """Each happening by its number in the report's list."""
    for number, happening in enumerate(result.happenings, 1):
        axes.axvline(happening.at_s, color="#6b7280", linewidth=0.8, linestyle=":")
        axes.annotate(
            str(number), (happening.at_s, 0.02), xycoords=("data", "axes fraction"), fontsize=7, color="#374151", ha="left"
        )


def power_plot(result: PassResult, budget: str) -> str:
    """True draw, enforced caps, charge and limit in force over time, in kW at the meter."""
    samples = [s for s in result.samples if s.budget == budget]
    t = [s.t_s - result.started_s for s in samples]
    figure = Figure(figsize=(8.6, 2.9))
    axes = figure.subplots()
    axes.step(t, [s.limit_w / 1e3 for s in samples], where="post", color="black", linewidth=1.6, label="limit in force")
    charges = [d for d in result.decisions if d["budget"] == budget]
    axes.step(
        [d["time_s"] - result.started_s for d in charges],
        [d["charge_w"] / 1e3 for d in charges],
        where="post",
        color="#7c3aed",
        linewidth=1.0,
        label="charge (ledger)",
    )
    axes.plot(t, [s.capped_w / 1e3 for s in samples], color="#ca8a04", linewidth=1.0, label="enforced caps")
    axes.plot(t, [s.true_w / 1e3 for s in samples], color="#0891b2", linewidth=1.0, label="true draw")
    _mark(axes, result)
    axes.set_xlim(min(t, default=0.0), max(t, default=1.0))
    # Adoption begins with every GPU at its default limit, far above the rest: it may leave the picture at the top.
    in_force = [s.limit_w / 1e3 for s in samples if s.in_force]
    low_kw = min((s.true_w / 1e3 for s in samples), default=0.0)
    if in_force:
        axes.set_ylim(0.9 * low_kw, max(in_force + [s.true_w / 1e3 for s in samples if s.in_force]) * 1.15)
    axes.set_ylabel("kW at the meter")
    axes.set_xlabel("seconds since the first request")
    axes.set_title(budget, loc="left", fontsize=10)
    axes.legend(loc="upper right", fontsize=7, ncols=4, framealpha=0.9)
    axes.grid(alpha=0.25)
    return _png(figure)


def caps_plot(result: PassResult) -> str:
    """Mean enforced cap by role over time, watts."""
    figure = Figure(figsize=(8.6, 2.6))
    axes = figure.subplots()
    for role, rows in sorted(result.caps_by_role.items()):
        t = [at - result.started_s for at, _ in rows]
        axes.plot(t, [w for _, w in rows], color=COLORS.get(role, "#111827"), linewidth=1.4, label=role)
    _mark(axes, result)
    axes.set_ylabel("mean enforced cap, W")
    axes.set_xlabel("seconds since the first request")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.25)
    return _png(figure)


def latency_plot(result: PassResult, name: str, label: str) -> str:
    """P50 and P99 by cluster over windows of 5 s, ms."""
    figure = Figure(figsize=(8.6, 2.6))
    axes = figure.subplots()
    clusters = sorted({f"{r['namespace']}/{r['cluster']}" for r in result.requests})
    for k, cluster in enumerate(clusters):
        rows = [
            (r["t_s"] - result.started_s, r[name])
            for r in result.requests
            if f"{r['namespace']}/{r['cluster']}" == cluster and r[name] is not None
        ]
        if not rows:
            continue
        at, values = np.array([r[0] for r in rows]), np.array([r[1] for r in rows])
        windows = np.arange(0.0, at.max() + WINDOW_S, WINDOW_S)
        for level, style in ((50, "-"), (99, "--")):
            points = [
                (w, float(np.percentile(values[(at >= w) & (at < w + WINDOW_S)], level)))
                for w in windows
                if bool(np.any((at >= w) & (at < w + WINDOW_S)))
            ]
            axes.plot(
                [p[0] for p in points],
                [p[1] for p in points],
                style,
                color=f"C{k}",
                linewidth=1.2,
                label=f"{cluster} p{level}",
            )
        promised_ms = result.slos.get(cluster, {}).get(name)
        if promised_ms is not None:
            axes.axhline(promised_ms, color=f"C{k}", linewidth=1.0, linestyle="-.", label=f"{cluster} promises p99")
    _mark(axes, result)
    # A promise is often far above what is served.
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("seconds since the first request")
    axes.set_ylabel(f"{label}, ms")
    axes.legend(fontsize=7, ncols=2)
    axes.grid(alpha=0.25)
    return _png(figure)


def compare_plot(rows: Sequence[dict[str, Any]]) -> str:
    """Latency of each cluster under each policy, side by side, ms on a log axis. `rows`: as_json of each pass."""
    figure = Figure(figsize=(8.6, 2.8))
    axes_pair = figure.subplots(1, 2)
    for axes, name, label in zip(axes_pair, ("ttft_ms_p99", "tbt_ms_p99"), ("TTFT p99", "TBT p99"), strict=True):
        clusters = sorted({c["cluster"] for row in rows for c in row["clusters"]})
        width = 0.8 / len(rows)
        for k, row in enumerate(rows):
            values = {c["cluster"]: c[name] or 0.0 for c in row["clusters"]}
            axes.bar(
                [i + k * width for i in range(len(clusters))],
                [values.get(c, 0.0) for c in clusters],
                width,
                label=row["policy"],
            )
        axes.set_xticks([i + 0.4 - width / 2 for i in range(len(clusters))], clusters, fontsize=8)
        axes.set_title(f"{label}, ms", loc="left", fontsize=10)
        axes.legend(fontsize=7)
        axes.grid(alpha=0.25, axis="y")
    return _png(figure)
