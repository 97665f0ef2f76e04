"""The Neural Engine's arithmetic beside its published model: products, functions, sums, roundings, slices."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from coreflow.models.arrays import Array
from coreflow.runtime.backend import NumericsName
from coreflow.validate.probe.check import Check, Reading, plain_number
from coreflow.validate.probe.device import Device, numerics_of, simulate
from coreflow.validate.probe.machine import describe_machine
from coreflow.validate.probe.programs import CHANNELS, EXTENT, SHAPE, Applied, OnFewChannels, linear, package_of, pointwise

_PROBES = Path(__file__).parent.parent / "engine-probes.json"
_FEW = 16  # channels that a function sees
_COUNT = _FEW * EXTENT * EXTENT
_PUBLISHED_MODEL = "published model, numerics"
# Relative error of the first 256 rows of a product of size N, by N: ANEForge, bench/results (MIT), equal on M1 to M6.
_PRODUCTS = {512: 0.0025780039702379184}


@dataclass(frozen=True, slots=True)
class _Function:
    """A function with the numbers that it is asked for; ``is_known`` whether a published model gives every bit of it."""

    name: str
    function: Callable[[Tensor], Tensor]
    numbers: Array
    is_known: bool = True


def _grid(low: float, high: float) -> Array:
    return np.linspace(low, high, _COUNT).astype(np.float16)


def _functions() -> Iterator[_Function]:
    yield _Function("sigmoid", torch.sigmoid, _grid(-8, 8))
    yield _Function("tanh", torch.tanh, _grid(-4, 4))
    yield _Function("exp", torch.exp, _grid(-10, 11))
    yield _Function("sqrt", torch.sqrt, _grid(0.01, 60000))
    yield _Function("erf", torch.erf, _grid(-2, 2))
    yield _Function("gelu", functional.gelu, _grid(-6, 6), False)
    yield _Function("silu", functional.silu, _grid(-10, 10), False)
    yield _Function("softplus", functional.softplus, _grid(-12, 20))
    yield _Function("round", torch.round, np.resize(np.array([2.5, -2.5, 3.5, 1024, 1025, -2047], np.float16), _COUNT))
    yield _Function("floor times 3", lambda x: torch.floor(x) * 3, np.resize(np.array([2.5, 7.25, -1.5], np.float16), _COUNT), False)
    yield _Function(
        "slice behind the first column", lambda x: x[..., 1:], np.resize(np.array([4094, 4095, 4096, 5000], np.float16), _COUNT)
    )
    triple = np.concatenate([np.resize(np.array([large, -large, 1]), EXTENT) for large in (256, 3000, 4090, 4096, 30000)])
    yield _Function("sum of a row", lambda x: x.sum(-1, keepdim=True), np.resize(triple, _COUNT).astype(np.float16))


def run(device: Device, folder: Path) -> list[Reading]:
    """One reading for each published probe of the products, two for each function, one for each product of matrices."""
    numerics = numerics_of(device.simulated.removeprefix("engine-") or describe_machine()["chip"])
    readings = [*_products(device, folder), *_matrices(device, folder), *_convolutions(device, folder)]
    for function in _functions():
        readings += _compare(function, device, numerics, folder)
    return readings


def _products(device: Device, folder: Path) -> list[Reading]:
    """The published probes, all at once: a row of weights for each pair of weight and bias, a place of the picture for each probe."""
    probes = [
        probe for probe in json.loads(_PROBES.read_text())["probes"] if probe["unit"] == "mac" and not {"note", "x_bits"} & set(probe)
    ]
    pairs = list(dict.fromkeys((probe["w"], probe["bias"]) for probe in probes))
    weights = torch.tensor([[weight] * 64 for weight, _ in pairs])
    products = OnFewChannels(pointwise(weights, torch.tensor([bias for _, bias in pairs])))
    package = package_of("products", Applied(products), SHAPE, ("y", "z"), folder)
    x = np.zeros((1, CHANNELS, EXTENT * EXTENT), np.float16)
    for place, probe in enumerate(probes):
        x[0, : len(probe["x"]), place] = probe["x"]
    y = device.open(package).predict({"x": x.reshape(SHAPE)})["y"].reshape(len(pairs), -1)
    actual = [plain_number(y[pairs.index((probe["w"], probe["bias"])), place]) for place, probe in enumerate(probes)]
    wrong = [
        Reading(
            name=f"{len(probe['x'])} products with {probe['w']:g}, bias {probe['bias']:g}: {_in_words(probe['x'])}",
            value=value,
            expected=probe["out"],
            agrees=False,
            source=f"751K, {probe['src']}, {' and '.join(probe['chips'])}",
        )
        for probe, value in zip(probes, actual, strict=True)
        if value != (float(probe["out"]) if not isinstance(probe["out"], str) else probe["out"])
    ]
    count = Reading(
        name="published probes of products that are met",
        value=float(len(probes) - len(wrong)),
        expected=float(len(probes)),
        agrees=not wrong,
        source="751K, data/06_numerics, M6 and in part M4 (MIT)",
    )
    return [count, *wrong]


def _in_words(numbers: list[float]) -> str:
    shown = ", ".join(f"{number:g}" for number in numbers[:3])
    return f"{shown}, ..." if len(numbers) > 3 else shown


def _matrices(device: Device, folder: Path) -> list[Reading]:
    readings = []
    for size, published in _PRODUCTS.items():
        random = np.random.default_rng(0)
        x, w = (random.standard_normal((size, size)).astype(np.float32) / np.float32(np.sqrt(size)) for _ in range(2))
        package = package_of(f"matrices_{size}", linear(torch.from_numpy(w)), (size, size), ("y",), folder)
        y = device.open(package).predict({"x": x.astype(np.float16)})["y"][:256].astype(np.float64)
        reference = x[:256].astype(np.float64) @ w.astype(np.float64).T
        error = float(np.linalg.norm(y - reference) / np.linalg.norm(reference))
        readings.append(
            Reading(
                name=f"relative error of a product of {size} x {size}",
                value=error,
                expected=published,
                agrees=abs(error / published - 1) < 1e-6,
                source="ANEForge, bench/results, M1 to M6 (MIT)",
            )
        )
    return readings


def _convolutions(device: Device, folder: Path) -> list[Reading]:
    """The error of a 3 x 3 convolution tells whether Winograd's algorithm was taken: 3.7e-4 without it, 5.2e-4 on an M6."""
    convolution = OnFewChannels(nn.Conv2d(64, 64, 3, padding=1, bias=False))
    nn.init.normal_(convolution.convolution.weight, std=1 / 24, generator=torch.Generator().manual_seed(0))
    package = package_of("convolution", Applied(convolution), SHAPE, ("y", "z"), folder)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float16)
    actual = device.open(package).predict({"x": x})["y"].astype(np.float64)
    with torch.no_grad():
        reference = convolution.double()(torch.from_numpy(x.astype(np.float64))).numpy()
    return [
        Reading(name="relative error of a 3 x 3 convolution", value=float(np.linalg.norm(actual - reference) / np.linalg.norm(reference)))
    ]


def _compare(function: _Function, device: Device, numerics: NumericsName, folder: Path) -> list[Reading]:
    applied = Applied(lambda x: function.function(x[:, :_FEW]))
    package = package_of(function.name.replace(" ", "_"), applied, SHAPE, ("y", "z"), folder)
    x = np.zeros(SHAPE, np.float16)
    x[:, :_FEW] = function.numbers.reshape(1, _FEW, EXTENT, EXTENT)
    actual = device.open(package).predict({"x": x})["y"].astype(np.float64)
    model = simulate(package, numerics).predict({"x": x})["y"].astype(np.float64)
    with torch.no_grad():
        reference = function.function(torch.from_numpy(x[:, :_FEW].astype(np.float64))).numpy()
    unlike = int(np.count_nonzero(~((actual == model) | (np.isnan(actual) & np.isnan(model)))))
    with np.errstate(invalid="ignore"):
        worst, model_worst = (plain_number(np.nanmax(np.abs(values - reference))) for values in (actual, model))
    source = f"{_PUBLISHED_MODEL} {numerics}"
    return [
        Reading(
            name=f"{function.name}: numbers of {actual.size} unlike the model",
            value=float(unlike),
            expected=0.0 if function.is_known else None,
            agrees=unlike == 0 if function.is_known else None,
            source=source if function.is_known else "",
        ),
        Reading(name=f"{function.name}: worst error", value=worst, expected=model_worst, source=source),
    ]


CHECK = Check(
    name="arithmetic",
    title="the arithmetic of the Neural Engine beside its published model",
    seconds=900,
    obstacle=lambda device: "" if device.simulated else device.no_core_ml,
    run=run,
)
