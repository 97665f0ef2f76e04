"""Passes of the converter: those left out, ours, and a recipe's. They decide a package's bytes and are part of its fingerprint."""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from coreflow.export.package.coremltools_quiet import quiet_coremltools

Pass = Callable[[Any], None]  # changes a coremltools ``Program`` in place

# Since iOS17 a gather takes no negative index, and this pass counts such ones from the start: seven integer ops on the CPU for each gather.
NEGATIVE_INDICES = "common::guard_negative_gather_indices"
REMOVED_PASSES = (
    NEGATIVE_INDICES,  # unless the module may index with negative numbers: token ids are never negative
    "common::add_int16_cast",  # which is for that guard, and makes casts of its own
    # It turns x * gamma + beta into a batch norm of variance 1 and forgets to say epsilon, whose default is 1e-5: every value comes out
    # 5e-6 too small (coremltools 9.0; a trained channel-wise layer norm fails R2 by it).
    "common::fuse_elementwise_to_batchnorm",
)

_BEFORE = "common::dedup_op_and_var_names"  # which precedes the choice of precisions
_NAMESPACE = "coreflow"


@contextlib.contextmanager
def pipeline(removed: Sequence[str], passes: Sequence[Pass]) -> Iterator[Any]:
    """The converter's ``PassPipeline`` without ``removed`` and with ``passes``, in their order, before numbers become fp16.

    >>> with pipeline(REMOVED_PASSES, [finite_masks]) as passes:
    ...     ct.convert(program, pass_pipeline=passes)

    The converter knows passes by name; those given have one within the context alone.
    """
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil.passes.graph_pass import AbstractGraphPass
    from coremltools.converters.mil.mil.passes.pass_registry import PASS_REGISTRY

    result = ct.PassPipeline.DEFAULT
    result.remove_passes(set(removed))
    names = []
    try:
        for place, function in enumerate(passes):
            names.append(f"{_NAMESPACE}::{place}_{function.__name__}")
            body = {"apply": lambda self, program, function=function: function(program)}
            PASS_REGISTRY.passes[names[-1]] = type(function.__name__, (AbstractGraphPass,), body)
            result.insert_pass(result.passes.index(_BEFORE), names[-1])
        yield result
    finally:
        for name in names:
            del PASS_REGISTRY.passes[name]


def name_of_pass(function: Pass) -> str:
    """``FILE.py:NAME``, without the folder."""
    return f"{Path(inspect.getfile(function)).name}:{function.__qualname__}"


def source_of_pass(function: Pass) -> str:
    """Text of the file of a pass, functions that it calls included; of the function alone where that was typed in and has no file."""
    file = Path(inspect.getfile(function))
    return file.read_text(encoding="utf-8") if file.is_file() else inspect.getsource(function)


@cache
def converter_digest() -> str:
    """SHA-256 of everything of coreflow that decides what the converter makes of a captured program: the files of this folder."""
    folder = Path(__file__).parent
    digest = sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}\n{file.read_text(encoding='utf-8')}".encode())
    return digest.hexdigest()
