"""Opens the reference that a path names: another package or an ONNX file."""

from collections.abc import Sequence
from pathlib import Path

from coreflow.models.errors import ConfigError
from coreflow.validate.references.onnx import OnnxReference
from coreflow.validate.references.package import PackageReference
from coreflow.validate.references.reference import Reference


def open_reference(path: Path, outputs: Sequence[str]) -> Reference:
    """The reference in ``path``, by its suffix; ``outputs`` are the names of the package's outputs, which have to be the reference's."""
    if path.suffix == ".mlpackage":
        return PackageReference(path, outputs)
    if path.suffix == ".onnx":
        return OnnxReference(path, outputs)
    raise ConfigError(f"reference {path}: a .mlpackage or an .onnx file can be compared with")
