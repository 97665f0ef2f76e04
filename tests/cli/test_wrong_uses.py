"""Wrong uses of the commands that make and read packages: one clear line each, with what would be right."""

import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors.torch import save_file
from torch import nn

from coreflow.export.bundle import export_bundle
from coreflow.export.sources.source import Source
from tests.cli.conftest import Refuses, Run
from tests.cli.wrong_modules import Doubles, recipe

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning")
MODULES = "tests.cli.wrong_modules"
X = ("--input", "x:1x4")
BERT: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
RECIPES = {
    "recipes.py": f"""from {MODULES} import *
RIGHT, OTHER = recipe(), recipe(name='other')
NUMBER, NONE, MIXED = 4, [], [RIGHT, 'head']
def raises(): return {{}}['weights']
def takes(width): return RIGHT
def nothing(): pass
""",
    "none.py": "import math\n",
    "syntax.py": "RIGHT = (\n",
    "fails.py": "import math\nRIGHT = 1 / 0\n",
    "imports.py": "import nowhere_to_be_found\n",
    "exits.py": "import sys\nsys.exit()\n",
    "binary.py": "\0\0",
}

OUTSIDE = {"schema": 1, "name": "x", "kind": "recipes", "created": "", "versions": {}, "stages": {}, "settings": {}, "files": {}}

EXPORTS = {
    # recipe files
    "nowhere.py:RIGHT": "nowhere.py is not a file; give FILE.py:NAME",
    "recipes.py": "which recipe? Give recipes.py:NAME, as in recipes.py:OTHER",
    "recipes.py:WRONG": "recipes.py has no WRONG; its recipes are OTHER, RIGHT",
    "recipes.py:": "which recipe? Give recipes.py:NAME",
    "none.py:RIGHT": "none.py has no RIGHT; no value in it is a Recipe",
    "none.py": "none.py: which recipe? Give none.py:NAME",
    "syntax.py:RIGHT": "syntax.py:1 fails: SyntaxError: '(' was never closed",
    "fails.py:RIGHT": "fails.py:2 fails: ZeroDivisionError: division by zero",
    "imports.py:RIGHT": "imports.py:1 fails: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    "exits.py:RIGHT": "exits.py:2 fails: SystemExit",
    "binary.py:RIGHT": "binary.py fails: SyntaxError: source code string cannot contain null bytes",
    "recipes.py:NUMBER": "recipes.py:NUMBER: int; a Recipe, a list of them, or a function that gives them is right",
    "recipes.py:NONE": "recipes.py:NONE: an empty list; a Recipe, a list of them, or a function that gives them is right",
    "recipes.py:MIXED": "recipes.py:MIXED: str; a Recipe, a list of them, or a function that gives them is right",
    "recipes.py:nothing": "recipes.py:nothing: NoneType; a Recipe",
    "recipes.py:raises": "recipes.py:4 fails: KeyError: 'weights'",
    "recipes.py:takes": "recipes.py fails: TypeError: takes() missing 1 required positional argument: 'width'",
    "recipes.py:RIGHT --task fill-mask": "recipes.py:RIGHT takes no --task",
    "recipes.py:RIGHT --weights weights.pt": "recipes.py:RIGHT takes no --weights",
    "recipes.py:RIGHT --input x:1x4": "recipes.py:RIGHT takes no --input",
    "recipes.py:RIGHT --arguments {\"width\":4}": "recipes.py:RIGHT takes no --arguments",
    "recipes.py:RIGHT --length 8": "recipes.py:RIGHT takes no --length",
    "recipes.py:RIGHT --target iOS9": "target 'iOS9'; choose one of iOS16, iOS17, iOS18",
    # classes
    "nowhere_to_be_found:Small": "nowhere_to_be_found cannot be imported: ModuleNotFoundError: No module named",
    f"{MODULES}:Nowhere": f"{MODULES} has no Nowhere",
    f"{MODULES}:recipe": "is a function; a class of nn.Module is right",
    f"{MODULES}:Subtracts": "which inputs? Give each, as in --input",
    f"{MODULES}:Subtracts --input x:1x4": "does not run on x [1, 4]",
    f"{MODULES}:Subtracts --input right:1x4 --input up:1x4": "Subtracts.forward has no 'up'",
    f"{MODULES}:Counts --input x:1x5": "does not run on x [1, 5]",
    f"{MODULES}:Counts --input x:1x4 --length 8": "takes no --length",
    f"{MODULES}:Counts --input x": "input 'x'; NAME:SHAPE, as in x:1x3x224x224",
    f"{MODULES}:Counts --input x:1x0": "input 'x:1x0': shape (1, 0) has an extent below 1",
    f"{MODULES}:Counts --input x:1x4:float64": "input 'x:1x4:float64'; NAME:SHAPE",
    f"{MODULES}:Counts --input x:1x4:int32:9..0": "input 'x:1x4:int32:9..0': bounds",
    f"{MODULES}:Counts --input x:1x4:int32:1.2.3..9": "input 'x:1x4:int32:1.2.3..9'; NAME:SHAPE",
    f"{MODULES}:Counts --input x:1x4 --input x:1x4": "input 'x' is given twice",
    f"{MODULES}:Counts --input x:1x4 --arguments [": "--arguments '[' is no JSON",
    f"{MODULES}:Counts --input x:1x4 --arguments []": "--arguments '[]'; a JSON object is right",
    f'{MODULES}:Counts --input x:1x4 --arguments {{"width":8}}': "cannot be made of",
    f"{MODULES}:Refuses --input x:1x4": "Refuses cannot be made of {}: no width; --arguments gives them",
    "raising:Small --input x:1x4": "raising cannot be imported: ZeroDivisionError: division by zero",
    # weights
    f"{MODULES}:Counts --input x:1x4 --weights nowhere.pt": "nowhere.pt is not a file",
    f"{MODULES}:Counts --input x:1x4 --weights weights.pt": "weights.pt does not fit Counts: it has no count, still, whole, ones; the",
    f"{MODULES}:Counts --input x:1x4 --weights code.pt": "code.pt holds print, and Python objects are not loaded; tensors alone are right",
    f"{MODULES}:Counts --input x:1x4 --weights module.pt": "module.pt holds torch.nn.modules.linear.Linear, and",
    f"{MODULES}:Counts --input x:1x4 --weights text.pt": "text.pt is no file of weights",
    f"{MODULES}:Counts --input x:1x4 --weights empty.pt": "empty.pt is no file of weights",
    f"{MODULES}:Counts --input x:1x4 --weights tensor.pt": "tensor.pt holds something else than tensors by name",
    f"{MODULES}:Counts --input x:1x4 --weights text.safetensors": "text.safetensors is no file of weights",
    # programs
    "nowhere.pt2": "nowhere.pt2 is not a file",
    "text.pt2": "text.pt2 is no exported program of torch",
    "program.pt2 --input z:1x4": "program.pt2 has no input z; its inputs are input",
    "program.pt2 --arguments {\"width\":4}": "program.pt2 takes no --arguments",
    "ids.pt2": "input 'input' holds whole numbers, whose bounds the program does not say; --input input:1x3:int32:0..HIGHEST",
    "ids.pt2 --input input:1x5:int32:0..9": "the module does not run on input (1, 5)",
    "text.pt": "text.pt is no TorchScript file",
    "cut.pt": "cut.pt is no TorchScript file",
    "weights.pt": "weights.pt is no TorchScript file; a file of weights goes with its class: module.path:Class --weights weights.pt",
    "scripted.pt": "scripted.pt takes input; give each, as in --input input:1x128",
    "scripted.pt --input x:1x4": "scripted.pt takes input; give each",
    "scripted.pt --input input:1x5": "the module does not run on input (1, 5)",
    # folders of transformers
    "empty": "empty is nothing to export: it has no config.json; a run of `coreflow train`",
    "untyped": "untyped is nothing to export: its config.json has no model_type",
    "json": "config.json is no JSON file",
    "unknown": "model type 'novel'; these can be exported from a folder: albert",
    "unweighted": "unweighted holds no weights; model.safetensors is right",
    "pickled": "pickled holds pytorch_model.bin; model.safetensors is right (save it again with save_pretrained)",
    "broken": "transformers cannot load it as AutoModel",
    "bert --task fly": "task 'fly'; a bert can be exported for feature-extraction",
    "bert --task text-classification": "bert has no weights classifier.bias, classifier.weight of a BertForSequenceClassification",
    "bert --length 999": "length 999; bert takes at most 16 tokens",
    "bert --image-size 8": "bert: feature-extraction takes no --image-size; it takes --length, --batch",
    "bert --target iOS9": "target 'iOS9'; choose one of",
    "bert --input x:1x4": "takes no --input",
    "nowhere": "nowhere is nothing to export",
}  # fmt: skip


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of files that the commands are wrongly used with, and of a bundle; not to be changed."""
    folder = tmp_path_factory.mktemp("workshop")
    for name, text in RECIPES.items():
        (folder / name).write_text(text)
    (folder / "raising.py").write_text("1 / 0\n")
    for name in ("text.pt", "text.pt2", "text.safetensors"):
        (folder / name).write_text("no weights at all")
    (folder / "empty.pt").touch()
    layer, x, ids = nn.Linear(4, 4), torch.zeros(1, 4), torch.zeros(1, 3, dtype=torch.int64)
    torch.save(layer.state_dict(), folder / "weights.pt")
    torch.save(x, folder / "tensor.pt")
    torch.save(layer, folder / "module.pt")
    torch.save({"weight": x, "run": print}, folder / "code.pt")
    torch.export.save(torch.export.export(layer, (x,)), folder / "program.pt2")
    torch.export.save(torch.export.export(nn.Embedding(10, 4), (ids,)), folder / "ids.pt2")
    torch.jit.script(layer).save(str(folder / "scripted.pt"))
    (folder / "cut.pt").write_bytes((folder / "scripted.pt").read_bytes()[:-300])
    bert = hf.BertModel(hf.BertConfig(**BERT, max_position_embeddings=16)).eval()
    bert.save_pretrained(folder / "bert")
    for name in ("empty", "untyped", "json", "unknown", "unweighted", "pickled", "broken"):
        (folder / name).mkdir()
    for name in ("unweighted", "pickled", "broken"):
        shutil.copyfile(folder / "bert" / "config.json", folder / name / "config.json")
    (folder / "untyped" / "config.json").write_text("{}")
    (folder / "json" / "config.json").write_text("{")
    (folder / "unknown" / "config.json").write_text('{"model_type": "novel"}')
    (folder / "pickled" / "pytorch_model.bin").touch()
    (folder / "broken" / "model.safetensors").write_bytes(b"\0" * 20)
    for name, text in {"newer": '{"schema": 99}', "torn": '{"schema"', "outside": json.dumps({**OUTSIDE, "companions": "../bert"})}.items():
        (folder / name).mkdir()
        (folder / name / "manifest.json").write_text(text)
    (folder / "locked").mkdir()
    with (folder / "locked" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield folder


@pytest.mark.parametrize("use", EXPORTS)
def test_what_cannot_be_exported_is_one_clear_line(
    refuses: Refuses, workshop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.chdir(workshop)
    assert EXPORTS[use] in refuses(2, "export", *use.split(" "), "--out", tmp_path / "made" / "bundle", "--json")
    assert not list(tmp_path.iterdir())


# What is around the source: (arguments of the command, exit code, what the line says); {made} is where nothing may be written.
AROUND = {
    # destinations
    "export recipes.py:RIGHT": (2, "--out is missing; as in coreflow export my_recipes.py:ENCODER --out artifacts/NAME"),
    "export --out {made}/x": (2, "what to export is missing; as in"),
    "export": (2, "what to export is missing; as in"),
    "export recipes.py:RIGHT --out text.pt": (3, "text.pt is a file; give a folder for the bundle"),
    "export recipes.py:RIGHT --out text.pt/x": (2, "text.pt/x could not be written: Not a directory"),
    "export recipes.py:RIGHT --out empty.pt/x/y": (2, "could not be written: Not a directory"),
    "export recipes.py:RIGHT --out bert": (3, "bert holds files that are not a bundle's; give an empty or new folder"),
    "export recipes.py:RIGHT --out {made}/long": (2, "could not be written: File name too long"),
    "export recipes.py:RIGHT --out /proc/x": (2, "/proc/x could not be written: "),
    "export recipes.py:RIGHT --out newer": (3, "newer/manifest.json has schema 99, and this coreflow reads up to 2"),
    "export recipes.py:RIGHT --out torn": (3, "torn/manifest.json cannot be read"),
    "export recipes.py:RIGHT --out locked": (3, "locked is being written by another export; wait for it to end"),
    # options
    "export recipes.py:RIGHT --out {made}/x --tasks y": (2, "No such option: --tasks (Possible options: --task)"),
    "export recipes.py:RIGHT --out {made}/x --jobs 0": (2, "Invalid value for '--jobs'"),
    "export recipes.py:RIGHT --out {made}/x --length many": (2, "Invalid value for '--length'"),
    "export recipes.py:RIGHT {made}/x": (2, "unexpected extra argument"),
    "convert recipes.py:RIGHT": (2, "No such command 'convert'"),
    # bundles and packages that are none
    "validate": (2, "Missing argument"),
    "validate nowhere": (3, "nowhere is not a bundle: it has no manifest.json; `coreflow export` makes one"),
    "validate nowhere.mlpackage": (3, "nowhere.mlpackage"),
    "validate empty": (3, "empty is not a bundle: it has no manifest.json"),
    "validate bert": (3, "bert is not a bundle: it has no manifest.json"),
    "validate newer": (3, "newer/manifest.json has schema 99"),
    "validate torn": (3, "torn/manifest.json cannot be read"),
    "validate outside": (3, "leads out of the bundle"),
    "run empty x": (3, "empty is not a bundle"),
    "lint": (2, "a source is missing; FILE.py:NAME of recipes, an .mlpackage, or a bundle is right"),
    "lint empty": (2, "empty cannot be linted; FILE.py:NAME of recipes, an .mlpackage, or a bundle is right"),
    "lint nowhere.mlpackage": (3, "nowhere.mlpackage"),
    "lint nowhere.py:RIGHT": (2, "nowhere.py is not a file; give FILE.py:NAME"),
    "lint torn": (3, "torn/manifest.json cannot be read"),
    "inspect nowhere.mlpackage": (3, "nowhere.mlpackage"),
    "inspect empty": (3, "empty"),
    "lift nowhere.mlpackage --to onnx --out {made}/x.onnx": (3, "nowhere.mlpackage"),
    # a bundle of recipes, used wrongly
    "validate {bundle} --reference nowhere.py:RIGHT": (2, "nowhere.py is not a file"),
    "validate {bundle} --reference recipes.py:OTHER": (2, "no package is named after the recipes other; the bundle"),
    "validate {bundle} --reference {package}": (2, "is a bundle; a package is compared with"),
    "validate {bundle} --report report.doc": (2, "report.doc"),
    "validate {bundle} --within 0.1 --contract 0.1": (2, "--within is a contract by itself"),
    "validate {bundle} --limits nowhere.toml": (2, "nowhere.toml"),
    "validate {bundle} --inputs nowhere.npz": (2, "nowhere.npz"),
    "validate {bundle} --seeds 0": (2, "Invalid value for '--seeds'"),
    "validate {bundle} --baseline nowhere.json": (2, "--baseline nowhere.json is not there; --update-baseline writes it"),
    "validate {bundle} --update-baseline": (2, "which file? Give --baseline FILE.json too"),
    "validate {bundle} --backend onnx": (2, "choose one of auto, coreml, lifted"),
    "validate {bundle} {package} --reference recipes.py:RIGHT": (2, "not with both"),
    "validate {package}": (2, "what is it to be compared with?"),
    "validate {package} --reference recipes.py:NUMBER": (2, "recipes.py:NUMBER: int"),
    "validate {package} --reference recipes.py:RIGHT --function step": (2, "no function 'step'; it has main"),
    "validate {package} nowhere.mlpackage": (3, "nowhere.mlpackage"),
    "validate {package} nowhere.onnx": (3, "nowhere.onnx is no ONNX file that onnxruntime opens"),
    "inspect {package} --function step": (2, "no function 'step'; it has main"),
    "lift {package} --to gguf --out {made}/x": (2, "gguf"),
    "run {bundle} words": (3, "small"),
    "run {package} words": (3, "is not a bundle"),
    # damage
    "lint {damaged}": (3, "was changed: its digest is not the recorded one"),
    "run {damaged} words": (3, "weight.bin"),
    "validate {cut}": (3, "weight.bin: the weight file cannot be read (No such file or directory)"),
    "lint {cut}": (3, "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("use", AROUND)
def test_what_is_around_a_source_is_one_clear_line(
    refuses: Refuses, workshop: Path, bundles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.chdir(workshop)
    command, *arguments = [argument.format(made=tmp_path / "made", **bundles) for argument in use.split(" ")]
    arguments = [argument.replace("/long", "/" + "long" * 99) for argument in arguments]
    code, message = AROUND[use]
    assert message in refuses(code, command, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def bundles(workshop: Path) -> dict[str, str]:
    """Paths of a bundle, of its package, and of two copies of which one has a changed and the other a missing file."""
    out, source = workshop / "bundle", Source(recipes=(recipe(),))
    list(export_bundle(source.recipes, out, write_companions=source.write_companions, jobs=1))
    package = next(out.glob("packages/*.mlpackage"))
    for name in ("damaged", "cut"):
        weights = shutil.copytree(out, workshop / name) / package.relative_to(out) / "Data/com.apple.CoreML/weights/weight.bin"
        content = weights.read_bytes()
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1])) if name == "damaged" else weights.unlink()
    return {"bundle": "bundle", "package": str(package.relative_to(workshop)), "damaged": "damaged", "cut": "cut"}


def test_a_bundle_is_linted_by_its_packages(run_command: Run, workshop: Path, bundles: dict[str, str]) -> None:
    code, out, err = run_command("lint", workshop / bundles["bundle"], "--json")
    (package,) = {finding["name"] for finding in json.loads(out)}
    assert (code, err, package) == (0, "", Path(bundles["package"]).name)


def test_a_class_is_validated_with_the_weights_that_its_bundle_carries(run_command: Run, tmp_path: Path) -> None:
    source = f"{MODULES}:Doubles"
    weights = recipe(Doubles()).module.state_dict()
    del weights["second.weight"]  # another name of first.weight
    save_file(weights, tmp_path / "weights.safetensors")
    code, _, err = run_command("export", source, "--input", "x:1x4", "--weights", tmp_path / "weights.safetensors", "--out", tmp_path / "b")
    assert code == 0, err
    (tmp_path / "weights.safetensors").unlink()
    options = ("--reference", source, "--evidence", tmp_path, "--json", "--report", tmp_path / "report.json")
    code, out, err = run_command("validate", tmp_path / "b", *options)
    report = json.loads(out)
    assert (code, report["verdict"]) == (0, "pass"), err
    assert "| Doubles | pass |" in (tmp_path / "b" / "README.md").read_text()
    assert run_command("lint", tmp_path / "b")[0] == 0  # which reads the manifest and every file
