"""The documentation as a site: `make docs` assembles the pages in out/docs-src and has Zensical build out/docs from them.

The files below docs/ are written to be read in the repository, with links between files as they lie there. On the site README is
the first page; CONTRIBUTING, the end-to-end scenarios, the examples and the chart's values are pages too. A link to any other
file leads to SPLITWATT_REPO_URL where that is set, and is plain text otherwise. A link to a file that is not there, a page that
the table of contents in zensical.toml leaves out, and every warning of Zensical (links and anchors that lead nowhere) fail.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
CONFIG: Final = ROOT / "zensical.toml"
JOINED: Final = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "e2e/README.md": "e2e/index.md",
    "e2e/VERSION-MATRIX.md": "e2e/version-matrix.md",
}
"""Files of the repository, and what they are on the site."""
EXAMPLES: Final = "examples.md"
VALUES: Final = "reference/values.md"
LISTS: Final = {"runbooks": "Runbooks", "decisions": "Decisions", "reproduce": "Reproduced"}
"""Folders whose first page is a list of what lies in them."""
_LINK: Final = re.compile(r"`[^`]*`|(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
"""A link, or a piece of code, in which nothing is one."""
_FENCE: Final = re.compile(r"^ *(```|~~~).*?^ *\1\s*$", re.MULTILINE | re.DOTALL)


MERMAID: Final = "mermaid@11.17.2"
"""Draws the diagrams in the reader's browser. Without a copy the theme has the browser fetch it from unpkg.com."""
MERMAID_PLACE: Final = "javascripts/mermaid.min.js"
CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "splitwatt" / "npm"


class SiteError(Exception):
    """A sentence that says what to mend."""


def pages(repo_url: str = "") -> dict[str, str]:
    """The text of every page by its path on the site. Raises SiteError."""
    found = {there: _linked(here, there, repo_url) for here, there in JOINED.items()}
    for file in sorted((ROOT / "docs").rglob("*.md")):
        there = file.relative_to(ROOT / "docs").as_posix()
        found[there] = _linked(f"docs/{there}", there, repo_url)
    found |= {EXAMPLES: _examples(), VALUES: _values()}
    for folder, title in LISTS.items():
        rows = (
            f"- [{_title(text)}]({posixpath.basename(path)})" for path, text in found.items() if path.startswith(f"{folder}/")
        )
        found[f"{folder}/index.md"] = f"# {title}\n\n" + "\n".join(rows) + "\n"
    return found


def left_out(found: dict[str, str], config: dict[str, Any]) -> list[str]:
    """Pages that the table of contents does not name."""
    return sorted(found.keys() - set(_named(config["project"]["nav"])))


def _named(entry: Any) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    for inner in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from _named(inner)


def _linked(origin: str, src: str, repo_url: str) -> str:
    """The text of a file of the repository, with links that are right from where it stands on the site."""
    base = posixpath.dirname(src)

    def link(found: re.Match[str]) -> str:
        mark, text, target = found.groups()
        path, _, anchor = (target or "").partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return found.group(0)
        there = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
        if not (ROOT / there).exists():
            raise SiteError(f"{origin}: the link {target} leads to {there}, which is not there")
        page = _page_of(there)
        if page is not None:
            # Who reads the site knows pages by their titles, not by the names of files.
            text = _title_of(there) if text.strip("`") in (path, there, posixpath.basename(there)) else text
            return f"{mark}[{text}]({posixpath.relpath(page, base or '.')}{f'#{anchor}' if anchor else ''})"
        return f"[{text}]({repo_url.rstrip('/')}/{there})" if repo_url else text

    markdown = (ROOT / origin).read_text(encoding="utf-8")
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(link, markdown[end : fence.start()]), fence.group(0)]
        end = fence.end()
    return "".join([*parts, _LINK.sub(link, markdown[end:])])


def _page_of(there: str) -> str | None:
    """The page of a file or folder of the repository."""
    if there in JOINED:
        return JOINED[there]
    if there.startswith("examples"):
        return EXAMPLES
    if there == "helm/splitwatt/values.yaml":
        return VALUES
    if there.startswith("docs/") and not there.endswith(".py"):
        page = there.removeprefix("docs/")
        return f"{page}/index.md" if (ROOT / there).is_dir() else page
    return None


def _title_of(there: str) -> str:
    file = ROOT / there
    if there.endswith(".md"):
        return _title(file.read_text(encoding="utf-8"))
    return LISTS.get(file.name, file.name)


def _title(text: str) -> str:
    return next(line.removeprefix("# ") for line in text.splitlines() if line.startswith("# "))


def _yaml(file: Path) -> str:
    return f"```yaml\n{file.read_text(encoding='utf-8').rstrip()}\n```\n"


def _examples() -> str:
    return "# Examples\n\n" + "\n".join(f"## {file.name}\n\n{_yaml(file)}" for file in sorted((ROOT / "examples").glob("*.yaml")))


def _values() -> str:
    chart = ROOT / "helm/splitwatt"
    platforms = "\n".join(f"### {file.name}\n\n{_yaml(file)}" for file in sorted((chart / "platforms").glob("*.yaml")))
    return f"# The chart's values\n\n{_yaml(chart / 'values.yaml')}\n## Per platform\n\n{platforms}"


def assemble(folder: Path, repo_url: str) -> dict[str, str]:
    """Write every page and picture into `folder`, made anew. Raises SiteError."""
    found = pages(repo_url)
    if missing := left_out(found, tomllib.loads(CONFIG.read_text(encoding="utf-8"))):
        raise SiteError(f"zensical.toml: nav leaves out {', '.join(missing)}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "docs" / "img", folder / "img")
    shutil.copy(ROOT / "docs" / "site.css", folder)
    for path, text in found.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return found


def mermaid() -> bytes:
    """Mermaid's script from npm, kept for the next time; empty where there is no npm, and that is said."""
    kept = CACHE / f"{MERMAID}.min.js"
    if not kept.is_file():
        npm = shutil.which("npm")
        if npm is None:
            sys.stdout.write("no npm: diagrams will be drawn by a script that readers' browsers fetch from unpkg.com\n")
            return b""
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            packed = subprocess.run([npm, "pack", "--silent", MERMAID], cwd=folder, capture_output=True, text=True, check=False)
            if packed.returncode:
                sys.stdout.write(f"npm pack {MERMAID} failed, so readers' browsers fetch it: {packed.stderr.strip()[-300:]}\n")
                return b""
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
                script = package.extractfile("package/dist/mermaid.min.js")
                assert script is not None
                kept.write_bytes(script.read())
    return kept.read_bytes()


def main() -> int:
    try:
        found = assemble(ROOT / "out" / "docs-src", os.environ.get("SPLITWATT_REPO_URL", ""))
    except SiteError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    script = ROOT / "out" / "docs-src" / MERMAID_PLACE
    script.parent.mkdir()
    script.write_bytes(mermaid())
    program = Path(sys.executable).with_name("zensical")
    result = subprocess.run([program, "build", "--clean", "--strict", "-f", str(CONFIG)], cwd=ROOT, check=False)
    if result.returncode == 0:
        sys.stdout.write(f"{len(found)} pages: out/docs/index.html\n")
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
