"""A life is the same for one process after another, and for no two at once."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from splitwatt_operator.life import LIFE_FILE, Life


def test_a_life_goes_on_only_in_the_same_place_and_boot(tmp_path: Path) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one\n")

    def life(folder: Path) -> str:
        made = Life(folder, boot_id_file=boot)
        made_of = made.token
        made.close()
        assert not made.token
        return made_of

    first = life(tmp_path / "a")
    assert len(first) == 16
    assert life(tmp_path / "a") == first
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert life(tmp_path / "b") != first, "a copy is another place"
    assert life(tmp_path / "c") != first
    boot.write_text("two\n")
    assert life(tmp_path / "a") != first, "and another boot, another machine with the same disk"
    boot.write_text("one\n")
    (tmp_path / "a" / LIFE_FILE).write_text("torn")
    assert life(tmp_path / "a") not in ("", first)


def test_no_two_processes_have_one_life(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = Life(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert Life(tmp_path).token == ""
    assert "belongs to another process that lives" in caplog.text
    token = first.token
    first.close()
    assert Life(tmp_path).token == token


def test_what_is_in_the_way_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert Life(tmp_path / "file" / "folder").token == ""
        assert Life(tmp_path / "d", boot_id_file=tmp_path / "none").token == ""
    assert caplog.text.count("is not used") == 2
    assert Life(None).token == ""
