"""Reports made by hand, whole and bare ones, and one of a package that really fails."""

import io
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from rich.console import Console, RenderableType

from coreflow.validate import validate
from coreflow.validate.report.model import (
    AmbiguousSample,
    BundleReport,
    ChainReport,
    ChainRow,
    ConstantReport,
    Culprit,
    Element,
    Gate,
    OpReport,
    Origin,
    OutputReport,
    Plots,
    Report,
    Rung,
    Samples,
    TokenAgreement,
    worst,
)

Kind = Literal["rounding", "translation", "non-finite", "underflow", "amplification"]
HOSTILE = "<script>alert(1)</script>\"'&|`[bold]\x1b[31m\x00\u202e\ud800"


def output(name: str = "surface", **fields: Any) -> OutputReport:
    """A healthy output of which nothing but the numbers is known."""
    plain: dict[str, Any] = {
        "name": name, "shape": (1, 64), "dtype": "float16", "elements": 512, "reference_rms": 0.5, "relative_rms": 6e-4, "snr_db": 64.0,
        "budget": 3e-4, "rho_rms": 1.02, "rho_max": 1.1, "rho_slice": 1.3, "worst_slice": "[:, 17]", "max_abs": 1e-3, "contract": 4.5e-3,
        "mean_drift": 0.0, "std_drift": 0.0, "non_finite": 0, "overflowed": 0, "flips": 0,
        "rungs": {"R3": Rung(relative_rms=2e-4, rho=0.5), "R4": Rung(relative_rms=6e-4, rho=1.02)},
        "gates": (
            Gate(name="rho_rms", outcome="pass", value=1.02, limit=1.5),
            Gate(name="contract", outcome="pass", value=3e-4, limit=4e-3),
        ),
    }  # fmt: skip
    return OutputReport(**{**plain, **fields})


def failing(name: str = "hidden", **fields: Any) -> OutputReport:
    """An output with NaN in it, and what was seen of it."""
    gates = (
        Gate(name="finite", outcome="fail", value=3, limit=0, text="3 values are NaN"),
        Gate(name="rho_rms", outcome="fail", value=math.nan, limit=1.5),
        Gate(name="reacts", outcome="incomplete", value=1, limit=0, text="nothing was compared"),
        Gate(name="rho_max", outcome="warn", value=3.4, limit=3),
        Gate(name="ceiling", outcome="fp16-unsafe", value=0.2, limit=0.01),
    )
    elements = (Element(sample="seed 3", index=(0, 17), reference=1.5, simulated=1.501, actual=math.nan),)
    bad = {"rho_rms": math.nan, "snr_db": math.nan, "max_abs": math.inf, "non_finite": 3, "gates": gates, "worst_elements": elements}
    return output(name, **{**bad, "plots": plots(), **fields})


def plots() -> Plots:
    """200 errors of one rounding each, two of them 0."""
    random = np.random.default_rng(0)
    reference = 10.0 ** random.uniform(-4, 2, 200)
    error = reference * 2.0**-12 * np.abs(random.normal(size=200))
    reference[0], error[1] = 0.0, 0.0
    edges = np.linspace(-10, 0, 41)
    counts = np.histogram(np.log10(error[error > 0]), edges)[0].tolist()
    return Plots(
        reference=tuple(reference.tolist()),
        error=tuple(error.tolist()),
        edges=tuple(edges.tolist()),
        actual_counts=tuple(counts),
        simulated_counts=tuple(reversed(counts)),
        margin=(2.0, 1.0, 0.0, 1e-3),
        perturbation=(1e-3, 2e-3, 1e-3, 5e-3),
    )


def ops(count: int = 60) -> tuple[OpReport, ...]:
    """Six modules of as many ops each; op 30 is the bad one."""
    types = ("linear", "layer_norm", "softmax")
    return tuple(
        OpReport(
            index=number, name=f"op_{number}_{types[number % 3]}", type=types[number % 3], shape=(1, 64),
            origin=None if number % 10 == 0
            else Origin(module=f"layers.{number * 6 // count}", operation="aten.mm.default", file="net.py", line=number),
            local_rho=40.0 if number == 30 else 1.0, ulps=1.0, ulps_limit=0.5 if number == 30 else 2.0, accumulated=1e-5 * (number + 1),
            amplification=1.1, largest=math.inf if number == 59 else 10.0, smallest=1e-6, overflowed=int(number == 59), underflowed=0.02,
            never_exercised=("above 10.4",) if number == 2 else (),
        )
        for number in range(count)
    )  # fmt: skip


def stage(*outputs: OutputReport, **fields: Any) -> Report:
    """Nothing is known but what is given."""
    verdict = worst(part.outcome for part in outputs)
    plain: dict[str, Any] = {
        "name": "encoder", "package": "encoder.mlpackage", "digest": "ab" * 32, "weights_digest": None, "backend": "lifted",
        "numerics": "fp16", "compute_units": "all", "precision": "fp16", "verdict": verdict, "cause": None, "text": "said so",
        "outputs": {part.name: part for part in outputs}, "samples": Samples(seeds=tuple(range(8)), drawn=8, given=8),
        "versions": {"torch": "2.13.0"}, "seconds": 0.5,
    }  # fmt: skip
    return Report(**{**plain, **fields})


def whole(**fields: Any) -> Report:
    """A failing package of which everything was looked at."""
    kinds: tuple[Kind, ...] = ("rounding", "translation", "non-finite", "underflow", "amplification", "rounding")
    culprits = tuple(
        Culprit(
            kind=kind, name=f"op_{place}_linear", type="linear", ratio=40.0 - place, text="loses 40 times a rounding by itself",
            origin=Origin(module="layers.3", operation="aten.mm.default", file="net.py", line=30) if place != 1 else None,
        )
        for place, kind in enumerate(kinds)
    )  # fmt: skip
    looked: dict[str, Any] = {
        "verdict": "fail", "cause": "fp16", "ops": ops(), "culprits": culprits, "notes": ("softplus was never given a value above 10.4",),
        "constants": (ConstantReport(name="eps", op="norm_1", problem="is 0 in fp16", value=1e-12, elements=1),),
        "compute_unit_rho": {"cpu_only": {"surface": 1.0, "hidden": 2.5}, "all": {"surface": 1.4}}, "replay": "runs/my replay.safetensors",
        "backend": "coreml",
    }  # fmt: skip
    return stage(output(plots=plots()), failing(), **{**looked, **fields})


def bundle(*stages: Report, **fields: Any) -> BundleReport:
    """Stages, and a cascade that passes."""
    ambiguous = (
        AmbiguousSample(label="seed 3", left_out=True, nearness=0.2, differing=5),
        AmbiguousSample(label="seed 4", left_out=False, nearness=0.5, differing=0),
    )
    cascade = ChainReport(
        verdict="pass", cause=None, text="", outputs={"decoder.logits": output("decoder.logits")},
        samples=Samples(seeds=(0,), drawn=2, given=1, ambiguous=ambiguous),
        rows=(ChainRow(stage="encoder", output="decoder.logits", alone="pass", teacher_forced=1.0, cascaded=1.1, outcome="pass"),),
        tokens=TokenAgreement(sentences=1, tokens=9, equal=8, explained=("'a b', token 3",), unexplained=()), seconds=0.1,
    )  # fmt: skip
    plain: dict[str, Any] = {
        "bundle": "artifacts/demo", "name": "demo", "kind": "energy-flow", "created": "2026-01-01T00:00:00+00:00", "cause": None,
        "text": "all of it", "verdict": worst(part.verdict for part in stages), "stages": {part.name: part for part in stages},
        "cascade": cascade, "versions": {"torch": "2.13.0"}, "seconds": 1.0,
    }  # fmt: skip
    return BundleReport(**{**plain, **fields})


def hostile() -> Report:
    """Every text that comes from a package or a path tries to be something else."""
    origin = Origin(module=HOSTILE, operation=HOSTILE, file=HOSTILE, line=1)
    gates = (Gate(name="rho_slice", outcome="fail", value=9.0, limit=3.0, text=HOSTILE),)
    element = Element(sample=HOSTILE, index=(1,), reference=1.0, simulated=1.0, actual=2.0)
    bad = output(HOSTILE, worst_slice=HOSTILE, gates=gates, worst_elements=(element,))
    return stage(
        bad, name=HOSTILE, package=HOSTILE, text=HOSTILE, cause="fp16", versions={HOSTILE: HOSTILE}, notes=(HOSTILE,), problems=(HOSTILE,),
        samples=Samples(seeds=(), drawn=0, given=1, ambiguous=(AmbiguousSample(label=HOSTILE, left_out=True, nearness=0.1, differing=1),)),
        ops=tuple(replace(op, name=f"{op.name}{HOSTILE}", type=HOSTILE, origin=origin, never_exercised=(HOSTILE,)) for op in ops(3)),
        culprits=(Culprit(kind="rounding", name=HOSTILE, type=HOSTILE, ratio=2.0, text=HOSTILE, origin=origin),),
        constants=(ConstantReport(name=HOSTILE, op=HOSTILE, problem=HOSTILE, value=1.0, elements=1),), replay=f"{HOSTILE}.safetensors",
    )  # fmt: skip


@pytest.fixture
def make() -> SimpleNamespace:
    """The functions of this file."""
    parts = (output, failing, plots, ops, stage, whole, bundle, hostile)
    return SimpleNamespace(HOSTILE=HOSTILE, **{part.__name__: part for part in parts})


@pytest.fixture
def shown() -> Callable[..., str]:
    """What a console prints."""

    def show(rendered: RenderableType, width: int = 180, *, colour: bool = False) -> str:
        file = io.StringIO()
        Console(file=file, width=width, force_terminal=colour, highlight=False).print(rendered)
        return file.getvalue()

    return show


@pytest.fixture(scope="session")
def real(converted: Any, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A transformer in whose package an eighth of one projection is zero."""

    def fault(weights: dict[str, Any]) -> None:
        weights["layers.1.contract.weight"][:, :16] = 0

    package: Path = converted.with_fault(tmp_path_factory.mktemp("faulty") / "network.mlpackage", fault)
    return validate(package, converted.recipe(), backend="lifted")
