"""Reads samples from files.

==================  ==========================================================================================================
file                what it holds
==================  ==========================================================================================================
.npz, .safetensors  an array for every input, by its name; one leading axis more than the input has means several samples
.jsonl              one sample per line: {"input": nested lists, ...}, or {"text": "..."} for a program of token ids
.txt                one text per line, for a program of token ids
.png, .jpg, .jpeg   a picture, for a program whose one input is an image or an array (1, C, H, W) with one or three channels
a folder            any of these, in the order of their names
==================  ==========================================================================================================

Nothing unpickles. Every fault of a file is an ``InputError`` that names the file, the sample and the remedy.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from coreflow.export.package.graph import Feature, Interface
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.spec import TensorSpec
from coreflow.runtime.interface import check_inputs, describe
from coreflow.validate.inputs.file_formats import read_lines, read_npz, read_picture, read_safetensors
from coreflow.validate.inputs.samples import Sample, Specs

if TYPE_CHECKING:
    from coreflow.models.data.tokenizers import TextTokenizer

PICTURES = (".png", ".jpg", ".jpeg")
SUFFIXES = (".npz", ".safetensors", ".jsonl", ".txt", *PICTURES)
_TEXT = "text"
_IDS = ("ids", "input_ids", "token_ids", "tokens")
_MASKS = ("mask", "attention_mask", "input_mask")


def read_samples(
    path: str | Path,
    specs: Specs,
    tokenizer: "TextTokenizer | None" = None,
    *,
    interface: Interface | None = None,
    check_values: bool = True,
) -> list[Sample]:
    """The samples in the file or folder ``path``, at least one, for a program whose inputs are ``specs``, in their order and dtypes.

    Texts need the ``tokenizer`` of the bundle. ``interface`` is the program's: with it images have their colours, and inputs of
    several shapes take all of them. Values outside the bounds are refused, unless ``check_values`` leaves them to a judgement.
    """
    source = Path(path)
    reader = _Reader(specs, tokenizer, interface or _interface(specs), check_values=check_values)
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if source.is_dir():
        files = sorted(file for file in source.iterdir() if not file.name.startswith("."))
        samples = [sample for file in files for sample in reader.read(file)]
    else:
        samples = list(reader.read(source))
    if not samples:
        raise InputError(f"{source} holds no sample; files of {', '.join(SUFFIXES)} do")
    return samples


class _Reader:
    """Reads files for one program."""

    def __init__(self, specs: Specs, tokenizer: "TextTokenizer | None", interface: Interface, *, check_values: bool) -> None:
        self._specs = specs
        self._checked_specs = specs if check_values else {name: replace(spec, bounds=None, values=None) for name, spec in specs.items()}
        self._tokenizer = tokenizer
        self._interface = interface

    def read(self, file: Path) -> Iterator[Sample]:
        """The samples in one file."""
        suffix = file.suffix.lower()
        if file.is_dir():
            raise InputError(f"{file} is a folder; the files of a folder are read, not folders in it")
        if suffix in (".npz", ".safetensors"):
            yield from self._stacked(file, read_npz(file) if suffix == ".npz" else read_safetensors(file))
        elif suffix == ".jsonl":
            yield from self._lines(file)
        elif suffix == ".txt":
            for number, line in read_lines(file):
                yield self._text(line, f"{file.name} line {number}")
        elif suffix in PICTURES:
            yield self._picture(file)
        else:
            raise InputError(f"{file}: samples are read from files of {', '.join(SUFFIXES)}")

    def _sample(self, label: str, inputs: Mapping[str, Any]) -> Sample:
        """A sample that has passed the checks of a backend; their errors here name the place in the file."""
        self._check_names(label, inputs)
        try:
            checked = check_inputs(inputs, self._checked_specs, self._interface)
        except InputError as error:
            raise InputError(f"{label}: {error}") from error
        return Sample(label=label, inputs={name: checked[name] for name in self._specs})

    def _check_names(self, label: str, inputs: Mapping[str, Any]) -> None:
        if inputs.keys() != self._specs.keys():
            names = ", ".join(map(repr, inputs)) or "nothing"
            raise InputError(f"{label} gives {names}; one value for each input is right: {self._expected}")

    @property
    def _expected(self) -> str:
        """The inputs of the program, in words."""
        return ", ".join(f"{name} {describe(spec)}" for name, spec in self._specs.items())

    # -- arrays ------------------------------------------------------------------------------------------------------------

    def _stacked(self, file: Path, arrays: Arrays) -> Iterator[Sample]:
        """One sample of arrays that have the ranks of the inputs; several of arrays that all have one leading axis more."""
        self._check_names(file.name, arrays)
        is_stacked = {name: array.ndim == len(self._specs[name].shape) + 1 for name, array in arrays.items()}
        if not any(is_stacked.values()):
            yield self._sample(file.name, arrays)
            return
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
        if not all(is_stacked.values()):
            raise InputError(f"{file.name} holds {shapes}; either every array has a leading axis of samples, or none has")
        counts = {len(array) for array in arrays.values()}
        if len(counts) > 1:
            raise InputError(f"{file.name} holds {shapes}; the leading axis counts the samples and is the same for all")
        for number in range(counts.pop()):
            yield self._sample(f"{file.name}[{number}]", {name: array[number] for name, array in arrays.items()})

    # -- lines -------------------------------------------------------------------------------------------------------------

    def _lines(self, file: Path) -> Iterator[Sample]:
        for number, line in read_lines(file):
            label = f"{file.name} line {number}"
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{label} is no JSON ({error}); one object a line is right") from error
            if not isinstance(values, dict):
                raise InputError(f'{label} is a {type(values).__name__}; an object {{"input": values, ...}} is right')
            if _TEXT not in self._specs and isinstance(values.get(_TEXT), str) and len(values) == 1:
                yield self._text(values[_TEXT], label)
            else:
                yield self._sample(label, {name: _array(f"{label}, input {name!r}", nested) for name, nested in values.items()})

    def _text(self, text: str, label: str) -> Sample:
        """Ids and mask of ``text``, from the tokenizer of a bundle."""
        if self._tokenizer is None:
            raise InputError(
                f"{label} is a text, and there is no tokenizer; give arrays, or validate the bundle that the package belongs to"
            )
        ids, mask = self._text_inputs(label)
        spec = self._specs[ids]
        try:
            encoded = self._tokenizer.encode(text, spec.shape[-1])
        except (InputError, ConfigError) as error:
            raise InputError(f"{label}: {error}") from error
        inputs: dict[str, Array] = {ids: encoded.ids.reshape(spec.shape)}
        if mask is not None:
            low, high = self._specs[mask].bounds or (0.0, 1.0)
            values = np.where(encoded.mask > 0, high, low)  # an additive mask is 0 on a token and low on padding
            inputs[mask] = values.reshape(self._specs[mask].shape).astype(self._specs[mask].dtype)
        cut = f", cut by {encoded.dropped} tokens" if encoded.dropped else ""
        return replace(self._sample(label, inputs), label=label + cut)

    def _text_inputs(self, label: str) -> tuple[str, str | None]:
        """The names of the ids and of the mask, if there is one; a text gives no other inputs."""

        def row(spec: TensorSpec) -> int | None:
            return spec.shape[-1] if spec.shape and int(np.prod(spec.shape)) == spec.shape[-1] else None

        ids = [name for name, spec in self._specs.items() if name in _IDS and spec.dtype == "int32" and row(spec)]
        masks = [name for name, spec in self._specs.items() if name in _MASKS and ids and row(spec) == row(self._specs[ids[0]])]
        if len(ids) != 1 or len(masks) > 1 or len(ids) + len(masks) != len(self._specs):
            raise InputError(
                f"{label} is a text, which gives ids (int32 [1, L], named {' or '.join(_IDS)}) and a mask of their length (named "
                f"{' or '.join(_MASKS)}); the inputs are {self._expected}"
            )
        return ids[0], masks[0] if masks else None

    # -- pictures ----------------------------------------------------------------------------------------------------------

    def _picture(self, file: Path) -> Sample:
        """The pixels of a picture: as they are for an image; spread over the bounds of an array, 0 to 1 where it has none."""
        names = list(self._specs)
        shape = self._specs[names[0]].shape if len(names) == 1 else ()
        if len(shape) != 4 or shape[0] != 1 or shape[1] not in (1, 3) or self._specs[names[0]].dtype == "int32":
            raise InputError(
                f"{file.name} is a picture, which fills one input of floats (1, C, H, W), C being 1 or 3; the inputs are {self._expected}"
            )
        spec, feature = self._specs[names[0]], self._interface.inputs[0]
        pixels, size = read_picture(file, channels=shape[1], size=(shape[3], shape[2]))
        changes = f" resized from {size[0]}x{size[1]} to {shape[3]}x{shape[2]}" if size != (shape[3], shape[2]) else ""
        if feature.kind == "image":
            values = pixels[:, ::-1] if feature.colour == "BGR" else pixels
        else:
            low, high = spec.bounds or (0.0, 1.0)
            values = np.clip(low + pixels * ((high - low) / 255), low, high)  # the last bit may lie outside
            changes += f", scaled to {low:g}..{high:g}" if (low, high) != (0, 255) else ""
        sample = self._sample(file.name, {names[0]: values.astype(spec.dtype)})
        return replace(sample, label=file.name + changes)


def _interface(specs: Specs) -> Interface:
    """The interface of a program with these inputs: arrays of one shape each."""
    return Interface(inputs=tuple(Feature(name, "array", spec.dtype, spec.shape) for name, spec in specs.items()), outputs=(), states=())


def _array(label: str, values: Any) -> Array:
    """Nested lists of numbers as an array."""
    try:
        array = np.asarray(values)
    except (ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{label} is no array: {error}; lists of equal length are right") from error
    if array.dtype.kind not in "fiub":
        raise InputError(f"{label} does not hold numbers alone; nested lists of numbers are right")
    return array
