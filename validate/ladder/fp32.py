"""The fresh conversion of a module at FLOAT32 that rung R2 runs, and its ops beside those of a saved program."""

import gc
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from coreflow.export.bundle import conversion_of
from coreflow.export.capture import capture
from coreflow.export.package.graph import Graph, Program
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.op_facts import facts_of
from coreflow.export.recipe import Recipe, Target
from coreflow.export.targets.mlprogram import Conversion, convert
from coreflow.models.arrays import Arrays, Draw
from coreflow.models.errors import BundleError, CoreflowError, ExportError
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import TemporaryFolder
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
    temporary: TemporaryFolder | None = None  # which holds that file where the cache cannot, for as long as this value lives


def try_fp32(opened: OpenPackage, module: nn.Module, recipe: Recipe | None, draw: Draw | None) -> Fp32Conversion:
    """The module converted at FLOAT32, if that can be converted, executed and compared with ``opened``."""
    try:
        package, temporary = convert_fp32(opened, module, recipe, draw)
        program = read_program(package)
        graph, interface = program.function()
        load_lowerings()
        require_all(graph, program.path.name)
        specs = output_specs(program, graph, interface)  # not of a model, whose weights would be held beside those of all other rungs
    except (CoreflowError, OSError) as error:
        logger.info("no R2 for %s: %s", opened.path.name, error)
        return Fp32Conversion(problem=str(error))
    fresh, saved = ([spec.shape for spec in outputs.values()] for outputs in (specs, opened.model.outputs))
    if fresh != saved:
        return Fp32Conversion(problem=f"a fresh conversion gives outputs of shapes {fresh}, the package {saved}")
    return Fp32Conversion(program=program, temporary=temporary)


def convert_fp32(opened: OpenPackage, module: nn.Module, recipe: Recipe | None, draw: Draw | None) -> tuple[Path, TemporaryFolder | None]:
    """The package of R2: the module converted at FLOAT32; kept in the cache by all that decides its bytes.

    Where the cache cannot be written it lies in the temporary folder that is returned with it, since a verdict is not to depend on a cache.
    Inputs and outputs are those of the package, in order, under other names. Raises ``CoreflowError`` where the module cannot be converted.
    """
    specs = {f"input_{place}": spec for place, spec in enumerate(opened.model.inputs.values())}
    drawing = draw if draw is not None else recipe.inputs_for if recipe is not None else None
    fp32_recipe = Recipe(
        name=_NAME,
        module=module,
        inputs={name: TensorSpec(spec.shape, spec.dtype, spec.bounds) for name, spec in specs.items()},
        outputs=tuple(f"output_{place}" for place in range(len(opened.model.outputs))),
        target=recipe.target if recipe is not None else _TARGETS.get(opened.graph.opset, "iOS17"),
        precision="fp32",
        draw=None if drawing is None else _under_names(drawing, opened.model.inputs, tuple(specs)),
    )
    captured = capture(fp32_recipe)
    conversion, file = conversion_of(captured), f"{_NAME}.mlpackage"
    folder, temporary = _cached_or_temporary(captured.fingerprint, partial(_convert_into, conversion, file))
    del captured, conversion
    gc.collect()  # the program that was converted, weights and all, hangs in cycles, and the other rungs need the room
    return folder / file, temporary


def _cached_or_temporary(key: str, make: Callable[[Path], object]) -> tuple[Path, TemporaryFolder | None]:
    """The folder of ``key`` in the cache, or a temporary one filled by ``make``."""
    try:
        return Cache(_NAME).entry(key, make), None
    except (OSError, ExportError) as error:
        if isinstance(error, ExportError) and not isinstance(error.__cause__, OSError | BundleError):
            raise  # the converter gave up, and would again; the others are a disk that is full
        logger.info("nothing can be cached: %s", error)
    temporary = TemporaryFolder()
    make(temporary.path)
    return temporary.path, temporary


def _convert_into(conversion: Conversion, file: str, folder: Path) -> None:
    convert(conversion, folder / file)


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


def _under_names(draw: Draw, inputs: Mapping[str, TensorSpec], names: tuple[str, ...]) -> Draw:
    """``draw`` under other names, and in the dtypes that the package takes."""

    def renamed(seed: int) -> Arrays:
        arrays = draw(seed)
        return {name: np.asarray(arrays[old]).astype(spec.dtype) for name, (old, spec) in zip(names, inputs.items(), strict=True)}

    return renamed
