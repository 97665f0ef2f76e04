"""The public names are these, each is there, and none is paid for before it is used."""

import importlib
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
PUBLIC = {
    "coreflow": [
        "Chain",
        "ImageSpec",
        "Range",
        "Recipe",
        "TensorSpec",
        "build",
        "errors",
        "export",
        "load_model",
        "runtime",
        "validate",
        "validate_bundle",
    ],
    "coreflow.export": ["ImageSpec", "Range", "Recipe", "TensorSpec", "build", "export_bundle", "torch_lowering"],
    "coreflow.runtime": ["Chain", "load_model"],
    "coreflow.validate": ["judge_bundle", "validate", "validate_bundle"],
}


@pytest.mark.parametrize("package", PUBLIC)
def test_public_names_are_pinned(package: str) -> None:
    assert importlib.import_module(package).__all__ == PUBLIC[package]


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in PUBLIC.items() for name in names])
def test_every_public_name_is_there(package: str, name: str) -> None:
    assert getattr(importlib.import_module(package), name) is not None


def test_a_name_is_the_same_object_in_its_room() -> None:
    import coreflow

    for room in (coreflow.export, coreflow.runtime, coreflow.validate):
        for name in set(room.__all__) & set(coreflow.__all__) - {"validate"}:
            assert getattr(coreflow, name) is getattr(room, name)


def test_coreflow_validate_stays_the_package() -> None:
    import coreflow
    import coreflow.validate as room

    assert isinstance(coreflow.validate, ModuleType)
    assert coreflow.validate is room
    assert callable(room.validate)


@pytest.mark.parametrize("package", PUBLIC)
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        _ = importlib.import_module(package).nothing


@pytest.mark.parametrize("path", ["", ".typing"])
def test_a_checkout_imports_itself(path: str) -> None:
    """From the root the folder ``coreflow`` comes first on the path, and the rooms are not inside it."""
    program = "import coreflow.models.errors as module; print(module.__file__)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / path) if path else ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(result.stdout.strip()).resolve() == ROOT / "models/errors.py"
