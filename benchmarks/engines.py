"""Every engine against torch eager and against onnxruntime on a direct export of the source module, on the same inputs in one run.

Packages are converted once, into artifacts/bench. Loading and memory are measured in a process of their own for each engine.
"""

import io
import json
import logging
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.measure import medians_ms, record
from coreflow.export.bundle import BundleDone, export_bundle
from coreflow.export.recipe import Recipe
from coreflow.models.energy.config import find_preset
from coreflow.models.energy.encoder import TextToCubeEncoder
from coreflow.models.spec import TensorSpec
from coreflow.models.t5.config import T5_SMALL
from coreflow.models.t5.decoder import DecoderStep, T5Decoder
from coreflow.runtime import load_model
from coreflow.runtime.backend import EngineName, NumericsName
from coreflow.runtime.lift.engines.auto import COMPILE_AFTER_S
from coreflow.runtime.lift.onnx.session import import_onnxruntime

PACKAGES = Path("artifacts/bench")
ROUNDS = 25
EAGER, DIRECT = "torch eager fp32", "onnxruntime, direct export"
DEFAULT = "default (auto, fp16)"
ENGINES: dict[str, tuple[EngineName, NumericsName]] = {
    DEFAULT: ("auto", "fp16"),
    "interpreter fp16": ("interpreter", "fp16"),
    "interpreter fp32": ("interpreter", "fp32"),
    "module fp32": ("module", "fp32"),
    "onnxruntime fp16": ("onnxruntime", "fp16"),
    "onnxruntime fp32": ("onnxruntime", "fp32"),
}
# (figure, compared with) -> at most this ratio, on two cores.
TARGETS = {
    ("interpreter fp16", EAGER): 1.15,
    (DEFAULT, EAGER): 0.6,
    (DEFAULT, DIRECT): 1.05,
}
LOAD_S, PEAK_RATIO = 2.0, 2.5
# What a process does to load a package and predict once; seconds, and memory above what the imports take. The code of libraries, which is
# read from their files as it is used, is no memory of the package (oneDNN's is 17 MB of resnet50's 140).
_LOAD = """
import json, resource, sys, time
import numpy as np, torch
import coreflow.runtime.lifted
from coreflow.export.package.coremltools_quiet import model_proto
from coreflow.runtime import load_model
model_proto()  # imported with the first package
package, engine, numerics = sys.argv[1:]
if engine in ("onnxruntime", "auto"):
    from coreflow.runtime.lift.onnx.session import import_onnxruntime
    import_onnxruntime()
def peak():
    if sys.platform == "linux":  # there, getrusage hands on what the parent process had
        return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def code():
    if sys.platform != "linux":
        return 0
    total, library = 0, False
    for line in open("/proc/self/smaps"):
        first, *rest = line.split()
        if not first.endswith(":"):
            library = bool(rest) and ".so" in rest[-1]
        elif library and first == "Rss:":
            total += int(rest[0]) * 1024
    return total
before, began = peak() - code(), time.perf_counter()
model = load_model(package, "lifted", engine=engine, numerics=numerics)
seconds = time.perf_counter() - began
model.predict({name: np.zeros(spec.shape, spec.dtype) for name, spec in model.inputs.items()})
print(json.dumps({"load_s": seconds, "peak_bytes": peak() - code() - before}))
"""


class DistilBert(nn.Module):
    """DistilBERT of transformers with its default sizes and random weights, on ids (1, 128) and an additive mask (1, 1, 1, 128)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import DistilBertConfig, DistilBertModel

        config = DistilBertConfig(
            vocab_size=30522, max_position_embeddings=512, n_layers=6, n_heads=12, dim=768, hidden_dim=3072, attn_implementation="eager"
        )
        self.bert = DistilBertModel(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (1, 128, 768)."""
        return self.bert(input_ids=ids, attention_mask=mask).last_hidden_state


class ResNet50(nn.Module):
    """ResNet-50 of transformers with random weights, on pixels (1, 3, 224, 224)."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ResNetConfig, ResNetForImageClassification

        config = ResNetConfig(
            embedding_size=64, hidden_sizes=[256, 512, 1024, 2048], depths=[3, 4, 6, 3], layer_type="bottleneck", num_labels=1000
        )
        self.net = ResNetForImageClassification(config)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores (1, 1000)."""
        return self.net(pixels).logits


def recipes() -> tuple[Recipe, ...]:
    """The four models; weights are random, and the same in every run."""
    torch.manual_seed(0)
    config = find_preset("debug").config("debug", vocabulary=8000, decoder_vocabulary=8000)
    encoder = TextToCubeEncoder(config)
    for parameter in encoder.parameters():
        if not parameter.any():  # branches that start at zero
            nn.init.normal_(parameter, std=0.02)
    step = t5_recipe()
    ids = TensorSpec((1, 128), "int32", (0, 7999))
    return (
        Recipe(
            name="text_encoder",
            module=encoder.eval(),
            inputs={"ids": ids, "mask": TensorSpec((1, 128), values=(0, 1))},
            outputs=("surface",),
        ),
        step,
        Recipe(
            name="resnet50",
            module=ResNet50().eval(),
            inputs={"pixels": TensorSpec((1, 3, 224, 224))},
            outputs=("scores",),
        ),
        Recipe(
            name="distilbert",
            module=DistilBert().eval(),
            inputs={"ids": ids, "mask": TensorSpec((1, 1, 1, 128), bounds=(-1e4, 0))},
            outputs=("hidden",),
        ),
    )


def t5_recipe() -> Recipe:
    """One step of T5-small's decoder, 128 places, 64 of the encoder; always the same weights."""
    torch.manual_seed(1)
    step = DecoderStep(T5Decoder(T5_SMALL), 128)
    return Recipe(name="t5_small_step", module=step.eval(), inputs=step.input_specs(64), outputs=step.output_names)


def main() -> int:
    """Convert, time, print tables, and write the results; 1 when a target is missed."""
    console, made = Console(width=None if sys.stdout.isatty() else 160), recipes()
    packages = _packages(made)
    times, loads = {}, {}
    for recipe in made:
        console.print(f"{recipe.name} ...", style="dim")
        times[recipe.name] = medians_ms(_candidates(recipe, packages[recipe.name]), ROUNDS)
        loads[recipe.name] = {name: _load(packages[recipe.name], *options) for name, options in ENGINES.items()}
    names = list(next(iter(times.values())))
    table = Table("model", f"{EAGER} (ms)", *(f"{name} ÷ eager" for name in names[1:]), title="median of turns", title_justify="left")
    for model, medians in times.items():
        table.add_row(model, f"{medians[EAGER]:.2f}", *(f"{medians[name] / medians[EAGER]:.2f}" for name in names[1:]))
    console.print(table)
    table = Table(
        "model", "weights (MB)", *(f"{name}: s, × weights" for name in ENGINES), title="load warm; peak memory", title_justify="left"
    )
    for model, engines in loads.items():
        weights = next(iter(engines.values()))["weight_bytes"]
        table.add_row(model, f"{weights / 1e6:.0f}", *(f"{run['load_s']:.2f}, {run['peak_ratio']:.1f}" for run in engines.values()))
    console.print(table)
    misses = _misses(times, loads)
    for miss in misses:
        console.print(f"missed: {miss}", style="yellow")
    libraries = ("coreflow", "torch", "numpy", "coremltools", "onnx", "onnxscript", "onnxruntime", "transformers")
    record("engines", libraries, rounds=ROUNDS, median_ms=times, load=loads, missed=misses)
    return 1 if misses else 0


def _packages(made: tuple[Recipe, ...]) -> dict[str, Path]:
    for event in export_bundle(made, PACKAGES, settings={"source": "benchmarks"}, jobs=1):
        if isinstance(event, BundleDone):
            return {name: event.path / stage.package for name, stage in event.manifest.stages.items()}
    raise AssertionError("an export ends with its bundle")


def _candidates(recipe: Recipe, package: Path) -> dict[str, Callable[[], object]]:
    inputs = recipe.inputs_for(0)
    widened = {name: array.astype(np.float32) if array.dtype == np.float16 else array for name, array in inputs.items()}
    tensors = tuple(torch.from_numpy(array) for array in widened.values())

    def eager() -> object:
        with torch.inference_mode():
            return recipe.module(*tensors)

    direct = _direct(recipe, tensors)
    models = {name: load_model(package, "lifted", engine=engine, numerics=numerics) for name, (engine, numerics) in ENGINES.items()}
    _settle(models[DEFAULT], inputs)
    candidates: dict[str, Callable[[], object]] = {EAGER: eager}
    candidates |= {name: partial(model.predict, inputs) for name, model in models.items()}
    takes = {entry.name for entry in direct.get_inputs()}
    return candidates | {DIRECT: lambda: direct.run(None, {name: array for name, array in widened.items() if name in takes})}


def _settle(model: Any, inputs: dict[str, Any]) -> None:
    """Predicts until ``auto`` has had the time to change its engine."""
    began = time.monotonic()
    while time.monotonic() - began < 2 * COMPILE_AFTER_S:
        model.predict(inputs)


def _direct(recipe: Recipe, tensors: tuple[Tensor, ...]) -> Any:
    """onnxruntime on the source module, as anybody would export it."""
    onnxruntime = import_onnxruntime()
    path = PACKAGES.parent / "bench-direct" / f"{recipe.name}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    with _quiet():
        torch.onnx.export(
            recipe.module,
            tensors,
            str(path),
            input_names=list(recipe.inputs),
            output_names=list(recipe.outputs),
            dynamo=True,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)


def _load(package: Path, engine: EngineName, numerics: NumericsName) -> dict[str, float]:
    """Seconds to load, the second time, and the memory that it and a prediction take above the imports, at their highest."""
    command = [sys.executable, "-c", _LOAD, str(package), engine, numerics]
    figures: dict[str, float] = {}
    for _ in range(2):
        figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    weights = float(sum(file.stat().st_size for file in package.rglob("weight.bin")))
    return {**figures, "weight_bytes": weights, "peak_ratio": figures["peak_bytes"] / weights}


def _misses(times: dict[str, dict[str, float]], loads: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    misses = []
    for (name, other), limit in TARGETS.items():
        for model, medians in times.items():
            ratio = medians[name] / medians[other]
            if not ratio <= limit:
                misses.append(f"{model}: {name} takes {ratio:.2f} × {other}; {limit} is the target")
    for model, engines in loads.items():
        for name in (DEFAULT, "interpreter fp16"):
            if not engines[name]["load_s"] <= LOAD_S:
                misses.append(f"{model}: {name} loads in {engines[name]['load_s']:.2f} s; {LOAD_S} is the target")
            if engines[name]["weight_bytes"] > 5e7 and not engines[name]["peak_ratio"] <= PEAK_RATIO:
                misses.append(f"{model}: {name} takes {engines[name]['peak_ratio']:.1f} × its weights; {PEAK_RATIO} is the target")
    return misses


if __name__ == "__main__":
    raise SystemExit(main())
