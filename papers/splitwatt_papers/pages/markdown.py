"""What the pages below docs/reproduce share: intervals over seeds, tables, blocks of figures, and lines of one width."""

from __future__ import annotations

import re
import statistics
import textwrap
from collections.abc import Sequence
from typing import Final

MIN_SEEDS: Final = 5
MAX_SEEDS: Final = 100
WIDTH: Final = 120
_ITEM: Final = re.compile(r"(- |\d+\. )")
_AS_IT_IS: Final = ("#", "|", "    ", "!")


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half width of its 95 % interval by Student's t, its quantile to 1 % from 4 degrees of freedom on (Fisher's
    expansion). Raises ValueError on fewer than `MIN_SEEDS` values."""
    if len(values) < MIN_SEEDS:
        raise ValueError(f"an interval needs {MIN_SEEDS} or more values, not {len(values)}")
    z, free = statistics.NormalDist().inv_cdf(0.975), len(values) - 1
    t = z + (z**3 + z) / (4 * free) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * free**2)
    t += (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * free**3)
    return statistics.fmean(values), t * statistics.stdev(values) / len(values) ** 0.5


def spread(values: Sequence[float], form: str = ".1f", *, percent: bool = False) -> str:
    """Mean and 95 % interval, as text."""
    mean, half = interval([100 * v for v in values] if percent else list(values))
    unit = " %" if percent else ""
    return f"{mean:{form}} ± {half:{form}}{unit}" if half > 0 else f"{mean:{form}}{unit}"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def filled(text: str, blocks: dict[str, str]) -> str:
    """The page with each block `<!-- figures: name --> ... <!-- end -->` written anew. Raises ValueError unless the page has
    each block once."""
    for name, block in blocks.items():
        begin, end = f"<!-- figures: {name} -->", "<!-- end -->"
        if text.count(begin) != 1:
            raise ValueError(f"the page must have the block of figures {name!r} once, not {text.count(begin)} times")
        before, rest = text.split(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the block of figures {name!r} has no end")
        text = f"{before}{begin}\n\n{block}\n\n{end}{after}"
    return text


def wrapped(text: str) -> str:
    """The page with its prose wrapped at `WIDTH`, items hanging; headings, tables, pictures and code stay as they are. Figures
    are of any length, so a source cannot break its lines where the page should."""
    blocks = re.split(r"\n{2,}", text.strip("\n"))
    return "\n\n".join(b if b.startswith(_AS_IT_IS) else "\n".join(_filled(b)) for b in blocks) + "\n"


def _filled(block: str) -> list[str]:
    items: list[str] = []
    for line in block.splitlines():
        if not items or _ITEM.match(line):
            items.append(line)
        else:
            items[-1] += f" {line.strip()}"
    hang = [" " * len(found[0]) if (found := _ITEM.match(item)) else "" for item in items]
    fills = zip(items, hang, strict=True)
    return [
        textwrap.fill(item, WIDTH, subsequent_indent=by, break_long_words=False, break_on_hyphens=False) for item, by in fills
    ]
