"""ONNX forms in the cache, which is never trusted blindly. Writing is replaced by something quick: what is looked at is when it happens."""

import hashlib
import shutil
from pathlib import Path

import pytest

from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import UnsupportedError
from coreflow.runtime.lift.onnx import cached
from coreflow.runtime.lift.onnx.cached import cached_onnx


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "coreflow" / "onnx"


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    made: list[str] = []

    def write(program: Program, path: Path, numerics: str, function_name: str | None, *, tuned: bool) -> None:
        assert tuned
        made.append(numerics)
        path.write_bytes(f"{program.path} {numerics} {function_name}".encode() * 9)

    monkeypatch.setattr(cached, "write_onnx", write)
    return made


def test_a_second_session_takes_the_file_of_the_first(small_package: Path, cache: Path, made: list[str]) -> None:
    program = read_program(small_package)
    first, temporary = cached_onnx(program, "fp32")
    assert temporary is None and first.parent.parent == cache and cached_onnx(program, "fp32") == (first, None) and made == ["fp32"]


@pytest.mark.parametrize(
    "damage", ["cut", "changed", "no digest", "other digest", "empty digest", "no file", "another file", "a file in its place"]
)
def test_a_damaged_entry_is_made_again(small_package: Path, cache: Path, made: list[str], damage: str) -> None:
    program = read_program(small_package)
    path, _ = cached_onnx(program, "fp32")
    whole, note = path.read_bytes(), path.with_name("sha256")
    if damage == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif damage == "changed":
        path.write_bytes(whole[:-9] + bytes(9))
    elif damage == "no digest":
        note.unlink()
    elif damage == "no file":
        path.unlink()
    elif damage == "another file":
        path.with_name("model.weights").write_bytes(b"x")
    elif damage == "a file in its place":
        shutil.rmtree(path.parent)
        path.parent.write_bytes(b"x")
    else:
        note.write_text("0" * 64 if damage == "other digest" else "")
    assert cached_onnx(program, "fp32") == (path, None) and path.read_bytes() == whole and len(made) == 2
    assert [entry.name for entry in cache.iterdir()] == [path.parent.name]  # and nothing half-done beside it
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "sha256"]


def test_numerics_package_and_function_decide_the_entry(
    small_package: Path, palettized_package: Path, cache: Path, made: list[str]
) -> None:
    small, other = read_program(small_package), read_program(palettized_package)
    entries = [cached_onnx(*key) for key in ((small, "fp32"), (small, "fp16"), (other, "fp32"), (small, "fp32", "f"), (small, "fp32"))]
    assert len(set(entries)) == 4 and len(made) == 4


def test_so_does_the_processor(small_package: Path, cache: Path, made: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_program(small_package)
    here = cached_onnx(program, "fp32")
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "another")
    assert cached_onnx(program, "fp32") != here and len(made) == 2


def test_so_do_our_own_sources() -> None:
    """All of them: a change of how a model is tuned must not meet what was made before it."""
    sources = list(Path(cached.__file__).parents[1].rglob("*.py"))
    makers = set(cached._makers())
    assert {path.parent.name for path in sources} >= {"lift", "ops", "numerics", "plan", "onnx", "tuning"}
    assert all(hashlib.sha256(path.read_bytes()).hexdigest() in makers for path in sources)


def test_a_refusal_is_remembered(branching_package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = read_program(branching_package)
    with pytest.raises(UnsupportedError) as first:
        cached_onnx(program, "fp32")
    monkeypatch.setattr(cached, "write_onnx", lambda *_, **__: pytest.fail("tried twice"))
    with pytest.raises(UnsupportedError) as second:
        cached_onnx(program, "fp32")
    assert str(first.value) == str(second.value)
    assert [entry.suffix for entry in cache.iterdir()] == [".txt"]
