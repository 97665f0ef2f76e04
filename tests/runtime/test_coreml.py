"""The Core ML backend: on a Mac it predicts what the lifted backend predicts; elsewhere it is refused."""

import gc
import platform
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from coreflow.models.errors import UnsupportedError
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.coreml import CoreMLModel, compiled_copy, kept_or_temporary
from coreflow.runtime.load import load_model

IDS = np.arange(16, dtype=np.int32)[None]
MASK = np.ones((1, 16), np.float16)

on_a_mac = pytest.mark.skipif(platform.system() != "Darwin", reason="needs the Core ML framework")


@pytest.mark.skipif(platform.system() == "Darwin", reason="the framework is there")
def test_core_ml_is_refused_off_a_mac(small_package: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"needs the Core ML framework of macOS and this is .*; use 'lifted'"):
        load_model(small_package, "coreml")


@pytest.mark.coreml
@on_a_mac
class TestOnAMac:
    def test_predictions_are_the_lifted_backends(self, small_package: Path) -> None:
        # Hosted machines have no Neural Engine: the CPU is what every Mac has.
        actual = load_model(small_package, "coreml", compute_units="cpu_only").predict({"ids": IDS, "mask": MASK})
        lifted = load_model(small_package, "lifted").predict({"ids": IDS, "mask": MASK})
        assert {name: array.dtype for name, array in actual.items()} == {name: array.dtype for name, array in lifted.items()}
        np.testing.assert_allclose(actual["probabilities"], lifted["probabilities"], atol=5e-3)

    def test_the_callers_arrays_stay_fp16(self, small_package: Path) -> None:
        inputs: dict[str, np.ndarray] = {"ids": IDS.copy(), "mask": MASK.copy()}
        load_model(small_package, "coreml", compute_units="cpu_only").predict(inputs)
        assert inputs["mask"].dtype == np.float16
        np.testing.assert_array_equal(inputs["ids"], IDS)

    def test_the_compiled_copy_is_made_once(self, small_package: Path, tmp_path: Path) -> None:
        first = compiled_copy(small_package, tmp_path)
        stamp = first.stat().st_mtime_ns
        assert compiled_copy(small_package, tmp_path) == first and first.stat().st_mtime_ns == stamp
        assert list(tmp_path.iterdir()) == [first]

    def test_a_model_opens_from_a_cache_of_its_own(self, small_package: Path, tmp_path: Path) -> None:
        from coreflow.export.package.mlpackage import read_program

        model = CoreMLModel(read_program(small_package), LoadOptions(compute_units="cpu_only"), cache_dir=tmp_path)
        assert model.backend == "coreml" and list(model.predict({"ids": IDS, "mask": MASK})) == ["probabilities", "best"]


@pytest.mark.parametrize("surroundings", ["no home", "a cache below a file"])
def test_a_compiled_copy_needs_no_cache(small_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, surroundings: str) -> None:
    """The framework's compiler, which is on macOS alone, is replaced: what is looked at is where the copy lies, and for how long."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    def compile_model(package: str, target: str) -> str:
        Path(target).mkdir()
        return target

    monkeypatch.setattr(
        "coreflow.runtime.coreml.quiet_coremltools", lambda: SimpleNamespace(utils=SimpleNamespace(compile_model=compile_model))
    )
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if surroundings == "no home":
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", home)
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    copy, temporary = kept_or_temporary(small_package)
    assert copy.is_dir() and temporary is not None and copy.parent == temporary.path
    del temporary
    gc.collect()
    assert not copy.exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    copy, temporary = kept_or_temporary(small_package)
    assert temporary is None and copy.parent == tmp_path / "cache" / "coreflow" / "compiled"
