"""Conversions as a user makes them, by coremltools itself, and what a report says of them."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array, Arrays, Draw
from coreflow.models.spec import TensorSpec
from coreflow.validate.report.model import Culprit, Report

Shapes = Mapping[str, tuple[tuple[int, ...], type[np.generic] | None]]
FLOAT16, WHOLE = np.float16, np.int32


def convert(
    module: nn.Module,
    folder: Path,
    inputs: Shapes,
    outputs: Sequence[str] = ("y",),
    *,
    front_end: Literal["trace", "export"] = "trace",
    example: Callable[[], tuple[Tensor, ...]] | None = None,
    target: str = "iOS17",
    state: Mapping[str, tuple[int, ...]] | None = None,
    precision: type[np.generic] = FLOAT16,
) -> Path:
    """What a user saves without this project: traced or exported, converted; ``None`` leaves out an input's dtype."""
    ct = quiet_coremltools()
    given = example() if example is not None else tuple(_example(*specification) for specification in inputs.values())
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a trace cannot follow it
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = (
            torch.jit.trace(module.eval(), given, check_trace=False)
            if front_end == "trace"
            else torch.export.export(module.eval(), given, strict=False).run_decompositions({})
        )
        model = ct.convert(
            program,
            inputs=[
                ct.TensorType(name=name, shape=shape, **({} if dtype is None else {"dtype": dtype}))
                for name, (shape, dtype) in inputs.items()
            ],
            outputs=[ct.TensorType(name=name, dtype=precision) for name in outputs],
            states=[
                ct.StateType(wrapped_type=ct.TensorType(shape=shape, dtype=FLOAT16), name=name) for name, shape in (state or {}).items()
            ]
            or None,
            minimum_deployment_target=getattr(ct.target, target),
            compute_precision=ct.precision.FLOAT16 if precision is FLOAT16 else ct.precision.FLOAT32,
            skip_model_load=True,
        )
    torch.backends.mha.set_fastpath_enabled(fast)
    package = folder / "user.mlpackage"
    model.save(str(package))
    return package


def _example(shape: tuple[int, ...], dtype: type[np.generic] | None) -> Tensor:
    return torch.full(shape, 2, dtype=torch.int32) if dtype is not FLOAT16 else torch.ones(shape)


def recipe_of(module: nn.Module, draw: Draw, outputs: tuple[str, ...] = ("y",)) -> Recipe:
    specs = {name: TensorSpec(array.shape, str(array.dtype)) for name, array in draw(0).items()}  # type: ignore[arg-type]
    return Recipe(name="user", module=module, inputs=specs, outputs=outputs, draw=draw)


def line_of(owner: Any, text: str) -> int:
    lines, first = inspect.getsourcelines(owner)
    return first + next(place for place, line in enumerate(lines) if text in line)


def at_line(culprit: Culprit, owner: Any, text: str) -> bool:
    """Whether a culprit is traced to this line of the source of ``owner``."""
    return (Path(culprit.file or "").name, culprit.line) == (Path(inspect.getfile(owner)).name, line_of(owner, text))


def failing_gates(report: Report, output: str = "y") -> set[str]:
    return {gate.name for gate in report.outputs[output].failed_gates}


def normal(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(FLOAT16)


def padded(seed: int) -> Arrays:
    mask = np.ones((1, 8), FLOAT16)
    mask[0, 3 + seed % 4 :] = 0
    return {"x": normal(seed, 1, 8, 16), "mask": mask}


def rows(seed: int) -> Arrays:
    return {"x": normal(seed, 4, 16)}
