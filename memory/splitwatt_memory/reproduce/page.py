"""Writes the figures and the picture of docs/reproduce/buddy.md: `python -m splitwatt_memory.reproduce.page`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from splitwatt_memory.files.tensor import TensorFileError
from splitwatt_memory.profile import CODECS, Summary
from splitwatt_memory.reproduce.hpc import PROGRAMS
from splitwatt_memory.reproduce.llama import kv_cache
from splitwatt_memory.reproduce.plot import draw
from splitwatt_memory.reproduce.real import Coded, rows_of
from splitwatt_memory.reproduce.samples import MINILM, SMOLLM2, SampleError, ensure
from splitwatt_memory.reproduce.study import FIG12, FIG12_WITHIN, Studied, fig12, gmean, moments_of, paper_speed, studied
from splitwatt_memory.reproduce.training import NETWORKS

COMMAND: Final = "python -m splitwatt_memory.reproduce.page"
PAPER_BPC: Final = {"hpc": ("2.51", "1.57", "1.7", "**1.9**, 0.08 %"), "dl": ("1.85", "1.18", "1.4", "**1.5**, 4 %")}
"""ISCA'20: sizes without packing (fig. 3), one target, a target for each allocation, and with 16x for zeros."""
TOKENS: Final = 768
Found = Mapping[str, Mapping[str, Studied]]


def all_studied() -> Found:
    """By codec, then by program."""
    found: dict[str, dict[str, Studied]] = {"bpc": {}, "zvc": {}}
    for name, program in {**PROGRAMS, **NETWORKS}.items():
        snapshots = [dict(snapshot) for snapshot in program()]
        for codec, rows in found.items():
            rows[name] = studied(moments_of(snapshots, codec))
    return found


def study_table(found: Found) -> str:
    rows = []
    for label, names, paper in (("HPC-like", PROGRAMS, PAPER_BPC["hpc"]), ("CNN training", NETWORKS, PAPER_BPC["dl"])):
        for codec, each in found.items():
            rows += [[name, codec, *_designs(each[name])] for name in names]
            rows.append([f"**{label}, geometric mean**", codec, *_means([each[name] for name in names])])
        rows.append([f"*the paper's, {label.split()[0].replace('CNN', 'deep learning')}*", "bpc", *paper])
    head = ["program", "codec", "sizes alone", "one target", "per allocation", "with 16x, overflow"]
    return markdown(head, rows)


def _designs(one: Studied) -> list[str]:
    def text(summary: Summary) -> str:
        return f"{summary.target_ratio:.2f}, {summary.overflow_fraction:.1%}"

    return [f"{one.optimistic:.2f}", *map(text, (one.naive, one.each, one.final))]


def _means(rows: Sequence[Studied]) -> list[str]:
    parts: tuple[Callable[[Studied], float], ...] = (
        lambda one: one.optimistic, lambda one: one.naive.target_ratio,
        lambda one: one.each.target_ratio, lambda one: one.final.target_ratio,
    )  # fmt: skip
    return [f"{gmean(rows, part):.2f}" for part in parts]


def link_table() -> str:
    rows = [
        [str(link), f"{read:.3f}", f"{fig12(link):.3f}", f"{fig12(link) / read - 1:+.1%}",
         "holds" if abs(fig12(link) / read - 1) <= FIG12_WITHIN else "**missed**"]
        for link, read in FIG12.items()
    ]  # fmt: skip
    return markdown(["link, GB/s", "figure 12", "the rule", "off by", f"within {FIG12_WITHIN:.0%}"], rows)


def own_link_table(found: Found) -> str:
    rows = []
    for codec, each in found.items():
        for name, one in each.items():
            final = one.final
            speeds = [paper_speed(final.overflow_fraction, min(final.overflow_share, 1.0), link) for link in FIG12]
            rows.append([name, codec, f"{final.overflow_fraction:.1%}", *(f"{speed:.3f}" for speed in speeds)])
    return markdown(["program", "codec", "overflow", *(f"{link} GB/s" for link in FIG12)], rows)


def today_table(rows: Sequence[tuple[str, Coded]]) -> str:
    def text(one: Coded, codec: str) -> str:
        target = one.target(codec)
        over = f", {target.overflow_fraction:.2%}" if target.ratio > 1 else ""
        return f"{'**' if over else ''}{target.ratio:.2f}{'**' if over else ''}{over} ({one.sizes[codec].raw_ratio:.2f})"

    return markdown(["tensors", *CODECS], [[name, *(text(one, codec) for codec in CODECS)] for name, one in rows])


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows))


def filled(text: str, parts: Mapping[str, str]) -> str:
    """The page, each block `<!-- figures: name --> … <!-- end -->` written anew. Raises ValueError unless each is there once."""
    for name, part in parts.items():
        begin, end = f"<!-- figures: {name} -->", "<!-- end -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not (found and closed) or begin in after:
            raise ValueError(f"the page must have the block of figures {name!r} once, and its end")
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=COMMAND, description="Buddy Compression's page.")
    parser.add_argument("--text", type=Path, default=Path("LICENSE"), help="what SmolLM2 reads (%(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/reproduce"), help="folder of buddy.md (%(default)s)")
    parser.add_argument("--pictures", type=Path, default=Path("docs/img"), help="folder of the picture (%(default)s)")
    options = parser.parse_args(arguments)
    page = options.out / "buddy.md"
    try:
        before, read = page.read_text(encoding="utf-8"), options.text.read_text(encoding="utf-8")
        found, smollm2 = all_studied(), ensure(SMOLLM2)
        kv = kv_cache(smollm2, read, TOKENS)
        today = list(rows_of(ensure(MINILM), kv, smollm2))
        blocks = {
            "study": study_table(found), "links": link_table(), "own links": own_link_table(found), "today": today_table(today),
            "guessed": f"Of the {TOKENS} tokens it would have said {kv.guessed:.0%} itself, so the caches are a working model's.",
        }  # fmt: skip
        paper = {"the paper's mean, HPC (BPC)": 1.9, "the paper's mean, deep learning (BPC)": 1.5}
        draw(found["bpc"], found["zvc"], paper, options.pictures / "reproduce_buddy.png")
        page.write_text(filled(before, blocks), encoding="utf-8")
    except (SampleError, TensorFileError, OSError, ValueError) as error:
        sys.stderr.write(f"{COMMAND}: {error}\n")
        return 1
    sys.stdout.write(f"{blocks['links']}\n{blocks['today']}\nwritten: {page}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
