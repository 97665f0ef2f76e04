"""Everything that decides the bytes of one package."""

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import nn

from coreflow.export.capture.modules import as_module
from coreflow.export.engine.targets import find_targets
from coreflow.export.pictures import with_pictures
from coreflow.export.shapes import Shapes, shape_choices
from coreflow.export.targets.passes import Pass, name_of_pass
from coreflow.models.arrays import Array
from coreflow.models.draws import draw_inputs
from coreflow.models.errors import ConfigError
from coreflow.models.spec import PRECISIONS, Precision, TensorSpec
from coreflow.models.stage import Stage

Target = Literal["iOS16", "iOS17", "iOS18"]
TARGETS: tuple[Target, ...] = ("iOS16", "iOS17", "iOS18")
FrontEnd = Literal["auto", "trace", "export"]
FRONT_ENDS: tuple[FrontEnd, ...] = ("auto", "trace", "export")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SEQUENCES = ("outputs", "states", "labels", "functions", "passes")
_MAPPINGS = ("inputs", "shapes", "compute_dtype", "metadata")
_OWN = "coreflow."  # the beginning of our own keys of user-defined metadata


@dataclass(frozen=True, kw_only=True, eq=False)
class Recipe(Stage):
    """A stage and how it is converted: what a user says of one package.

    >>> Recipe(name="head", module=head, inputs={"x": TensorSpec((1, 64))}, outputs=("y",))

    ``name``, ``module``, ``inputs``, ``outputs``, ``description`` and ``draw`` are those of a ``Stage``. ``source`` is set by
    ``load_recipes``. ``ConfigError`` lists everything that could not be converted as it is named.

    Inputs may be pictures (``ImageSpec``): the package takes them as they are.

    >>> Recipe(..., inputs={"photo": ImageSpec.of(224, 224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))})

    ``states``: buffers that forward updates, kept between predictions.

    >>> Recipe(name="step", module=decoder, inputs={"ids": ids}, outputs=("logits",), states=("keys", "values"), target="iOS18")

    ``shapes``: other shapes of an input, a list of them or ranges; every one is executed after converting.

    >>> Recipe(..., inputs={"ids": TensorSpec((1, 64), "int32", bounds=(0, 999))}, shapes={"ids": [(1, 128), (1, 256)]})
    >>> Recipe(..., inputs={"ids": TensorSpec((1, 64), "int32", bounds=(0, 999))}, shapes={"ids": (1, Range(1, 512, "length"))})

    ``labels``: names of the classes, one for every element of the first output; the package gives the likeliest as ``classLabel`` and all
    with their values as ``classLabel_probs``.

    >>> Recipe(..., outputs=("probabilities",), labels=("cat", "dog"))

    ``functions``: further recipes in the same package, which share its weights; this one is the function that runs by default.

    >>> Recipe(name="prefill", ..., functions=(STEP,), target="iOS18")

    ``compute_dtype``: submodules by path that compute in fp32 in a package of fp16.

    >>> Recipe(..., compute_dtype={"encoder.norm": "fp32"})

    ``front_end``: ``"trace"`` or ``"export"`` for ``torch.jit.trace`` or ``torch.export`` alone; ``"auto"`` takes the one that follows the
    module and is proven right.

    >>> Recipe(..., front_end="export")

    ``passes``: functions that change the converter's program before its numbers become fp16, in this order.

    >>> def without_dropout(program): ...
    >>> Recipe(..., passes=(without_dropout,))

    ``engine_safe``: a target whose Neural Engine the saved program is repaired for, as docs/engine.md says; nothing by default.

    >>> Recipe(..., engine_safe="M4/macOS27")

    ``metadata``: author, licence, version, and any other key.

    >>> Recipe(..., metadata={"author": "Jane Doe", "licence": "Apache-2.0", "version": "1.2", "corpus": "wiki"})
    """

    target: Target = "iOS17"  # iOS18 where states, several functions or grouped palettes need it
    precision: Precision = "fp16"  # fp32 is for looking for faults; it never runs on the engine
    source: str = ""  # FILE.py:NAME that it was loaded from
    states: Sequence[str] = ()
    shapes: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] = ()
    functions: Sequence["Recipe"] = ()
    compute_dtype: Mapping[str, Precision] = field(default_factory=dict)
    front_end: FrontEnd = "auto"
    passes: Sequence[Pass] = ()
    engine_safe: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if problems := list(self._wrong_types()):
            raise ConfigError(f"recipe {self.name!r}: {'; '.join(problems)}")
        for name in _SEQUENCES:
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) or callable(value) else tuple(value))
        for name in _MAPPINGS:
            object.__setattr__(self, name, dict(getattr(self, name)))
        if (module := as_module(self.module)) is not None:
            object.__setattr__(self, "module", with_pictures(module, self.inputs))
        problems = [*self._wrong_names(), *self._wrong_conversion()]
        if isinstance(self.module, nn.Module):
            problems += [*self._wrong_states(), *self._wrong_compute_dtype()]
        problems += [*self._wrong_shapes(), *self._wrong_labels(), *self._wrong_functions(), *self._wrong_metadata()]
        if problems:
            raise ConfigError(f"recipe {self.name!r}: {'; '.join(problems)}")

    @property
    def parts(self) -> tuple["Recipe", ...]:
        """This recipe and those of its further functions: a stage each."""
        return (self, *self.functions)

    def inputs_of_other_shapes(self) -> Iterator[dict[str, Array]]:
        """Inputs in every shape to compare but the default, drawn by the specs."""
        for place, shapes in enumerate(shape_choices(self.shapes, self.inputs)[1:]):
            yield draw_inputs({name: replace(spec, shape=shapes[name]) for name, spec in self.inputs.items()}, place)

    def to_json(self) -> dict[str, Any]:
        """The entry of the manifest, without what the recipe does not say; the weights are covered by the fingerprint."""
        plain = {"name": self.name, "target": self.target, "precision": self.precision, "description": self.description}
        further = {
            "states": list(self.states),
            "shapes": {name: shapes.to_json() for name, shapes in self.shapes.items()},
            "labels": list(self.labels),
            "compute_dtype": dict(self.compute_dtype),
            "passes": [name_of_pass(function) for function in self.passes],
            "engine_safe": self.engine_safe,
            "metadata": dict(self.metadata),
        }
        return plain | {key: value for key, value in further.items() if value}

    def _wrong_types(self) -> Iterator[str]:
        for name in _SEQUENCES:
            if not isinstance(value := getattr(self, name), Sequence) and not callable(value):
                yield f"{name}={value!r}; a list is right"
        for name in _MAPPINGS:
            if not isinstance(value := getattr(self, name), Mapping):
                yield f"{name}={value!r}; a dict is right"
            elif name == "inputs" and (wrong := [key for key, spec in value.items() if not isinstance(spec, TensorSpec)]):
                yield f"input {wrong[0]!r} is {value[wrong[0]]!r}; a TensorSpec is right, as in TensorSpec((1, 128))"

    def _wrong_names(self) -> Iterator[str]:
        if not self.inputs or not self.outputs:
            yield "at least one input and one output are needed"
        names = [self.name, *self.inputs, *self.outputs]
        # The converter renames others without a word: "x-1" becomes "x_1".
        for name in names:
            if not isinstance(name, str) or not _NAME.fullmatch(name):
                yield f"name {name!r}; letters, digits and _ only, no digit first"
        if repeated := sorted({name for name in names[1:] if names[1:].count(name) > 1}):
            yield f"{', '.join(repeated)} named twice; inputs and outputs need names of their own"

    def _wrong_conversion(self) -> Iterator[str]:
        if not isinstance(self.module, nn.Module):
            yield f"module is of type {type(self.module).__name__}, neither an nn.Module nor an object that is called and holds some"
        if self.target not in TARGETS:
            yield f"target {self.target!r}; choose one of {', '.join(TARGETS)}"
        if self.precision not in PRECISIONS:
            yield f"precision {self.precision!r}; choose {' or '.join(PRECISIONS)}"
        if self.front_end not in FRONT_ENDS:
            yield f"front_end {self.front_end!r}; choose one of {', '.join(FRONT_ENDS)}"
        if self.engine_safe:
            try:
                find_targets(self.engine_safe)
            except ConfigError as error:
                yield f"engine_safe: {error}"
        if wrong := [function for function in self.passes if not inspect.isfunction(function)]:
            yield f"pass {wrong[0]!r}; a pass is a function of coremltools' Program, which it changes in place"

    def _wrong_states(self) -> Iterator[str]:
        if not self.states:
            return
        buffers = dict(self.module.named_buffers())
        for name in self.states:
            if name not in buffers:
                yield f"state {name!r} is no buffer of the module; its buffers are {', '.join(buffers) or 'none'}"
            elif not buffers[name].is_floating_point():
                yield f"state {name!r} is {buffers[name].dtype}; a buffer of floats is right, since Core ML keeps fp16 states only"
            elif buffers[name].any():
                yield f"state {name!r} does not start at zero, and Core ML's states do"
        if self.target != "iOS18":
            yield f"states need target='iOS18', not {self.target!r}"
        if self.precision != "fp16":
            yield "states need precision='fp16', since Core ML keeps fp16 states only"

    def _wrong_compute_dtype(self) -> Iterator[str]:
        modules = dict(self.module.named_modules()) if self.compute_dtype else {}
        for path, precision in self.compute_dtype.items():
            if path not in modules or not path:
                near = [name for name in modules if name and name.rpartition(".")[2] == str(path).rpartition(".")[2]]
                yield f"compute_dtype of {path!r}, which is no submodule" + (f"; did you mean {', '.join(near[:3])}?" if near else "")
            if precision not in PRECISIONS:
                yield f"compute_dtype {precision!r} of {path!r}; choose {' or '.join(PRECISIONS)}"
        if self.compute_dtype and self.precision != "fp16":
            yield "compute_dtype is for packages of precision='fp16'"

    def _wrong_shapes(self) -> Iterator[str]:
        for name, given in list(self.shapes.items()):
            if name not in self.inputs:
                yield f"shapes of {name!r}, which is no input"
                continue
            try:
                self.shapes[name] = given if isinstance(given, Shapes) else Shapes.of(self.inputs[name], given)  # type: ignore[index]
            except ConfigError as error:
                yield f"shapes of {name!r}: {error}"
        lists = {name: shapes.enumerated for name, shapes in self.shapes.items() if isinstance(shapes, Shapes) and shapes.enumerated}
        if len(lists) > 1 and self.target != "iOS18":
            yield f"lists of shapes for {' and '.join(lists)} need target='iOS18'; before it one input may have a list"
        if len({len(shapes) for shapes in lists.values()}) > 1:
            counts = ", ".join(f"{name} has {len(shapes)}" for name, shapes in lists.items())
            yield f"lists of shapes are taken together, one of every list, and need the same length: {counts}"

    def _wrong_labels(self) -> Iterator[str]:
        if any(not isinstance(label, str) for label in self.labels):
            yield "labels are strings, one for every class"
        elif repeated := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            yield f"the label {repeated[0]!r} is given twice; every class needs one of its own"

    def _wrong_functions(self) -> Iterator[str]:
        if not self.functions:
            return
        if any(not isinstance(function, Recipe) for function in self.functions):
            yield "functions are recipes"
            return
        names = [part.name for part in self.parts]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            yield f"two functions are named {', '.join(repeated)}"
        if any(function.functions for function in self.functions):
            yield "a function has functions of its own; list all of them in one recipe"
        if wrong := [part.name for part in self.parts if part.target != "iOS18"]:
            yield f"several functions need target='iOS18', {', '.join(wrong)} {'has' if len(wrong) == 1 else 'have'} another"

    def _wrong_metadata(self) -> Iterator[str]:
        for key, value in self.metadata.items():
            if not isinstance(key, str) or not key or not isinstance(value, str):
                yield f"metadata {key!r}: {value!r}; names and values are strings"
            elif key.startswith(_OWN):
                yield f"metadata {key!r}; names that begin with {_OWN} are coreflow's own"
