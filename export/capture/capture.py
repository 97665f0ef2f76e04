"""Captures a module by its recipe, as a trace or an exported program; refuses modules that this would change silently."""

import contextlib
import copy
import io
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode

from coreflow.export.capture.calls import INSIDE, InOrder, arguments, in_order, pick
from coreflow.export.capture.data_shapes import DataShapes
from coreflow.export.capture.decompositions import ignored_keywords, safe_decompositions
from coreflow.export.capture.evaluation import clear_states, evaluating, read_states, tensors
from coreflow.export.capture.fingerprint import fingerprint, join_digests
from coreflow.export.capture.indices import IndexWatch
from coreflow.export.capture.places import Place, place_of_error
from coreflow.export.capture.value_reads import ValueRead, ValueReads
from coreflow.export.capture.writes import WriteWatch
from coreflow.export.recipe import Recipe
from coreflow.export.shapes import shape_choices
from coreflow.export.states import warn_of_states
from coreflow.export.targets.passes import NEGATIVE_INDICES, REMOVED_PASSES
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError, CoreflowError, ExportError, first_line
from coreflow.models.spec import Dtype, TensorSpec

# A value read during tracing (``.item()``, a Python branch) is right for the inputs traced and wrong for others.
SEEDS = range(8)  # of the inputs that a recipe draws: the first is traced, the others are compared


class FrontEndError(ExportError):
    """A module that one front end cannot follow; another may.

    >>> try:
    ...     capture(recipe)
    ... except FrontEndError:
    ...     capture_by_export(recipe)
    """


@dataclass(frozen=True, slots=True)
class Captured:
    """A recipe with its module as a program, its outputs as they will be declared, and a digest of everything that decides the package.

    >>> captured = capture(recipe)
    >>> captured.outputs, captured.fingerprint
    """

    recipe: Recipe
    program: torch.jit.ScriptModule | ExportedProgram
    outputs: dict[str, TensorSpec]
    fingerprint: str
    frozen: tuple[ValueRead, ...] = ()  # values that depend on the inputs and are constants of the trace; no sample showed that it matters
    removed_passes: tuple[str, ...] = REMOVED_PASSES  # of the converter
    functions: tuple["Captured", ...] = ()  # further ones of the same package
    prefix: str = ""  # of the paths of the recipe's module in the program
    data_shapes: str = ""  # operations whose result is as long as the values say, with their places
    lost_writes: tuple[Place | None, ...] = ()  # writes through views that a trace loses, as far as their places are known

    @property
    def parts(self) -> tuple["Captured", ...]:
        """This function of the package and the further ones."""
        return (self, *self.functions)

    @property
    def front_end(self) -> Literal["trace", "export"]:
        """What made the program: ``torch.jit.trace`` or ``torch.export``."""
        return "export" if isinstance(self.program, ExportedProgram) else "trace"

    @property
    def warnings(self) -> tuple[str, ...]:
        """Values that the trace froze, and states that the engine may refuse, a line each."""
        frozen = (
            f"a value read at {read} is frozen as {read.value}; inputs that change it would compute something else" for read in self.frozen
        )
        return (*frozen, *warn_of_states(self.recipe))


def capture(recipe: Recipe, samples: Sequence[Arrays] = (), *, replays: int | None = None) -> Captured:
    """Trace ``recipe.module`` in eval mode and in fp32, on the CPU; the module is left as it was.

    The first of ``samples`` is traced, and the trace is compared with the module on all others, or on ``replays`` of them where it froze no
    value and computes no index, which are what other samples may show; without any the recipe draws them. Samples on which the module does
    not run are passed over. Weights of another precision are taken as the fp32 numbers that they are.

    Raises ``ExportError`` when the outputs do not match the recipe, when the module changes a buffer (a trace loses the
    write), returns one tensor twice (one of the names is lost), or depends on values that a trace freezes.
    """
    captured = _capture(recipe, samples, _trace, replays)
    functions = tuple(capture(function, replays=replays) for function in recipe.functions)
    if not functions:
        return captured
    digests = [captured.fingerprint, *(part.fingerprint for part in functions)]
    return replace(captured, functions=functions, fingerprint=join_digests(digests))


def capture_by_export(recipe: Recipe, samples: Sequence[Arrays] = ()) -> Captured:
    """``capture`` by ``torch.export``, for modules that a trace cannot follow, or of whose trace the converter lacks an operation.

    >>> captured = capture_by_export(recipe)

    What the converter would misread is rewritten first (``decompositions``); ``ExportError`` names what cannot be.
    """
    return _capture(recipe, samples, _export)


@dataclass(frozen=True, slots=True)
class _Form:
    """A module as a program, the function that runs it, and the values that it froze."""

    program: torch.jit.ScriptModule | ExportedProgram
    call: Callable[..., object]
    frozen: tuple[ValueRead, ...] = ()


def _capture(
    recipe: Recipe,
    samples: Sequence[Arrays],
    to_form: Callable[[Recipe, nn.Module, tuple[Tensor, ...]], _Form],
    replays: int | None = None,
) -> Captured:
    given, recipe, watch = recipe, replace(recipe, module=_in_fp32(recipe.module)), IndexWatch()
    writes, shapes = WriteWatch(recipe.module), DataShapes(recipe.module)
    with evaluating(recipe.module) as buffers, warnings.catch_warnings():
        owned = dict(recipe.module.named_buffers())
        runs = _runs(recipe, samples or _drawn(recipe), watch, (writes, shapes), skips=bool(samples))
        example, returned, results = next(runs)
        _check_buffers(recipe, owned, buffers)
        outputs = {name: _spec(recipe, name, result) for name, result in zip(recipe.outputs, results, strict=True)}
        _check_labels(recipe, outputs)
        # The trace API is deprecated in favour of torch.export, which converts wrongly without a word (docs/export.md);
        # what a TracerWarning would say, the further samples prove, and ``frozen`` says of what they do not reach.
        warnings.simplefilter("ignore")
        module = in_order(recipe.module, tuple(example), recipe.outputs, returned)
        form = to_form(recipe, module, tuple(example.values()))
        states = tuple(f"{INSIDE}{name}" if isinstance(module, InOrder) else name for name in recipe.states)
        count = None if replays is None or form.frozen or watch.indexes else replays + (0 if samples else _count_of_other_shapes(recipe))
        for inputs, _, results in islice(runs, count):
            reference = read_states(recipe.module, recipe.states)
            clear_states(form.call, states)
            _check_shapes(recipe, inputs, example, results, outputs, shapes)
            _check_replay(recipe, results, _outputs(recipe, _replay(recipe, form, inputs)), form.frozen)
            _check_states(recipe, reference, read_states(form.call, states), form.frozen)
        if watch.indexes:
            lowest = {name: _lowest(spec, example[name]) for name, spec in recipe.inputs.items()}
            with contextlib.suppress(ExportError):
                next(_runs(recipe, [lowest], watch, skips=False))
        clear_states(form.call, states)  # which are part of the program
    guards = watch.may_be_negative(recipe.inputs.values())
    removed = tuple(name for name in REMOVED_PASSES if not (guards and name == NEGATIVE_INDICES))
    return Captured(
        given,
        form.program,
        outputs,
        fingerprint(recipe, form.program, removed),
        form.frozen,
        removed,
        prefix=INSIDE if isinstance(module, InOrder) else "",
        lost_writes=writes.lost,
        data_shapes=str(shapes),
    )


def _check_shapes(
    recipe: Recipe,
    inputs: Mapping[str, Tensor],
    example: Mapping[str, Tensor],
    results: Sequence[Tensor],
    outputs: Mapping[str, TensorSpec],
    shapes: DataShapes,
) -> None:
    """Outputs have the shapes that they have for ``example``, of whose shapes ``inputs`` are."""
    if any(tensor.shape != example[name].shape for name, tensor in inputs.items()):
        return
    for (name, spec), result in zip(outputs.items(), results, strict=True):
        if (tuple(result.shape) or (1,)) != spec.shape:
            by = f", by {shapes}" if shapes.places else ""
            raise ExportError(
                f"{recipe.name}: the shape of {name!r} depends on values, {list(spec.shape)} and {list(result.shape)}{by}; "
                "return all places, and a mask of those that count"
            )


def _drawn(recipe: Recipe) -> Iterator[Arrays]:
    """Inputs as the recipe draws them: one set in the default shape, one in every other shape, and more in the default shape."""
    first, *further = SEEDS
    yield recipe.inputs_for(first)
    yield from recipe.inputs_of_other_shapes()
    yield from map(recipe.inputs_for, further)


def _count_of_other_shapes(recipe: Recipe) -> int:
    return len(shape_choices(recipe.shapes, recipe.inputs)) - 1


def _check_buffers(recipe: Recipe, owned: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    """Every buffer that forward changes is a state, and every state is a buffer that forward writes into; ``before`` are their copies."""
    buffers = dict(recipe.module.named_buffers())
    if replaced := [name for name in recipe.states if buffers.get(name) is not owned[name]]:
        raise ExportError(
            f"{recipe.name}: forward puts another tensor in the place of the state {', '.join(replaced)}; write into the buffer: "
            f"self.{replaced[0]}.copy_(...), or to a slice of it"
        )
    changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, before[name])]
    if lost := [name for name in changed if name not in recipe.states]:
        raise ExportError(
            f"{recipe.name}: forward changes the buffer {', '.join(lost)}, which a trace loses; "
            f"return it as an output, or keep it between predictions with states={tuple(lost)} and target='iOS18'"
        )
    if still := [name for name in recipe.states if name not in changed]:
        raise ExportError(f"{recipe.name}: forward does not write into the state {', '.join(still)}; a state is a buffer that it updates")


def _check_states(recipe: Recipe, reference: Sequence[Tensor], actual: Sequence[Tensor], frozen: Sequence[ValueRead]) -> None:
    for name, expected, result in zip(recipe.states, reference, actual, strict=True):
        _check_alike(recipe, f"the state {name!r}", expected, result, frozen)


def _check_labels(recipe: Recipe, outputs: Mapping[str, TensorSpec]) -> None:
    """One label for every element of the first output, which holds one row of floats."""
    name, spec = next(iter(outputs.items()))
    if recipe.labels and (spec.dtype == "int32" or math.prod(spec.shape) != spec.shape[-1] or spec.shape[-1] != len(recipe.labels)):
        raise ExportError(
            f"{recipe.name}: {len(recipe.labels)} labels for {name!r}, {spec.dtype} {list(spec.shape)}; "
            f"the first output needs floats of shape [1, {len(recipe.labels)}]"
        )


def _lowest(spec: TensorSpec, example: Tensor) -> Array:
    """The least whole numbers that an input may hold, of which an index is computed that may be negative; floats as in ``example``."""
    return example.numpy() if spec.dtype != "int32" or spec.bounds is None else np.full(spec.shape, int(spec.bounds[0]), np.int32)


def _in_fp32(module: nn.Module) -> nn.Module:
    """``module``, or a copy in fp32 where its weights are of another precision."""
    dtypes = {tensor.dtype for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()}
    return module if dtypes <= {torch.float32} else copy.deepcopy(module).float()


def _trace(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> _Form:
    try:
        # A trace of its own: modules do other things while they are traced, and under a dispatch mode a convolution becomes a constant,
        # which a trace refuses as an output once the module has run. What is wrong with the module itself, the next trace says.
        with contextlib.suppress(Exception), ValueReads(example) as reads:
            torch.jit.trace(module, example, check_trace=False, strict=True)
        traced = torch.jit.trace(module, example, check_trace=False, strict=True)
    except Exception as error:
        raise FrontEndError(f"{recipe.name}: torch.jit.trace gave up{_at(error, recipe.module)}: {first_line(error)}") from error
    return _Form(traced, traced, tuple(dict.fromkeys(reads.values)))


def _export(recipe: Recipe, module: nn.Module, example: tuple[Tensor, ...]) -> _Form:
    try:
        exported = torch.export.export(module, example, strict=False).run_decompositions(safe_decompositions())
        if exported.graph_signature.user_inputs_to_mutate:  # a package cannot, and nobody would see it
            exported = torch.export.export(_OnCopies(module), example, strict=False).run_decompositions(safe_decompositions())
    except Exception as error:
        raise FrontEndError(f"{recipe.name}: torch.export gave up{_at(error, recipe.module)}: {first_line(error)}") from error
    if ignored := ignored_keywords(exported):
        raise FrontEndError(f"{recipe.name}: of what torch.export gives the converter would ignore {', '.join(ignored)}")
    return _Form(exported, exported.module())


class _OnCopies(nn.Module):
    """A module that writes into its inputs, on copies of them."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:
        """(*inputs) -> (*outputs)."""
        return self.module(*(tensor.clone() for tensor in inputs))


def _at(error: Exception, module: nn.Module) -> str:
    place = place_of_error(error, module)
    return "" if place is None else f" at {place}"


def serialised(captured: Captured) -> bytes:
    """A captured program for another process. In memory: torch's file writer aborts the process when the disk is full."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # see ``_capture``
        if isinstance(captured.program, ExportedProgram):
            torch.export.save(captured.program, buffer)
        else:
            torch.jit.save(captured.program, buffer)
    return buffer.getvalue()


def _replay(recipe: Recipe, form: _Form, inputs: Mapping[str, Tensor]) -> object:
    """What the captured program gives; an exported one refuses all shapes but its own."""
    try:
        return form.call(*inputs.values())
    except Exception as error:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in inputs.items())
        raise ExportError(f"{recipe.name}: captured in one shape, the module does not run on {shapes}: {first_line(error)}") from error


def _check_replay(recipe: Recipe, reference: tuple[Tensor, ...], actual: tuple[Tensor, ...], frozen: Sequence[ValueRead]) -> None:
    for name, expected, result in zip(recipe.outputs, reference, actual, strict=True):
        _check_alike(recipe, repr(name), expected, result, frozen)


def _check_alike(recipe: Recipe, name: str, reference: Tensor, actual: Tensor, frozen: Sequence[ValueRead]) -> None:
    if reference.shape != actual.shape or not torch.allclose(reference, actual, rtol=1e-4, atol=1e-5, equal_nan=True):
        where = f" at {', '.join(dict.fromkeys(map(str, frozen)))}" if frozen else ""
        raise ExportError(
            f"{recipe.name}: traced on one input, {name} is wrong on another; forward reads a value (.item(), int(), if on a tensor)"
            f"{where or ' or draws random numbers'}"
        )


def _runs(
    recipe: Recipe, samples: Iterable[Arrays], watch: IndexWatch, first: Sequence[TorchDispatchMode] = (), *, skips: bool
) -> Iterator[tuple[dict[str, Tensor], object, tuple[Tensor, ...]]]:
    """Inputs of the module, what it returns under ``watch``, and the outputs among that; ``first`` watch the first run only.

    ``skips`` passes over samples on which it does not run, unless it runs on none.
    """
    problem, has_run = None, False
    for arrays in samples:
        inputs = {name: tensors({name: arrays[name]})[name] for name in recipe.inputs}
        try:
            ordered, named = arguments(recipe.module, {name: tensor.clone() for name, tensor in inputs.items()})  # it may write to them
            clear_states(recipe.module, recipe.states)
            with ExitStack() as stack:
                for mode in (watch, *(() if has_run else first)):
                    stack.enter_context(mode)
                result = recipe.module(*ordered, **named)
        except ConfigError as error:
            raise ExportError(f"{recipe.name}: {error}") from error
        except CoreflowError:
            raise
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in inputs.items())
            problem = ExportError(f"{recipe.name}: the module does not run on {shapes}{_at(error, recipe.module)}: {first_line(error)}")
            problem.__cause__ = error
            if not skips:
                raise problem from error
            continue
        has_run = True
        yield inputs, result, _outputs(recipe, result)
    if not has_run and problem is not None:
        raise problem


def _outputs(recipe: Recipe, result: object) -> tuple[Tensor, ...]:
    try:
        results = pick(result, recipe.outputs, strict=True)
    except ConfigError as error:
        raise ExportError(f"{recipe.name}: {error}") from error
    if len({id(tensor) for tensor in results}) != len(results):
        raise ExportError(f"{recipe.name}: forward returns one tensor as two outputs, and the converter would lose a name; return a clone")
    return results


def _spec(recipe: Recipe, name: str, result: Tensor) -> TensorSpec:
    if not result.numel():
        raise ExportError(f"{recipe.name}: output {name!r} of shape {list(result.shape)} is empty; leave it out")
    floats: Dtype = "float16" if recipe.precision == "fp16" else "float32"
    if result.is_floating_point():
        return TensorSpec(tuple(result.shape) or (1,), floats)
    if result.dtype in (torch.int32, torch.int64):
        return TensorSpec(tuple(result.shape) or (1,), "int32")
    raise ExportError(f"{recipe.name}: output {name!r} is {result.dtype}; give floats or integers (a mask as 0.0 and 1.0)")
