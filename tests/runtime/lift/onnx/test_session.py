"""What onnxruntime would tell its makers about a user's models stays here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coreflow.runtime.lift.onnx.session import import_onnxruntime

ROOT = Path(__file__).parents[4]
PREDICT = """
import sys
from coreflow.runtime import load_model
model = load_model(sys.argv[1], "lifted", engine="onnxruntime")
model.predict({name: [[0] * spec.shape[1]] for name, spec in model.inputs.items()})
"""


@pytest.mark.slow
def test_a_prediction_leaves_nothing_but_our_own_cache(small_package: Path, tmp_path: Path) -> None:
    """In a process that is not under test and not in CI, where onnxruntime is silent by itself; the ONNX form is made in it, too."""
    quiet = {"CI", "ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "GITHUB_ACTIONS", "TF_BUILD", "PYTEST_CURRENT_TEST"}
    environment = {name: value for name, value in os.environ.items() if name not in quiet}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    subprocess.run([sys.executable, "-c", PREDICT, str(small_package)], check=True, env=environment, capture_output=True)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["coreflow"]
    assert not [path for path in tmp_path.rglob("*") if "device" in path.name.lower()]


def test_a_user_can_turn_telemetry_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime()
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "0"


def test_it_is_imported_in_one_place() -> None:
    """Whoever imports it first decides, so nobody else does; not even a test."""
    folders = ("models", "export", "runtime", "validate", "cli", "benchmarks", "examples", "tests")
    importing = {
        str(path.relative_to(ROOT))
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if re.search(r"^\s*(import|from) onnxruntime", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert importing == {str(Path("runtime", "lift", "onnx", "session.py"))}
