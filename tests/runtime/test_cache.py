"""The entries of a cache: whole, or made again; several processes may make one at a time."""

import os
from pathlib import Path

import pytest

from coreflow.runtime.cache import Cache


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "coreflow" / "kind"


CACHE = Cache("kind")


def test_an_entry_is_made_once(folder: Path) -> None:
    made: list[Path] = []

    def make(entry: Path) -> None:
        made.append(entry)
        (entry / "a").write_text("1")
        (entry / "below").mkdir()
        (entry / "below" / "b").write_text("2")

    for _ in range(2):
        assert CACHE.entry("key", make) == folder / "key"
        assert {str(file.relative_to(folder / "key")) for file in (folder / "key").rglob("*")} == {"a", "below", "below/b", "sha256"}
    assert len(made) == 1


@pytest.mark.parametrize("name", ["a", "below/b"])
def test_an_entry_of_which_a_file_changed_is_made_again(folder: Path, name: str) -> None:
    def make(entry: Path) -> None:
        (entry / "below").mkdir()
        for file in ("a", "below/b"):
            (entry / file).write_text("as made")

    CACHE.entry("key", make)
    (folder / "key" / name).write_text("changed")
    assert (CACHE.entry("key", make) / name).read_text() == "as made"


def test_the_second_of_two_processes_takes_the_entry_of_the_first(folder: Path) -> None:
    def first(entry: Path) -> None:
        (entry / "a").write_text("first")

    def second(entry: Path) -> None:
        CACHE.entry("key", first)  # another process, in the meantime
        (entry / "a").write_text("second")

    assert (CACHE.entry("key", second) / "a").read_text() == "first"
    assert [path.name for path in folder.iterdir()] == ["key"]


def test_long_unused_entries_are_deleted_with_the_next_new_one(folder: Path) -> None:
    def make(entry: Path) -> None:
        (entry / "a").write_text("1")

    for path in [CACHE.entry(key, make) for key in ("forgotten", "used")]:
        os.utime(path / "sha256", (0, 0))
    for key in ("old", "recent"):
        CACHE.refuse(key, "no")
    (folder / "not ours").mkdir()
    for name in ("old.refused.txt", "not ours"):
        os.utime(folder / name, (0, 0))
    CACHE.entry("used", make)
    assert (folder / "forgotten").exists()
    CACHE.entry("new", make)
    assert sorted(path.name for path in folder.iterdir()) == ["new", "not ours", "recent.refused.txt", "used"]


def test_nothing_is_left_of_a_failed_entry(folder: Path) -> None:
    def fail(entry: Path) -> None:
        (entry / "a").write_text("incomplete")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        CACHE.entry("key", fail)
    assert list(folder.iterdir()) == [] and not CACHE.knows("key")


def test_a_reason_is_kept_in_place_of_an_entry(folder: Path) -> None:
    assert CACHE.refusal("key") is None and not CACHE.knows("key")
    CACHE.refuse("key", "it has no such form")
    assert CACHE.refusal("key") == "it has no such form" and CACHE.knows("key") and not CACHE.knows("another")
