"""The site is assembled from files that are written for the repository: each link leads to where the file went."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def site() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs" / "site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_site"] = module
    spec.loader.exec_module(module)
    return module


def test_every_file_is_a_page_and_every_page_is_in_the_table_of_contents(site: ModuleType) -> None:
    found = site.pages()
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    assert len(found) > 60
    assert site.left_out(found, config) == []
    named = set(site._named(config["project"]["nav"]))
    assert named - found.keys() == set()
    assert site.left_out({**found, "new.md": "# New"}, config) == ["new.md"]


def test_links_lead_to_where_the_files_went(site: ModuleType) -> None:
    found = site.pages("https://git.example.com/power/splitwatt/blob/main")
    home = found["index.md"]
    assert "[Safety](safety.md)" in home and "](docs/" not in home
    assert "](examples.md)" in home
    assert "../e2e/version-matrix.md" not in found["critiques.md"] and "](e2e/version-matrix.md)" in found["critiques.md"]
    assert "](../safety.md#the-reserve)" in found["runbooks/SplitwattBudgetAboveLimit.md"] + "".join(found.values())
    assert "kind: PowerBudget" in found["examples.md"] and "platforms" in found["reference/values.md"]


def test_links_to_other_files_lead_to_the_repository_or_are_plain_text(
    site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "core").mkdir()
    (tmp_path / "core" / "a.py").write_text("")
    (tmp_path / "docs" / "page.md").write_text(
        "# P\n\n[the code](../core/a.py), `[not](a-link)` and\n\n```sh\n[not](../either)\n```\n"
    )
    monkeypatch.setattr(site, "ROOT", tmp_path)
    assert "[the code](https://git.example.com/core/a.py)" in site._linked("docs/page.md", "page.md", "https://git.example.com")
    plain = site._linked("docs/page.md", "page.md", "")
    assert plain.startswith("# P\n\nthe code,") and "[not](../either)" in plain


def test_a_link_that_leads_nowhere_is_named(site: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# P\n\nSee [gone](gone.md#there).\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    with pytest.raises(site.SiteError, match=r"docs/page.md: the link gone.md#there leads to docs/gone.md, which is not there"):
        site._linked("docs/page.md", "page.md", "")
