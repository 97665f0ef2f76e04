"""Healthy networks that validation does not pass: small random ones, of four kinds, with weights of four distributions.

    python -m benchmarks.false_alarms 300            # the gates on the program in fp16; 200 300: from seed 200 on
    python -m benchmarks.false_alarms 40 --whole     # every rung, as `coreflow validate`

Every seed draws a kind (text encoder, convolutional, recurrent, perceptron), its sizes, a distribution of its weights, and inputs. The
distributions are normal; heavy-tailed (Student's t with 2.5 degrees of freedom); correlated (a few common directions in every matrix, so
that errors are correlated over samples and channels); and outliers (one channel in eight ten times as large, as in trained transformers).
The package is the module's own conversion: whatever is not PASS or WARN is a false alarm, except FP16-UNSAFE, which is the module's.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.measure import record
from coreflow.export.bundle import build
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays, Draw
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import LoadOptions
from coreflow.runtime.lifted import LiftedModel
from coreflow.validate import validate
from coreflow.validate.gates.comparison import Comparison
from coreflow.validate.gates.output import judge_output
from coreflow.validate.gates.tolerance import LIFTED, SEEDS
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.report.model import Outcome, worst

LENGTH = 12


class TextEncoder(nn.Module):
    """Pre-norm transformer with a mask and mean pooling."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(64, width), nn.Parameter(torch.empty(LENGTH, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-4) for _ in range(2 * layers + 1))
        self.attention = nn.ModuleList(nn.Linear(width, width) for _ in range(4 * layers))
        self.feed_forward = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)) for _ in range(layers)
        )

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(1, L, C) hidden vectors and (1, C) their mean over the mask."""
        x = self.embedding(ids) + self.position
        seen = mask.to(x.dtype)
        for place, feed_forward in enumerate(self.feed_forward):
            normed = self.norms[2 * place](x)
            query, key, value = (self.attention[4 * place + part](normed).view(1, LENGTH, 4, -1).transpose(1, 2) for part in range(3))
            scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5 + (1 - seen)[:, None, None] * -1e4
            mixed = (scores.softmax(-1) @ value).transpose(1, 2).reshape(1, LENGTH, -1)
            x = x + self.attention[4 * place + 3](mixed)
            x = x + feed_forward(self.norms[2 * place + 1](x))
        x = self.norms[-1](x)
        return x, (x * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)


class Convolutional(nn.Module):
    """Convolutions with batch norms and residuals, and a classifier."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()) for _ in range(layers)
        )
        self.head = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, C, 8, 8) features and (1, 20) logits."""
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = x + block(x)
        return x, self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    """A gated cell over a short sequence, written out."""

    def __init__(self, width: int, steps: int) -> None:
        super().__init__()
        self.gates, self.candidate, self.head = nn.Linear(8 + width, 2 * width), nn.Linear(8 + width, width), nn.Linear(width, 4)
        self.width, self.steps = width, steps

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 4) and the (1, C) state after ``steps`` rows of (1, 8, 8)."""
        for step in range(self.steps):
            row = x[:, step]
            reset, update = self.gates(torch.cat((row, state), 1)).sigmoid().chunk(2, 1)
            state = update * state + (1 - update) * torch.tanh(self.candidate(torch.cat((row, reset * state), 1)))
        return self.head(state), state


class Perceptron(nn.Module):
    """Layers, and a probability of a few classes or one number."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16 if place == 0 else width, width) for place in range(layers))
        self.classes, self.number = nn.Linear(width, 5), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(1, 5) probabilities and (1, 1)."""
        for layer in self.layers:
            x = F.silu(layer(x))
        return self.classes(x).softmax(-1), self.number(x)


def draw_weights(module: nn.Module, distribution: str, random: torch.Generator) -> None:
    """Weights of variance 1 / inputs, of the distribution named; running statistics as training leaves them."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random)

    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1:
                parameter.copy_(normal(*parameter.shape) * 0.1 + (1.0 if name.endswith("weight") else 0.0))
                continue
            matrix = normal(len(parameter), parameter[0].numel())
            if distribution == "heavy-tailed":
                chi = sum(normal(*matrix.shape).square() for _ in range(2)) + 0.5 * normal(*matrix.shape).square()
                matrix = matrix * (2.5 / chi).sqrt().clamp(max=30)
            elif distribution == "correlated":
                matrix = 0.5 * matrix + normal(len(matrix), 2) @ normal(2, matrix.shape[1])
            elif distribution == "outliers":
                matrix[::8] *= 10
            scale = matrix.square().mean().sqrt() * (1.0 if "embedding" in name or "position" in name else matrix.shape[1] ** 0.5)
            parameter.copy_((matrix / scale).view_as(parameter))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * normal(*buffer.shape))
            elif name.endswith("running_var"):
                buffer.copy_(normal(*buffer.shape).exp())


KINDS = ("text encoder", "convolutional", "recurrent", "perceptron")
DISTRIBUTIONS = ("normal", "heavy-tailed", "correlated", "outliers")


def recipe_of(seed: int) -> tuple[str, str, Recipe]:
    """The kind, the distribution and the network of a seed."""
    kind, distribution = KINDS[seed % 4], DISTRIBUTIONS[seed // 4 % 4]
    random = np.random.default_rng(seed)
    width, depth = 8 * int(random.integers(1, 9)), int(random.integers(1, 5))
    close = bool(random.integers(2))  # samples that differ little from one another, as pictures of noise do for a trained network
    module: nn.Module
    if kind == "text encoder":
        inputs = {"ids": TensorSpec((1, LENGTH), "int32", bounds=(0, 63)), "mask": TensorSpec((1, LENGTH), "int32", bounds=(0, 1))}
        module, outputs = TextEncoder(width, depth), ("hidden", "mean")
    elif kind == "convolutional":
        inputs = {"x": TensorSpec((1, 3, 16, 16))}
        module, outputs = Convolutional(width, depth), ("features", "logits")
    elif kind == "recurrent":
        inputs = {"x": TensorSpec((1, 8, 8)), "hidden": TensorSpec((1, width))}
        module, outputs = Recurrent(width, 2 * depth), ("y", "next_state")
    else:
        inputs = {"x": TensorSpec((1, 16))}
        module, outputs = Perceptron(width, depth), ("classes", "number")
    draw_weights(module, distribution, torch.Generator().manual_seed(seed))
    draw = _draw(inputs, seed, close=close)
    return kind, distribution, Recipe(name=f"network_{seed}", module=module.eval(), inputs=inputs, outputs=outputs, draw=draw)


def _draw(specs: dict[str, TensorSpec], network: int, *, close: bool) -> Draw:
    def draw(seed: int) -> Arrays:
        random, common = np.random.default_rng((network, seed)), np.random.default_rng(network)
        arrays: dict[str, np.ndarray] = {}
        for name, spec in specs.items():
            if name == "mask":
                arrays[name] = (np.arange(LENGTH) < random.integers(1, LENGTH + 1)).astype(np.int32)[None]
            elif spec.dtype == "int32":
                arrays[name] = random.integers(0, 64, spec.shape).astype(np.int32)
            else:
                shared, own = common.standard_normal(spec.shape), random.standard_normal(spec.shape)
                arrays[name] = (shared + 0.2 * own if close else own).astype(np.float16)
        return arrays

    return draw


def judge(recipe: Recipe, *, whole: bool) -> tuple[Outcome, str]:
    """The outcome for a healthy network and why: of the gates, in fp16, or of the ``whole`` validation with its other rungs."""
    with tempfile.TemporaryDirectory() as folder:
        package = build(recipe, Path(folder))
        if whole:
            report = validate(package, recipe)
            return report.verdict, report.text
        model = LiftedModel(read_program(package), LoadOptions(numerics="fp16", engine="interpreter"))
        samples = [recipe.inputs_for(seed) for seed in range(SEEDS)]
        actual = [model.predict(sample) for sample in samples]
    torch_reference = TorchReference(recipe.module)
    reference, simulated = ([run(sample) for sample in samples] for run in (torch_reference.outputs, torch_reference.simulated_outputs))
    reports = [
        judge_output(
            Comparison(
                name=name,
                spec=spec,
                reference=np.stack([outputs[place] for outputs in reference]),
                simulated=np.stack([outputs[place] for outputs in simulated]),
                actual=np.stack([outputs[name] for outputs in actual]),
                labels=tuple(f"seed {seed}" for seed in range(SEEDS)),
                kept=np.ones(SEEDS, bool),
            ),
            LIFTED,
            {},
        )
        for place, (name, spec) in enumerate(model.outputs.items())
    ]
    failed = [f"{report.name}: {gate.name} {gate.value:.3g} of {gate.limit:.3g}" for report in reports for gate in report.failed_gates]
    return worst(report.outcome for report in reports), "; ".join(failed)


def main() -> None:
    """Count the outcomes of as many seeds as the command line says; ``--whole`` runs the whole validation."""
    whole, numbers = "--whole" in sys.argv, [int(word) for word in sys.argv[1:] if word.isdigit()]
    first, end = (0, *numbers)[-2:] if numbers else (0, 300)
    torch.set_num_threads(1)
    outcomes: Counter[str] = Counter()
    alarms = []
    for seed in range(first, end):
        kind, distribution, recipe = recipe_of(seed)
        outcome, text = judge(recipe, whole=whole)
        outcomes[outcome] += 1
        if outcome not in ("pass", "warn", "fp16-unsafe"):
            alarms.append({"seed": seed, "kind": kind, "weights": distribution, "outcome": outcome, "text": text})
            print(f"seed {seed}, {kind}, {distribution}: {outcome} {text}", flush=True)
    print(dict(outcomes))
    name = "false_alarms_whole" if whole else "false_alarms"
    record(name, ["torch", "coremltools", "numpy"], first=first, networks=end - first, outcomes=dict(outcomes), alarms=alarms)


if __name__ == "__main__":
    main()
