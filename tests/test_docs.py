"""What the documentation says of the code is what the code says."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from coreflow.cli.main import COMMANDS
from coreflow.models import errors

ROOT = Path(__file__).parent.parent
ROOMS = ("coreflow", "models", "export", "runtime", "validate", "cli", "docs", "benchmarks")
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def test_generated_parts_are_up_to_date() -> None:
    result = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_every_module_has_a_docstring(room: str) -> None:
    silent = [str(path) for path in sorted((ROOT / room).rglob("*.py")) if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"`coreflow {command}" in (ROOT / "docs/commands.md").read_text()


def test_every_exit_code_of_an_error_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text()
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.CoreflowError)]
    assert kinds
    assert all(f"\n| {kind.exit_code} | " in text for kind in kinds)


def test_every_path_that_a_page_names_is_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    rooms = "|".join((*ROOMS, "tests", "examples"))
    named = {(page.name, path) for page in pages for path in re.findall(rf"`((?:{rooms})/[\w/.]*)`", page.read_text())}
    assert named
    assert [(page, path) for page, path in sorted(named) if not (ROOT / path).exists()] == []


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    settings = (ROOT / "zensical.toml").read_text()
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert pages
    assert [page for page in pages if f'"{page}"' not in settings] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_stored_without_outputs(path: Path) -> None:
    cells = json.loads(path.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the notebook's machinery
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert any(cell.get("outputs") for cell in notebook.cells)
