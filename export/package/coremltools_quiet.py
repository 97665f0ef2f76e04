"""The two ways to coremltools: the whole package without its import-time complaints, and its message classes alone."""

import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from coreflow.models.errors import UnsupportedError

_PROTO_ALIAS = "coreflow_coreml_proto"


def quiet_coremltools() -> Any:
    """The coremltools module, imported without a word on the terminal.

    Off a Mac the import logs a warning for every missing part of the framework, and one for each untested version of torch
    and scikit-learn; they go through the ``coremltools`` logger. It stays at ERROR afterwards, unless the caller had chosen a level.
    """
    module = sys.modules.get("coremltools")
    if module is not None and hasattr(module, "convert"):
        return module
    logger = logging.getLogger("coremltools")
    chosen = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return importlib.import_module("coremltools")
    finally:
        logger.setLevel(chosen if chosen != logging.NOTSET else logging.ERROR)


def model_proto() -> Any:
    """The module with coremltools' protobuf classes (``Model`` and, as ``MIL__pb2``, the program's).

    coremltools itself takes seconds to import because it brings torch along; its generated ``*_pb2`` files import only each other,
    so they are loaded from the installed folder under a name of their own. The classes are the same objects either way: protobuf keeps
    one per message type.
    """
    loaded = sys.modules.get("coremltools.proto.Model_pb2") or sys.modules.get(f"{_PROTO_ALIAS}.Model_pb2")
    if loaded is not None:
        return loaded
    spec = importlib.util.find_spec("coremltools")
    if spec is None or spec.origin is None:
        raise UnsupportedError("reading a package needs coremltools, which is not installed; pip install coremltools")
    alias = ModuleType(_PROTO_ALIAS)
    alias.__path__ = [str(Path(spec.origin).parent / "proto")]
    sys.modules[_PROTO_ALIAS] = alias
    return importlib.import_module(f"{_PROTO_ALIAS}.Model_pb2")
