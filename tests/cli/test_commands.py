"""The commands as a user meets them: what they print, and what they return."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coreflow.cli.main import main
from coreflow.export.package.manifest import read_manifest

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def coreflow(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_help_names_every_command_without_loading_torch() -> None:
    program = "import sys; sys.modules['torch'] = None\nfrom coreflow.cli.main import main\nraise SystemExit(main(['--help']))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert all(f" {command} " in ran.stdout for command in ("demo", "train", "export", "run", "validate"))


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["run"], ["run", "x", "--numerics"], ["export", "x"], ["run", "x", "--beams", "0"]], ids=" ".join
)
def test_wrong_usage_is_exit_code_2(coreflow: Run, arguments: list[str]) -> None:
    code, out, err = coreflow(*arguments)
    assert (code, out) == (2, "")
    first, *further = err.splitlines()
    assert first.startswith("error: ") and all(line.startswith("hint: coreflow") for line in further)


def test_version(coreflow: Run) -> None:
    code, out, _ = coreflow("--version")
    assert code == 0 and out.startswith("coreflow ")


def test_run_prints_text_statistics_and_times(coreflow: Run, exported: Path) -> None:
    code, out, _ = coreflow("run", exported / "bundle", "the patient farmer danced behind the old mill")
    assert code == 0
    assert "64 started" in out
    for stage in ("encoder", "lattice_step", "decoder_memory", "decoder_step"):
        assert stage in out


def test_run_as_json_is_json(coreflow: Run, exported: Path) -> None:
    code, out, err = coreflow("run", exported / "bundle", "the farmer saw 漢", "--json", "--beams", 2)
    actual = json.loads(out)
    assert code == 0
    assert actual["unknown"] == ["saw", "漢"] or "漢" in actual["unknown"]
    assert "read as unknown" in err and "漢" in err
    assert len(actual["input_surface"]) == 8 and actual["backend"] in ("lifted", "coreml")


def test_run_reads_lines(coreflow: Run, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr(sys, "stdin", io.StringIO("the old baker\n\n  \nthe young tailor\n"))
    code, out, _ = coreflow("run", exported / "bundle", "--json")
    assert code == 0
    assert len([json.loads(line) for line in out.splitlines()]) == 2


def test_run_warns_of_dropped_tokens(coreflow: Run, exported: Path) -> None:
    code, _, err = coreflow("run", exported / "bundle", "farmer " * 50)
    assert code == 0
    assert "reads 32 tokens; 20 tokens of the text were dropped" in " ".join(err.split())


def test_run_saves_a_picture(coreflow: Run, exported: Path, tmp_path: Path) -> None:
    code, _, _ = coreflow("run", exported / "bundle", "the old baker", "--plot", tmp_path / "flows.png")
    assert code == 0 and (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("run", "{bundle}", ""), 2, "no word in the text"),
        (("run", "nowhere", "x"), 3, "nowhere is not a bundle"),
        (("run", "{bundle}", "x", "--numerics", "fp8"), 2, "fp8"),
        (("run", "{bundle}", "x", "--backend", "onnx"), 2, "choose one of auto, coreml, lifted"),
        (("run", "{bundle}", "x", "--max-tokens", "99"), 2, "max_tokens=99; this decoder writes 32 at most"),
        (("run", "{bundle}", "x", "--beams", "2", "--top-k", "3"), 2, "give one or the other"),
        (("run", "{bundle}", "x", "--top-p", "1.5"), 2, "top_p=1.5"),
        (("train", "--preset", "huge"), 2, "preset 'huge' does not exist; choose one of demo, debug, experiment, optimized"),
        (("train", "--corpus", "nowhere.txt"), 2, "nowhere.txt"),
        (("train", "--device", "tpu"), 2, "device 'tpu'"),
        (("train", "--steps", "0"), 2, "steps=0"),
        (("export", "nowhere", "--out", "{tmp}/x"), 2, "nowhere is nothing to export"),
        (("export", "nowhere.py:X", "--out", "{tmp}/x"), 2, "nowhere.py is not a file"),
        (("export", "{bundle}/../run", "--out", "{tmp}/x", "--target", "iOS9"), 2, "target 'iOS9'"),
    ],
    ids=lambda value: " ".join(value[:1] + value[2:]) if isinstance(value, tuple) else None,
)
def test_bad_input_is_one_clear_line(
    coreflow: Run, exported: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    filled = [argument.format(bundle=exported / "bundle", tmp=tmp_path) for argument in arguments]
    actual, out, err = coreflow(*filled)
    assert (actual, out) == (code, "")
    assert message in " ".join(err.split())
    assert err.startswith("error: ") and len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_empty_corpus_is_refused(coreflow: Run, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n  \n\n")
    code, _, err = coreflow("train", "--corpus", tmp_path / "empty.txt", "--out", tmp_path / "run")
    assert code == 2 and "usable" in err
    assert not (tmp_path / "run").exists()


def test_export_of_the_example_recipe(coreflow: Run, tmp_path: Path) -> None:
    code, out, _ = coreflow("export", f"{ROOT}/examples/recipes.py:CLASSIFIER", "--out", tmp_path / "example", "--json")
    manifest = read_manifest(tmp_path / "example")
    assert code == 0
    assert json.loads(out) == manifest.to_json()
    assert list(manifest.stages) == ["classifier"]


def test_nothing_of_the_converter_reaches_the_user(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "coreflow.cli.main", "export", f"{ROOT}/examples/recipes.py:CLASSIFIER", "--out", str(tmp_path / "x")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert [line.split(":")[0] for line in ran.stderr.splitlines()] == ["classifier"]
    assert ran.stdout.startswith("bundle ")


def test_a_reader_that_goes_away_is_no_error(exported: Path) -> None:
    command = [sys.executable, "-m", "coreflow.cli.main", "run", str(exported / "bundle")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write("the old baker\n" * 20)
        process.stdin.flush()
        process.stdout.readline()
        process.stdout.close()
        time.sleep(0.2)
        process.stdin.write("the old baker\n" * 20)
        process.stdin.close()
        assert process.wait() == 0
        assert process.stderr.read() == ""


def _has_large_pages() -> bool:
    """Whether programs of this system may ask for them, and do not have them anyway."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return setting.exists() and "[madvise]" in setting.read_text()


@pytest.mark.parametrize(
    ("chosen", "policy"),
    [
        pytest.param({}, "PASSIVE", id="default"),
        pytest.param({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", id="chosen", marks=pytest.mark.slow),
    ],
)
def test_threads_wait_without_spinning_unless_the_user_wants_it(chosen: dict[str, str], policy: str) -> None:
    """OpenMP itself tells how it waits, once it is loaded with torch."""
    unset = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run(
        [sys.executable, "-c", "from coreflow.cli.main import main; main(['validate', 'nowhere.mlpackage'])"],
        env={**unset, **chosen, "OMP_DISPLAY_ENV": "TRUE"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert re.search(rf"OMP_WAIT_POLICY\s*=\s*'{policy}'", done.stderr), done.stderr


def test_a_run_is_exported_by_its_folder(exported: Path, bundle: Path, coreflow: Run) -> None:
    code, out, err = coreflow("export", exported / "run", "--out", bundle, "--jobs", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["kind"] == "energy-flow"


@pytest.mark.skipif(not _has_large_pages(), reason="this system has no large pages")
@pytest.mark.parametrize(
    ("chosen", "has_large"),
    [
        pytest.param({}, True, id="default"),
        pytest.param({"THP_MEM_ALLOC_ENABLE": "0"}, False, id="chosen", marks=pytest.mark.slow),
    ],
)
def test_memory_comes_in_large_pages_unless_the_user_forbids_it(chosen: dict[str, str], has_large: bool) -> None:
    """The system itself tells in which pages a tensor lies."""
    code = """
from coreflow.cli.main import main
main(["validate", "nowhere.mlpackage"])
import torch
kept = torch.ones(1 << 24)
print(next(int(line.split()[1]) for line in open("/proc/self/smaps_rollup") if line.startswith("AnonHugePages")))
"""
    unset = {name: value for name, value in os.environ.items() if name != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run([sys.executable, "-c", code], env={**unset, **chosen}, capture_output=True, text=True, check=True)
    assert (int(done.stdout.split()[-1]) > 0) == has_large


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(exported: Path, bundle: Path, coreflow: Run, tmp_path: Path) -> None:
    source, before = f"{ROOT}/examples/recipes.py:CLASSIFIER", sorted(bundle.rglob("*"))
    code, out, err = coreflow("export", source, "--out", tmp_path / "new", "--dry-run")
    assert (code, err) == (0, "") and "classifier  convert" in out and "no bundle is at" in out
    assert not (tmp_path / "new").exists()
    code, out, err = coreflow("export", exported / "run", "--out", bundle, "--dry-run", "--json")
    preview, manifest = json.loads(out), read_manifest(bundle).to_json()["stages"]
    assert (code, err, preview["removed"]) == (0, "", [])
    assert {name: (stage["action"], stage["fingerprint"]) for name, stage in preview["stages"].items()} == {
        name: ("keep", stage["fingerprint"]) for name, stage in manifest.items()
    }
    assert all(preview["stages"][name]["outputs"] == stage["outputs"] for name, stage in manifest.items())
    code, out, _ = coreflow("export", source, "--out", bundle, "--dry-run", "--json")
    assert json.loads(out)["removed"] == sorted(manifest)
    assert sorted(bundle.rglob("*")) == before
