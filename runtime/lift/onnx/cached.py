"""Tuned ONNX forms of programs, kept in the cache under everything that decides their bytes."""

import hashlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import torch

from coreflow.export.package.graph import Program
from coreflow.export.package.mlpackage import package_digest
from coreflow.models.errors import UnsupportedError
from coreflow.models.storage import TemporaryFolder
from coreflow.models.versions import version
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.cache import Cache
from coreflow.runtime.lift.onnx.write import write_onnx

_CACHE = Cache("onnx")
_MODEL = "model.onnx"  # in an entry of the cache
_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "coreflow")


def cached_onnx(program: Program, numerics: NumericsName, function_name: str | None = None) -> tuple[Path, TemporaryFolder | None]:
    """The tuned ONNX file of a function, made if the cache has none; a refusal is kept too, since finding it out takes seconds.

    Where the cache cannot be written the file lies in the temporary folder that is returned with it.
    """
    key = _key(program, numerics, function_name)
    refusal = _CACHE.refusal(key)
    if refusal is not None:
        raise UnsupportedError(refusal)
    try:
        folder, temporary = _CACHE.entry_or_temporary(
            key, lambda folder: write_onnx(program, folder / _MODEL, numerics, function_name, tuned=True)
        )
    except UnsupportedError as error:
        _CACHE.refuse(key, str(error))
        raise
    return folder / _MODEL, temporary


def is_cached(program: Program, numerics: NumericsName, function_name: str | None = None) -> bool:
    """Whether ``cached_onnx`` has the file, or knows that there can be none."""
    return _CACHE.knows(_key(program, numerics, function_name))


def _key(program: Program, numerics: NumericsName, function_name: str | None) -> str:
    name = program.default_function if function_name is None else function_name
    return hashlib.sha256("\0".join((package_digest(program.path), name, numerics, *_makers())).encode()).hexdigest()[:32]


def _makers() -> Iterator[str]:
    """Everything else that decides the bytes of a file: the processor, the versions of the libraries, and all sources of this room."""
    yield f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    for name in _LIBRARIES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} none"
    for source in sorted(Path(__file__).parents[1].rglob("*.py")):
        yield hashlib.sha256(source.read_bytes()).hexdigest()
