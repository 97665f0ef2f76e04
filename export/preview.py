"""What an export would do: modules are captured and checked, nothing is converted, and nothing is written."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from coreflow.export.bundle import check_destination, reusable_packages, stage_entries
from coreflow.export.capture.capture import Captured
from coreflow.export.capture.front_ends import capture_best
from coreflow.export.package.manifest import MANIFEST, StageEntry, read_manifest
from coreflow.export.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePreview:
    """One stage as the manifest would have it, and what would become of its package.

    >>> preview = preview_bundle(recipes, Path("artifacts/mine"))
    >>> [(stage.name, stage.action) for stage in preview.stages]
    """

    name: str
    entry: StageEntry
    action: Literal["convert", "replace", "keep"]  # the package there has another fingerprint, or the same
    weights_bytes: int  # of the parameters and buffers of the package, before compression; functions share one
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        entry = self.entry
        return {
            "action": self.action,
            "package": entry.package,
            "fingerprint": entry.fingerprint,
            "recipe": dict(entry.recipe),
            "inputs": {name: spec.to_json() for name, spec in entry.inputs.items()},
            "outputs": {name: spec.to_json() for name, spec in entry.outputs.items()},
            "weights_bytes": self.weights_bytes,
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class BundlePreview:
    """The stages of a bundle that would be written to ``path``, and names of those there now that would go.

    >>> preview_bundle(recipes, Path("artifacts/mine")).removed
    ('old_head',)
    """

    path: Path
    exists: bool
    stages: tuple[StagePreview, ...]
    removed: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain data for programs."""
        stages = {stage.name: stage.to_json() for stage in self.stages}
        return asdict(self) | {"path": str(self.path), "stages": stages, "removed": list(self.removed)}


def preview_bundle(recipes: Sequence[Recipe], out: Path) -> BundlePreview:
    """What ``export_bundle`` would do with the same arguments; raises what it would raise before it converts.

    Whether the converter takes a module, and whether the program is the module, only an export shows.
    """
    check_destination(recipes, out)
    old = read_manifest(out, verify=False) if (out / MANIFEST).exists() else None
    kept = {} if old is None else reusable_packages(out, old)
    present = set() if old is None else set(old.stages)
    stages: list[StagePreview] = []
    for captured in map(capture_best, recipes):
        size, entries = _weights_bytes(captured), stage_entries(captured)
        for part in captured.parts:
            name = part.recipe.name
            action: Literal["convert", "replace", "keep"] = "replace" if name in present else "convert"
            if captured.fingerprint in kept:
                action = "keep"
            stages.append(StagePreview(name=name, entry=entries[name], action=action, weights_bytes=size, warnings=part.warnings))
    removed = tuple(sorted(present - {stage.name for stage in stages}))
    return BundlePreview(path=out, exists=old is not None, stages=tuple(stages), removed=removed)


def _weights_bytes(captured: Captured) -> int:
    """A weight with several names counts once."""
    element = 2 if captured.recipe.precision == "fp16" else 4
    tensors: Iterable[Tensor] = (
        tensor for part in captured.parts for tensor in (*part.recipe.module.parameters(), *part.recipe.module.buffers())
    )
    floats = {tensor.data_ptr(): tensor.numel() for tensor in tensors if tensor.is_floating_point()}
    return element * sum(floats.values())
