"""CPU time and peak memory of an export beside bare ``coremltools.convert`` of the same module: `python -m benchmarks.exports`.

Every conversion runs in a process of its own, which imports and builds before the clock starts. Bare is what anybody writes: trace,
convert, save. Ours is a bundle without the proof, and with it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measure import record
from coreflow.export import Recipe, TensorSpec, export_bundle

Case = Callable[[], Recipe]
CANDIDATES = ("bare", "unproven", "proven")
ROUNDS = 3


def distilbert() -> Recipe:
    """A DistilBERT of the usual size with random weights, without the mask, which bare coremltools does not convert (``new_ones``)."""
    import transformers as hf

    module = hf.DistilBertModel(hf.DistilBertConfig(attn_implementation="eager"))
    ids = TensorSpec((1, 128), "int32", bounds=(0, module.config.vocab_size - 1))
    return Recipe(name="distilbert", module=module.eval(), inputs={"input_ids": ids}, outputs=("last_hidden_state",))


def resnet() -> Recipe:
    """A ResNet-50 with random weights."""
    import transformers as hf

    module = hf.ResNetForImageClassification(hf.ResNetConfig(num_labels=1000)).eval()
    return Recipe(name="resnet", module=module, inputs={"pixel_values": TensorSpec((1, 3, 224, 224))}, outputs=("logits",))


def blocks() -> Recipe:
    """Twelve blocks of the width of GPT-2 small, 85 million weights."""

    class Block(nn.Module):
        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attend, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

        def forward(self, x: Tensor) -> Tensor:
            batch, length, width = x.shape
            parts = self.attend(self.first(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
            x = x + self.project(mixed.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(nn.functional.gelu(self.up(self.second(x)), approximate="tanh"))

    module = nn.Sequential(*(Block(768, 12) for _ in range(12))).eval()
    return Recipe(name="blocks", module=module, inputs={"x": TensorSpec((1, 64, 768))}, outputs=("y",))


CASES: dict[str, Case] = {"distilbert": distilbert, "resnet": resnet, "blocks": blocks}


def convert_bare(recipe: Recipe, folder: Path) -> None:
    """As anybody would: trace, convert, save."""
    import coremltools as ct
    import numpy as np

    names = list(recipe.inputs)

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = recipe.module

        def forward(self, *values: Tensor) -> Tensor:
            result = self.module(**dict(zip(names, values, strict=True))) if len(names) > 1 else self.module(*values)
            return result if isinstance(result, Tensor) else result[0]

    example = tuple(torch.from_numpy(array) for array in recipe.inputs_for(0).values())
    example = tuple(value.float() if value.is_floating_point() else value for value in example)
    with torch.no_grad():
        traced = torch.jit.trace(Plain().eval(), example, check_trace=False)
    types = [ct.TensorType(name=name, shape=spec.shape, dtype=np.dtype(spec.dtype).type) for name, spec in recipe.inputs.items()]
    model = ct.convert(traced, inputs=types, minimum_deployment_target=ct.target.iOS17, skip_model_load=True)
    model.save(str(folder / "bare.mlpackage"))


def measure_one(case: str, candidate: str) -> dict[str, float]:
    """Seconds of CPU and of the clock, and bytes at the peak, of one conversion in this process."""
    import coreflow.export.bundle  # noqa: F401  # imported before the clock starts
    from coreflow.export.package.coremltools_quiet import quiet_coremltools

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quiet_coremltools()
    recipe = CASES[case]()
    before, began, cpu = _peak(), time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        if candidate == "bare":
            convert_bare(recipe, Path(folder))
        else:
            list(export_bundle([recipe], Path(folder) / "bundle", jobs=1, check=candidate == "proven"))
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    parameters = sum(parameter.numel() for parameter in recipe.module.parameters())
    return {"seconds": seconds, "cpu_s": cpu_s, "peak_bytes": _peak(), "before_bytes": before, "parameters": parameters}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(case: str, rounds: int) -> dict[str, dict[str, float]]:
    """The least of some rounds, in which the candidates take turns, and the ratios to bare."""
    runs: dict[str, list[dict[str, float]]] = {candidate: [] for candidate in CANDIDATES}
    for _ in range(rounds):
        for candidate in CANDIDATES:
            command = [sys.executable, "-m", "benchmarks.exports", "--one", case, candidate]
            ran = subprocess.run(command, capture_output=True, text=True, check=True)
            runs[candidate].append(json.loads(ran.stdout.splitlines()[-1]))
    figures = {candidate: {key: min(run[key] for run in of) for key in of[0]} for candidate, of in runs.items()}
    for figure in figures.values():
        figure["cpu_ratio"] = figure["cpu_s"] / figures["bare"]["cpu_s"]
        figure["peak_ratio"] = figure["peak_bytes"] / figures["bare"]["peak_bytes"]
    return figures


def main() -> None:
    """Measure all cases, or one conversion for the process that asks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, metavar=("CASE", "CANDIDATE"))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure_one(*arguments.one)))
        return
    results = {}
    for case in arguments.cases:
        results[case] = measure(case, arguments.rounds)
        for candidate, figure in results[case].items():
            ratios = f"cpu {figure['cpu_s']:.1f} s = {figure['cpu_ratio']:.2f} x, peak {figure['peak_bytes'] / 1e9:.2f} GB"
            print(f"{case:12} {candidate:9} {ratios} = {figure['peak_ratio']:.2f} x", flush=True)
        record("exports", ["coreflow", "coremltools", "torch", "transformers"], rounds=arguments.rounds, cases=results)


if __name__ == "__main__":
    main()
