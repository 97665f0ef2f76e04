"""The tree is the architecture: packages are listed, imports point one way, and light modules stay light."""

import ast
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("models", "export", "runtime", "validate", "cli")
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Imports point upwards only.
ALLOWED = {
    "models": {"models"},
    "export": {"models", "export"},
    "runtime": {"models", "export", "runtime"},
    "validate": {"models", "export", "runtime", "validate"},
    "cli": set(FOLDERS),
}
# A converted program is executed before it is put in place. No cycle: of export, ``runtime`` imports ``SHARED`` only.
EXECUTION = "coreflow.export.proof.execution"
SHARED = "coreflow.export.package"  # of export, all that other rooms may import

# The rooms of validate, in the order of a judgement: on which inputs, against which reference, what runs, by which limits, why, again.
VALIDATE_ROOMS: dict[str, set[str]] = {
    "report": set(),
    "inputs": set(),
    "references": {"inputs", "pairing"},
    "pairing": set(),
    "ladder": {"inputs", "references", "pairing"},
    "gates": {"inputs", "references", "ladder"},
    "diagnosis": {"inputs", "references", "ladder", "gates"},
    "replay": {"inputs", "ladder"},
    "probe": {"gates"},
}
# Values and arithmetic that every room may import; they import one another only.
VALIDATE_LEAVES = {f"coreflow.validate.{leaf}" for leaf in ("report.model", "gates.metrics", "gates.tolerance", "options")}


def modules() -> dict[str, Path]:
    return {
        ".".join(("coreflow", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__"): path
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }


def imports(path: Path) -> set[str]:
    actual: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            actual |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            actual.add(str(node.module))
    return actual


def test_every_package_of_the_tree_is_listed() -> None:
    tree = {"coreflow"} | {name for name, path in modules().items() if path.name == "__init__.py"}
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == tree
    folders = {path.parent for path in modules().values()}
    assert all((folder / "__init__.py").exists() for folder in folders)


def test_every_room_of_validate_has_a_row() -> None:
    assert {path.parent.name for path in (ROOT / "validate").glob("*/__init__.py")} == set(VALIDATE_ROOMS)


def test_type_checkers_find_every_folder() -> None:
    links = {link.name: link.resolve() for link in (ROOT / ".typing/coreflow").iterdir()}
    own = {name: ROOT / "coreflow" / name for name in ("__init__.py", "py.typed")}
    assert links == own | {folder: ROOT / folder for folder in FOLDERS}


@pytest.mark.parametrize("name", modules())
def test_imports_point_one_way(name: str) -> None:
    folder = name.split(".")[1]
    for imported in imports(modules()[name]):
        parts = imported.split(".")
        assert parts[0] not in FOLDERS, f"{name} imports {imported}: the full name is coreflow.{imported}"
        if parts[0] == "coreflow" and len(parts) > 1:
            assert parts[1] in ALLOWED[folder] or (name == EXECUTION and parts[1] == "runtime"), f"{name} imports {imported}"
            if folder == "runtime" and parts[1] == "export":
                assert f"{imported}.".startswith(f"{SHARED}."), f"{name} imports {imported}; of export, runtime may import {SHARED}"


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("coreflow.validate.")])
def test_rooms_of_validate_import_one_way(name: str) -> None:
    """A room imports itself, the rooms in its row and the leaves; no room imports the modules beside the rooms, which call all of them."""
    ours = {imported for imported in imports(modules()[name]) if imported.startswith("coreflow.validate.")}
    room = name.split(".")[2]
    if name in VALIDATE_LEAVES:
        assert ours <= VALIDATE_LEAVES, name
    elif room in VALIDATE_ROOMS:
        allowed = {room, *VALIDATE_ROOMS[room]}
        assert not {imported for imported in ours - VALIDATE_LEAVES if imported.split(".")[2] not in allowed}


@pytest.mark.parametrize("name", [name for name in modules() if name.startswith("coreflow.models")])
def test_models_never_import_the_converter(name: str) -> None:
    assert not any(imported.startswith("coremltools") for imported in imports(modules()[name]))


HEAVY = ("torch", "coremltools", "transformers", "onnx", "onnxruntime", "matplotlib", "tokenizers")
LIGHT = (
    "coreflow",
    "coreflow.cli.main",
    "coreflow.cli.text.findings",
    "coreflow.cli.text.placement",
    "coreflow.export",
    "coreflow.export.engine.advice",
    "coreflow.export.engine.compute_plan",
    "coreflow.export.engine.lint",
    "coreflow.export.engine.segmenter",
    "coreflow.export.lint.lint",
    "coreflow.export.lint.sarif",
    "coreflow.export.package.manifest",
    "coreflow.export.package.mlpackage",
    "coreflow.export.package.op_facts",
    "coreflow.models.data.grammar",
    "coreflow.models.energy.config",
    "coreflow.models.energy.decoding",
    "coreflow.models.energy.family",
    "coreflow.models.errors",
    "coreflow.models.family",
    "coreflow.models.spec",
    "coreflow.runtime",
    "coreflow.runtime.load",
    "coreflow.validate",
)


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_load_nothing_heavy(name: str) -> None:
    program = f"import sys\nfor heavy in {HEAVY}: sys.modules[heavy] = None\nimport {name}\n"
    subprocess.run([sys.executable, "-c", program], check=True)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length of every function, from its ``def`` to its last line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_file_is_longer_than_500_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules().values()}
    assert not {path for path, lines in lengths.items() if lines > 500}


def test_no_function_is_longer_than_60_lines() -> None:
    lengths = [function for path in modules().values() for function in functions(path)]
    assert not {name for name, lines in lengths if lines > 60}


def test_no_folder_holds_more_than_15_modules() -> None:
    sizes = Counter(str(path.parent.relative_to(ROOT)) for path in modules().values() if path.name != "__init__.py")
    assert not {folder for folder, count in sizes.items() if count > 15}
