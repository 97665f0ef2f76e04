"""``--html`` of place and lint: one page of a package or a bundle, without torch, and its errors."""

import subprocess
import sys
from pathlib import Path

import pytest

from coreflow.cli.main import main
from coreflow.cli.text.maps import map_of
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program


@pytest.fixture
def encoder(exported: Path) -> Path:
    (package,) = (exported / "bundle").glob("packages/encoder.mlpackage")
    return package


@pytest.mark.parametrize("command", ["place", "lint"])
def test_a_map_holds_every_op_of_a_package(command: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(encoder), "--html", str(tmp_path / "map.html")]) in (0, 1)
    page = (tmp_path / "map.html").read_text()
    assert page.count("<li ") > 50 and "on the CPU, predicted for M4/macOS27 from a published model, not measured" in page
    assert "layer_norm" in page and "ops are proved to stay in range" in page and "K: 751K/" in page


def test_a_map_of_a_bundle_has_its_stages(exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(exported / "bundle"), "--target", "M1", "--html", str(tmp_path / "map.html")]) == 0
    page = (tmp_path / "map.html").read_text()
    assert page.count('<section class="program">') == 6 and "<h2>lattice_step</h2>" in page


def test_a_map_needs_no_torch(encoder: Path, tmp_path: Path) -> None:
    program = "import sys; sys.modules['torch'] = None\nfrom coreflow.cli.main import main\nraise SystemExit(main(sys.argv[1:]))\n"
    command = [sys.executable, "-c", program, "place", str(encoder), "--html", str(tmp_path / "map.html")]
    assert subprocess.run(command, capture_output=True, text=True, check=False).returncode == 0
    assert (tmp_path / "map.html").stat().st_size > 10_000


def test_a_map_that_cannot_be_written_and_a_map_of_a_recipe_are_errors(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main(["place", str(encoder), "--html", str(tmp_path / "file" / "map.html")]) not in (0, 1)
    assert "map.html cannot be written" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "recipes.py").write_text(
        "import torch\nfrom coreflow import Recipe, TensorSpec\n"
        "R = Recipe(name='r', module=torch.nn.Linear(4, 4).eval(), inputs={'x': TensorSpec((1, 4))}, outputs=('y',))\n"
    )
    assert main(["lint", f"{tmp_path / 'recipes.py'}:R", "--html", str(tmp_path / "map.html")]) not in (0, 1)
    assert "a map is of a saved program" in " ".join(capsys.readouterr().err.split())


def test_an_op_reads_those_whose_results_are_its_inputs(encoder: Path) -> None:
    graph, _ = read_program(encoder).function()
    placement = place(graph, find_targets("M4")[0])
    entry = map_of("encoder", graph, placement, [], None)
    results = {op.outputs[0].name: op for op in graph.ops}
    makers = {op.result: number for number, op in enumerate(placement.ops)}
    assert sum(len(op.reads) for op in entry.ops) > len(entry.ops)
    for shown, placed in zip(entry.ops, placement.ops, strict=True):
        inputs = {value.name for value in results[placed.result].input_values()}
        assert set(shown.reads) >= {makers[name] for name in inputs & set(makers)}
        assert len(shown.reads) <= len(inputs)
