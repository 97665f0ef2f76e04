"""``coreflow place``: what it prints, as text and as JSON, and its errors."""

import json
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from coreflow.cli.main import main
from coreflow.cli.text.placement import show_comparison
from coreflow.export.engine.compute_plan import PlanOp, compare
from coreflow.export.engine.placement import place
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.mlpackage import read_program


@pytest.fixture
def encoder(exported: Path) -> Path:
    (package,) = (exported / "bundle").glob("packages/encoder.mlpackage")
    return package


def test_text_names_devices_in_words_and_says_that_nothing_was_measured(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(encoder)]) == 0
    text = capsys.readouterr().out
    for part in (
        "A prediction from a published model, not measured",
        "on the Neural Engine and",
        "on the CPU",
        "M4/macOS27 (H16G)",
        "CPU_AND_NE",
    ):
        assert part in text
    assert "not on the Neural Engine, 1 op (gather)" in text
    assert "what would change it: the Neural Engine would save" in text
    assert "K: 751K/" in text


def test_all_ops_are_shown_on_request(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(encoder), "--all-ops"]) == 0
    assert capsys.readouterr().out.count("layer_norm") > 1


def test_json_holds_every_op_with_its_estimates(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(encoder), "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    (placement,) = plain["placements"]
    assert (plain["kind"], plain["plan"] is None) == ("prediction from a published model, not measured", platform.system() != "Darwin")
    assert placement["counts"]["engine"] + placement["counts"]["cpu"] == len(placement["ops"])
    assert sum(op["share"] for op in placement["ops"]) == pytest.approx(1)
    assert [op["type"] for op in placement["ops"] if op["supported"] == ["cpu"]] == ["gather"]
    assert placement["evidence"]["graph"] == {"label": "measured", "source": "K", "borrowed_from": ""}
    assert [(region["first"], region["last"]) for region in placement["regions"]] == [(0, len(placement["ops"]) - 1)]


def test_all_of_the_demo_belongs_on_the_cpu(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(exported / "bundle"), "--json"]) == 0
    stages = json.loads(capsys.readouterr().out)
    assert len(stages) == 6
    assert {op["device"] for stage in stages for placement in stage["placements"] for op in placement["ops"]} == {"cpu"}


def test_a_plan_stands_beside_the_prediction(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a plan of the form that a Mac gives: the last op on the Neural Engine, and one that the file does not have."""
    placement = place(read_program(encoder).function()[0], find_targets("M4/macOS27")[0])
    measured = [
        PlanOp(op.result, op.type, op.device, ("cpu", "engine") if op.support.engine else ("cpu",), op.share) for op in placement.ops[:-1]
    ]
    last = placement.ops[-1]
    measured += [PlanOp(last.result, last.type, "engine", ("cpu", "engine"), 0.5), PlanOp("other", "relu", "cpu", ("cpu",), None)]
    comparison = compare(placement, measured)
    show_comparison(placement, comparison, False)
    text = capsys.readouterr().out
    ops = len(placement.ops)
    assert f"{ops - 1} of {ops} ops as predicted" in text
    assert "on Neural Engine: measured 1, predicted 0" in text
    assert "not compared: 0 ops of the file, 1 of the plan" in text
    assert text.count("differs") == 1
    show_comparison(placement, comparison, True)
    assert capsys.readouterr().out.count("layer_norm") > 1


def test_a_target_without_a_table_is_told_by_its_neighbours(encoder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", str(encoder), "--target", "M3/macOS27"]) == 0
    text = capsys.readouterr().out
    assert "M3/macOS27 has no table; predicted for its neighbours, M2/macOS27 and M4/macOS27" in text
    assert "M2/macOS27 and M4/macOS27 agree on every op" in text
    assert main(["place", str(encoder), "--target", "M9"]) == 0
    assert "M9 has no table; predicted for its neighbour, M6/macOS27" in capsys.readouterr().out
    for known in ("M4", "H16G", "M4/macOS27.0.1"):
        assert main(["place", str(encoder), "--target", known]) == 0
        assert "has no table" not in capsys.readouterr().out


def test_targets_are_listed_with_their_evidence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["place", "--targets"]) == 0
    text = capsys.readouterr().out
    assert "M4/macOS27" in text and "not published for this target" in text
    assert main(["place", "--targets", "--json"]) == 0
    assert "M4/macOS27" in [target["key"] for target in json.loads(capsys.readouterr().out)["targets"]]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nowhere.mlpackage",), 3, "no such package"),
        (("nowhere",), 3, "is not a bundle"),
        (("{package}", "--function", "other"), 2, "no function 'other'; it has main"),
        (("{package}", "--target", "A17"), 2, "no target 'A17'; tables exist for M4/macOS27"),
        ((), 2, "a package is missing"),
        pytest.param(
            ("{package}", "--learn", "file"), 2, "only a Mac has", marks=pytest.mark.skipif(platform.system() == "Darwin", reason="a Mac")
        ),
    ],
    ids=["nowhere", "no bundle", "function", "target", "nothing", "learn"],
)
def test_bad_input_is_one_clear_line(
    encoder: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, message: str
) -> None:
    assert main(["place", *(part.format(package=encoder) for part in arguments)]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in " ".join(captured.err.replace("│", " ").split())


def test_a_placement_imports_no_torch_and_stays_below_a_gigabyte(encoder: Path) -> None:
    program = (
        "import sys\n"
        "for heavy in ('torch', 'transformers', 'onnx', 'matplotlib', 'coremltools.converters'): sys.modules[heavy] = None\n"
        "from coreflow.cli.main import main\n"
        f"assert main(['place', {str(encoder)!r}, '--json']) == 0\n"
        "assert 'coremltools' not in sys.modules\n"
    )
    completed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    kilobytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    assert kilobytes < 1e6
