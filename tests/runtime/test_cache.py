"""An entry of the cache: whole, or made again; several processes may make it at a time."""

import os
from pathlib import Path

import pytest

from coreflow.runtime.cache import cached_entry


def test_an_entry_is_made_once(tmp_path: Path) -> None:
    made: list[Path] = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "a").write_text("1")
        (folder / "b").write_text("2")

    entry = tmp_path / "below" / "entry"
    for _ in range(2):
        assert cached_entry(entry, make) == entry
        assert {file.name: file.read_text() for file in entry.iterdir() if file.name != "sha256"} == {"a": "1", "b": "2"}
    assert len(made) == 1


def test_who_comes_second_takes_what_the_first_made(tmp_path: Path) -> None:
    entry = tmp_path / "entry"

    def first(folder: Path) -> None:
        (folder / "a").write_text("first")

    def second(folder: Path) -> None:
        cached_entry(entry, first)  # another process, in the meantime
        (folder / "a").write_text("second")

    assert cached_entry(entry, second) == entry
    assert (entry / "a").read_text() == "first" and [each.name for each in tmp_path.iterdir()] == ["entry"]


def test_what_nobody_used_for_long_goes_when_something_new_comes(tmp_path: Path) -> None:
    def make(folder: Path) -> None:
        (folder / "a").write_text("1")

    entries = [cached_entry(tmp_path / name, make) for name in ("forgotten", "used")]
    for entry in entries:
        os.utime(entry / "sha256", (0, 0))
    for name in ("old.refused.txt", "refused.txt"):
        (tmp_path / name).write_text("no")
    (tmp_path / "not ours").mkdir()
    for name in ("old.refused.txt", "not ours"):
        os.utime(tmp_path / name, (0, 0))
    cached_entry(tmp_path / "used", make)
    assert (tmp_path / "forgotten").exists()
    cached_entry(tmp_path / "new", make)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["new", "not ours", "refused.txt", "used"]


def test_nothing_is_left_of_what_failed(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cached_entry(tmp_path / "entry", fail)
    assert list(tmp_path.iterdir()) == []
