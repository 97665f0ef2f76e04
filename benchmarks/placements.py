"""``coreflow place`` on a package of 3 000 ops, as a process of its own: seconds and memory, against the limits of 5 s and 1 GB."""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import record
from coreflow.export.package.coremltools_quiet import model_proto

OPS, WIDTH = 3000, 512
MOST_SECONDS, MOST_BYTES = 5.0, 1e9
_FP16 = 10
_ARRAY_FP16 = 65552


def main() -> int:
    """Time it, print the figures, and write them; 1 where a limit is exceeded or torch was imported."""
    with tempfile.TemporaryDirectory() as folder:
        package = write_package(Path(folder) / "chain.mlpackage", OPS)
        completed, seconds = run_without_torch(["place", str(package), "--json"])
    if completed.returncode != 0:
        print(completed.stderr, file=sys.stderr)
        return 1
    (placement,) = json.loads(completed.stdout)["placements"]
    peak = peak_bytes()
    print(f"coreflow place, {len(placement['ops'])} ops in {len(placement['regions'])} regions: {seconds:.2f} s, {peak / 1e6:.0f} MB")
    record("placement", ("coreflow", "coremltools"), ops=len(placement["ops"]), seconds=seconds, peak_bytes=peak)
    return int(seconds > MOST_SECONDS or peak > MOST_BYTES)


def run_without_torch(arguments: list[str]) -> tuple[subprocess.CompletedProcess[str], float]:
    """A coreflow command in a process of its own that cannot import torch, and its seconds."""
    program = "import sys; sys.modules['torch'] = None\nfrom coreflow.cli.main import main\nraise SystemExit(main(sys.argv[1:]))\n"
    began = time.perf_counter()
    completed = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    return completed, time.perf_counter() - began


def peak_bytes() -> int:
    """Most memory that a child process of this one had, up to now."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def write_package(package: Path, ops: int) -> Path:
    """A chain of linear, gelu and cumsum ops without the converter; every fifth cumsum keeps it on the CPU for one op."""
    model = model_proto().Model()
    model.specificationVersion = 9
    for features, name in ((model.description.input, "x"), (model.description.output, f"op_{ops - 1}")):
        feature = features.add(name=name)
        feature.type.multiArrayType.shape.extend([WIDTH, WIDTH])
        feature.type.multiArrayType.dataType = _ARRAY_FP16
    model.mlProgram.version = 1
    function = model.mlProgram.functions["main"]
    function.opset = "CoreML8"
    _declare(function.inputs.add(name="x"), (WIDTH, WIDTH))
    block = function.block_specializations["CoreML8"]
    weight = block.operations.add(type="const")
    _declare(weight.outputs.add(name="weight"), (WIDTH, WIDTH))
    _declare(weight.attributes["val"], (WIDTH, WIDTH))
    weight.attributes["val"].immediateValue.tensor.bytes.values = bytes(2 * WIDTH * WIDTH)
    last = "x"
    for index in range(ops):
        kind = ("linear", "gelu", "cumsum" if index % 15 == 2 else "relu")[index % 3]
        operation = block.operations.add(type=kind)
        operation.inputs["x"].arguments.add(name=last)
        if kind == "linear":
            operation.inputs["weight"].arguments.add(name="weight")
        last = f"op_{index}"
        _declare(operation.outputs.add(name=last), (WIDTH, WIDTH))
    block.outputs.append(last)
    (package / "Data").mkdir(parents=True)
    (package / "Data/model.mlmodel").write_bytes(model.SerializeToString())
    entry = {"name": "model.mlmodel", "path": "model.mlmodel", "author": "coreflow", "description": ""}
    manifest = {"fileFormatVersion": "1.0.0", "itemInfoEntries": {"model": entry}, "rootModelIdentifier": "model"}
    (package / "Manifest.json").write_text(json.dumps(manifest))
    return package


def _declare(value: Any, shape: tuple[int, ...]) -> None:
    tensor = value.type.tensorType
    tensor.dataType, tensor.rank = _FP16, len(shape)
    for extent in shape:
        tensor.dimensions.add().constant.size = extent


if __name__ == "__main__":
    raise SystemExit(main())
