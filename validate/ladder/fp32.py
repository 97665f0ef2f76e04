"""The fresh conversion of a module at FLOAT32 that rung R2 runs, and its ops beside those of a saved program."""

import contextlib
import gc
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from coreflow.export.bundle import conversion_of
from coreflow.export.capture.calls import InOrder, arguments, in_order
from coreflow.export.capture.capture import Captured, capture, capture_by_export
from coreflow.export.capture.evaluation import evaluating, tensors
from coreflow.export.capture.value_reads import ValueRead
from coreflow.export.package.graph import Graph, Program, Shape
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.op_facts import facts_of
from coreflow.export.recipe import Recipe, Target
from coreflow.export.targets.mlprogram import convert
from coreflow.models.arrays import Arrays
from coreflow.models.errors import BundleError, CoreflowError, ExportError
from coreflow.models.spec import RECIPE_KEY, TensorSpec
from coreflow.models.storage import TemporaryFolder
from coreflow.runtime.backend import Model
from coreflow.runtime.cache import Cache
from coreflow.runtime.interface import output_specs
from coreflow.runtime.lift.registry import load_lowerings, require_all
from coreflow.validate.ladder.opening import OpenPackage

logger = logging.getLogger(__name__)

_NAME = "wide"  # of the recipe and of its folder in the cache, in which earlier releases look too
_TARGETS: Mapping[str, Target] = {"CoreML6": "iOS16", "CoreML7": "iOS17", "CoreML8": "iOS18"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Conversion:
    """The program of R2, or the reason why there is none; neither where there is no module to convert.

    >>> Fp32Conversion(problem="encoder: operator aten::fft_rfft is not supported").program is None
    True
    """

    program: Program | None = None  # its weights stay in the file
    problem: str = ""
    frozen: tuple[ValueRead, ...] = ()  # values read by the module that are constants of the program, right for all samples
    temporary: TemporaryFolder | None = None  # which holds that file where the cache cannot, for as long as this value lives


def try_fp32(opened: OpenPackage, module: nn.Module, target: Target | None, samples: Sequence[Arrays]) -> Fp32Conversion:
    """The module converted at FLOAT32 by the first front end that can: what it gives is executed and compared with ``opened``.

    A package that coreflow did not export is compared with what coremltools makes by itself, where it converts at all: what our lowerings
    do better is no fault of the package alone. ``samples`` are inputs of the package, and ``target`` is that of its opset where None.
    Inputs and outputs are those of the package, in order, under other names.
    """
    specs = {f"input_{place}": spec for place, spec in enumerate(opened.model.inputs.values())}
    inputs = [_under_names(sample, opened.model.inputs, tuple(specs)) for sample in samples if _fits(sample, opened.model.inputs)]
    if not inputs:
        return Fp32Conversion(problem="no sample has the shapes of the package; give some that do (inputs=, --inputs)")
    recipe = Recipe(
        name=_NAME,
        module=_in_order(module, opened.model, inputs),
        inputs=specs,
        outputs=tuple(f"output_{place}" for place in range(len(opened.model.outputs))),
        target=target or _TARGETS.get(opened.graph.opset, "iOS17"),
        precision="fp32",
    )
    problems: dict[str, None] = {}  # those of all front ends, each once
    trace = partial(capture, replays=1)  # the program runs on all samples after that
    attempts: list[tuple[Callable[[Recipe, Sequence[Arrays]], Captured], bool]] = [(trace, True), (capture_by_export, True)]
    if opened.program.recorded(RECIPE_KEY, opened.graph.name) is None:  # from elsewhere: what plain coremltools makes of it comes first
        attempts.insert(0, (trace, False))
    for capture_by, is_lowered in attempts:
        try:
            fresh = convert_fp32(capture_by(recipe, inputs), is_lowered=is_lowered)
            shapes, saved = [spec.shape for spec in _outputs_of(fresh).values()], _declared_shapes(opened)
            if len(shapes) == len(saved) and all(map(_is_declared, shapes, saved)):
                return fresh
            problem = f"a fresh conversion gives outputs of shapes {shapes}, the package {saved}"
        except (CoreflowError, OSError) as error:
            problem = str(error).removeprefix(f"{_NAME}: ")
        logger.info("no R2 of %s: %s", opened.path.name, problem)
        problems[problem] = None
    return Fp32Conversion(problem=f"{'; '.join(problems)} (wide_package= takes a conversion of your own at FLOAT32)")


def convert_fp32(captured: Captured, *, is_lowered: bool = True) -> Fp32Conversion:
    """The program of a captured module at FLOAT32; kept in the cache by all that decides its bytes.

    Where the cache cannot be written it lies in a temporary folder, since a verdict is not to depend on a cache. Raises ``CoreflowError``
    where it cannot be converted or executed.
    """
    frozen, file = captured.frozen, f"{_NAME}.mlpackage"
    key = captured.fingerprint if is_lowered else f"{captured.fingerprint}-plain"
    folder, temporary = Cache(_NAME).entry_or_temporary(key, partial(_convert_into, captured, file, is_lowered))
    del captured
    gc.collect()  # the program that was converted, weights and all, hangs in cycles, and the other rungs need the room
    program = read_program(folder / file)
    load_lowerings()
    require_all(program.function()[0], program.path.name)
    return Fp32Conversion(program=program, temporary=temporary, frozen=frozen)


def _outputs_of(conversion: Fp32Conversion) -> Mapping[str, TensorSpec]:
    """Not of a model, whose weights would be held beside those of all other rungs."""
    assert conversion.program is not None
    return output_specs(conversion.program, *conversion.program.function())


def _declared_shapes(opened: OpenPackage) -> list[Shape | None]:
    """The shapes of a package's outputs, open where it declares them so."""
    declared = {value.name: value.shape for value in opened.graph.outputs}
    return [declared.get(name, spec.shape) for name, spec in opened.model.outputs.items()]


def _is_declared(shape: tuple[int, ...], declared: Shape | None) -> bool:
    """Whether a shape is the declared one, where extents may be open."""
    if declared is None:
        return True
    return len(shape) == len(declared) and all(extent in (None, actual) for actual, extent in zip(shape, declared, strict=True))


def _in_order(module: nn.Module, model: Model, samples: Iterable[Arrays]) -> nn.Module:
    """``module`` called in the order of ``model``, whose names the recipe lacks; itself where it is, so that its ops keep theirs."""
    with evaluating(module):
        for sample in samples:
            given = dict(zip(model.inputs, tensors(sample).values(), strict=True))
            with contextlib.suppress(Exception):  # the module may run on another sample, and what captures it says why not on any
                ordered, named = arguments(module, given)
                return in_order(module, tuple(model.inputs), tuple(model.outputs), module(*ordered, **named))
    return InOrder(module, tuple(model.inputs), tuple(model.outputs))


def _convert_into(captured: Captured, file: str, is_lowered: bool, folder: Path) -> None:
    """Convert into ``folder``; ``OSError`` where the disk is full, as of everything else that is written there."""
    try:
        convert(replace(conversion_of(captured), is_lowered=is_lowered), folder / file)
    except ExportError as error:
        if isinstance(error.__cause__, OSError | BundleError):
            raise OSError(str(error)) from error
        raise


def differing_ops(saved: Graph, conversion: Program) -> str:
    """How the ops of a saved program differ from those of a fresh conversion, in words; empty when they do not.

    Casts are left out, since the two differ in precision, and ops on states, which the fresh conversion has as inputs and outputs.
    """
    fresh, _ = conversion.function()
    saved_ops, fresh_ops = (Counter(op.type for op in graph.walk() if not facts_of(op.type).is_bookkeeping) for graph in (saved, fresh))
    differences = [
        f"{verb} {', '.join(f'{count} {op}' for op, count in sorted(ops.items()))}"
        for verb, ops in (("has", saved_ops - fresh_ops), ("lacks", fresh_ops - saved_ops))
        if ops
    ]
    return f"the saved program {' and '.join(differences)}" if differences else ""


def _fits(inputs: Arrays, specs: Mapping[str, TensorSpec]) -> bool:
    return all(name in inputs and np.shape(inputs[name]) == spec.shape for name, spec in specs.items())


def _under_names(inputs: Arrays, specs: Mapping[str, TensorSpec], names: tuple[str, ...]) -> Arrays:
    """``inputs`` under other names, and in the dtypes that the package takes."""
    return {name: np.asarray(inputs[old]).astype(spec.dtype) for name, (old, spec) in zip(names, specs.items(), strict=True)}
