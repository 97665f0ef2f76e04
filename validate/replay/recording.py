"""A sample that failed, in a file of its own.

The file is a .safetensors: the inputs as ``input.NAME``, the outputs of the reference in float64 as ``exact.NAME`` and in simulated fp16 as
``simulated.NAME``, and one metadata entry of JSON with the package's digest and the options of the validation. It holds neither the package
nor the reference and no code. ``recorded.replay`` validates it again.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from coreflow.export.user_files import is_recipe_source
from coreflow.models.arrays import Array, Arrays, Floats
from coreflow.models.errors import ConfigError, InputError
from coreflow.models.storage import write_atomically
from coreflow.validate.gates.metrics import as_float64, ratio, rms
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.report.model import Report

FORMAT = 1
KEY = "coreflow.replay"  # of the metadata
Kind = Literal["recipe", "bundle", "package", "onnx", "none"]
_PARTS = ("input", "exact", "simulated")


def _is_text(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value


_CHECKS: Mapping[str, Callable[[object], bool]] = {  # of the metadata, by key
    **dict.fromkeys(("name", "package", "digest"), _is_text),
    "reference_kind": lambda value: value in get_args(Kind),
    **dict.fromkeys(("reference", "label", "numerics", "backend", "compute_units", "verdict"), _is_text),
    "cause": lambda value: value is None or isinstance(value, str),
    "seed": lambda value: value is None or type(value) is int,
    "culprits": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replay:
    """Contents of a replay file; paths are relative to its folder, as they are written in it.

    >>> record = read_replay("artifacts/replays/encoder.safetensors")
    >>> record.label, record.verdict, record.culprits
    ('seed 3', 'fail', ('op_30_linear',))
    """

    name: str  # of the report: the recipe's, or the package's
    package: str
    digest: str
    reference_kind: Kind
    reference: str  # FILE.py:NAME or a path; empty for none
    label: str
    seed: int | None
    numerics: str
    backend: str
    compute_units: str
    verdict: str
    cause: str | None
    culprits: tuple[str, ...]  # names of ops, the worst first
    inputs: Arrays
    outputs: Arrays  # of the reference, in float64
    simulated: Arrays | None  # outputs of the reference in simulated fp16


def worst_sample(report: Report, samples: Sequence[Sample], reference: Sequence[Sequence[Array]], actual: Sequence[Arrays]) -> int:
    """Index of the sample whose worst output is furthest off, in multiples of the output's budget; NaN and inf before all else.

    ``reference`` and ``actual`` hold the outputs of the reference and of the package for each sample, in the package's order. A sample
    that was left out as ambiguous is not the worst, unless all were.
    """
    left_out = {sample.label for sample in report.samples.ambiguous if sample.left_out}

    def excess(place: int) -> float:
        pairs = zip(reference[place], actual[place].items(), strict=True)
        ratios = [_excess(as_float64(expected), as_float64(output), report.outputs[name].budget) for expected, (name, output) in pairs]
        return max(ratios, default=0.0)

    places = range(len(samples))
    return max([place for place in places if samples[place].label not in left_out] or places, key=excess)


def _excess(reference: Floats, actual: Floats, budget: float) -> float:
    """The error of one output, in budgets."""
    finite = np.isfinite(reference)
    with np.errstate(invalid="ignore", over="ignore"):
        excess = ratio(rms((actual.reshape(reference.shape) - reference)[finite]), budget) if finite.any() else 0.0
    return math.inf if math.isnan(excess) else excess


def is_reachable(path: Path, source: Path) -> bool:
    """Whether a path that the replay ``source`` names may be followed, links and all."""
    return any(path.resolve().is_relative_to(folder.resolve()) for folder in (source.parent, Path.cwd()))


def write_replay(
    path: str | Path,
    *,
    package: str | Path,
    sample: Sample,
    report: Report,
    outputs: Arrays,
    simulated: Arrays | None = None,
    reference: str | Path | None = None,
) -> Path:
    """Write the file ``path`` (.safetensors) by which ``sample`` is validated again, alone; ``report`` is the report on ``package``.

    ``outputs`` and ``simulated`` hold R0 and the fp16 simulation of every output; without the latter the budget will be drawn.
    ``reference`` is how the reference was named: ``FILE.py:NAME``, a bundle, a package, an ONNX file, or None.
    """
    from safetensors.numpy import save_file

    target = Path(path)
    if target.suffix != ".safetensors":
        raise ConfigError(f"{target}: a replay is written to NAME.safetensors")
    kind = _kind(reference)
    entry = {
        "format": FORMAT,
        "name": report.name,
        "package": _relative(package, target),
        "digest": report.digest,
        "reference_kind": kind,
        "reference": str(reference) if kind == "recipe" else "" if reference is None else _relative(reference, target),
        "label": sample.label,
        "seed": sample.seed,
        "numerics": report.numerics,
        "backend": report.backend,
        "compute_units": report.compute_units,
        "verdict": report.verdict,
        "cause": report.cause,
        "culprits": [culprit.name for culprit in report.culprits],
    }
    parts = zip(_PARTS, (sample.inputs, outputs, simulated or {}), strict=True)
    # Copied in order: the writer takes the memory of an array as it lies.
    tensors = {f"{part}.{name}": np.array(array, order="C") for part, arrays in parts for name, array in arrays.items()}
    write_atomically(target, lambda file: save_file(tensors, file, {KEY: json.dumps(entry)}))
    return target


def read_replay(path: str | Path) -> Replay:
    """The contents of the file ``path``; ``InputError`` for one that is missing, cut short, foreign or of another format."""
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise InputError(f"{source}: no such replay file")
    try:
        with safe_open(source, framework="numpy") as file:
            entry = json.loads((file.metadata() or {}).get(KEY, "null"))
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    except (OSError, SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{source} is no replay file, or was cut short ({error})") from error
    if not isinstance(entry, dict):
        raise InputError(f"{source} is no replay file: its metadata has no {KEY!r}")
    if entry.get("format") != FORMAT:
        raise InputError(f"{source} has replay format {entry.get('format')!r}; this coreflow reads {FORMAT}")
    inputs, outputs, simulated = (_part(arrays, part) for part in _PARTS)
    if not inputs or not outputs:
        raise InputError(f"{source} holds no {'outputs' if inputs else 'inputs'}; it has to be recorded again")
    if unusable := [key for key, is_usable in _CHECKS.items() if key not in entry or not is_usable(entry[key])]:
        raise InputError(f"{source} is no replay file: {', '.join(unusable)} in its metadata cannot be used")
    fields = {key: entry[key] for key in _CHECKS} | {"culprits": tuple(entry["culprits"])}
    return Replay(**fields, inputs=inputs, outputs=outputs, simulated=simulated or None)


def _part(arrays: Arrays, part: str) -> dict[str, Array]:
    """The arrays under ``part.NAME``, by NAME."""
    return {name.removeprefix(f"{part}."): array for name, array in arrays.items() if name.startswith(f"{part}.")}


def _kind(reference: str | Path | None) -> Kind:
    if reference is None:
        return "none"
    if is_recipe_source(str(reference)):
        return "recipe"
    kinds: dict[str, Kind] = {".mlpackage": "package", ".onnx": "onnx"}
    return kinds.get(Path(reference).suffix, "bundle")


def _relative(path: str | Path, target: Path) -> str:
    """``path`` as seen from the folder of ``target``."""
    return Path(os.path.relpath(Path(path).resolve(), target.parent.resolve())).as_posix()
