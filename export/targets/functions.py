"""Several packages of one function each as one package of several functions, which share their weights."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Program, Value
from coreflow.export.package.mlpackage import read_message, read_program
from coreflow.export.package.weights import is_mapped
from coreflow.models.arrays import Array
from coreflow.models.spec import BOUNDS_KEY, RECIPE_KEY, VALUES_KEY, key_of

_OWN_KEYS = (BOUNDS_KEY, VALUES_KEY, RECIPE_KEY)
_SMALL = 4096  # bytes: constants below it are no weights worth a word


def merge_functions(packages: Mapping[str, Path], package: Path) -> None:
    """Save the default functions of ``packages`` in one at ``package``, under the names that are keys; the first runs by default.

    >>> merge_functions({"prefill": Path("prefill.mlpackage"), "step": Path("step.mlpackage")}, Path("decoder.mlpackage"))

    The converter stores equal weights once, and ``ValueError`` says where it did not. It drops the descriptive entries: those of the first
    package that has one become the new one's, and what we read back of a function is kept under its name.
    """
    ct = quiet_coremltools()
    description = ct.utils.MultiFunctionDescriptor()
    for name, path in packages.items():
        description.add_function(str(path), "main", name)
    description.default_function_name = next(iter(packages))
    ct.utils.save_multifunction(description, str(package))
    message, file = read_message(package)
    for name, path in packages.items():
        _add_entries(message.description.metadata, read_message(path)[0].description.metadata, name)
    file.write_bytes(message.SerializeToString(deterministic=True))
    if twice := stored_twice(read_program(package)):
        raise ValueError(f"equal weights are stored twice, {', '.join(twice[:3])} among them")


def stored_twice(program: Program) -> list[str]:
    """Names of weights of which ``program`` holds an equal one elsewhere in its file, whichever functions they are of.

    >>> stored_twice(read_program("decoder.mlpackage"))
    []
    """
    names: dict[int, str] = {}
    arrays: dict[int, Array] = {}
    for graph in program.functions.values():
        for value in _constants(graph):
            array = value.data
            if not isinstance(array, str | tuple | dict) and array is not None and array.nbytes >= _SMALL and is_mapped(array):
                place = array.__array_interface__["data"][0]
                names[place], arrays[place] = value.name, array
    places = defaultdict(list)
    for place, array in arrays.items():
        places[str(array.dtype), array.shape, hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()].append(place)
    return [names[place] for equal in places.values() for place in equal[1:]]


def _constants(graph: Graph) -> Iterator[Value]:
    yield from graph.constants
    for op in graph.ops:
        yield from (value for value in op.reads() if value.data is not None)
        for block in op.blocks:
            yield from _constants(block)


def _add_entries(metadata: Any, of_function: Any, name: str) -> None:
    """Add the protobuf entries of the package of a function: ours under its name, all others unless there are some already."""
    for field, text in of_function.ListFields():
        if field.name != "userDefined" and not getattr(metadata, field.name):
            setattr(metadata, field.name, text)
    for key, text in of_function.userDefined.items():
        metadata.userDefined.setdefault(key_of(key, name) if key in _OWN_KEYS else key, text)
