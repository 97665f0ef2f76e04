"""Digests by which a package is known again: of everything that decides its bytes, and of the weights alone."""

import hashlib
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from coreflow.export.engine.repair.repair import repair_digest
from coreflow.export.recipe import Recipe
from coreflow.export.targets.lowerings.registry import user_sources
from coreflow.export.targets.passes import converter_digest, source_of_pass
from coreflow.models.versions import version


def fingerprint(recipe: Recipe, program: torch.jit.ScriptModule | ExportedProgram, removed_passes: Sequence[str]) -> str:
    """SHA-256 of the recipe, the captured operations, every weight and constant, and the versions, passes and lowerings that convert.

    Those that repair, too, where the recipe asks for it.
    """
    digest = hashlib.sha256()
    for part in (recipe.to_json(), {name: spec.to_json() for name, spec in recipe.inputs.items()}, recipe.outputs, removed_passes):
        digest.update(repr(part).encode())
    for package in ("coreflow", "coremltools", "torch"):
        digest.update(f"{package} {version(package)}".encode())
    operations, constants = _parts_of_export(program) if isinstance(program, ExportedProgram) else _parts_of_trace(program)
    repairs = (repair_digest(),) if recipe.engine_safe else ()
    for text in (operations, converter_digest(), *repairs, *map(source_of_pass, recipe.passes), *user_sources(operations)):
        digest.update(text.encode())
    for name, tensor in constants:
        digest.update(name.encode())
        _update(digest, tensor)
    return digest.hexdigest()


def join_digests(digests: Sequence[str]) -> str:
    """One digest of several, in their order."""
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def weights_digest(module: nn.Module) -> str:
    """SHA-256 of all parameters in their order, by which a package knows what it was made of. Buffers may be written to in use."""
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _parts_of_trace(traced: torch.jit.ScriptModule) -> tuple[str, list[tuple[str, Tensor]]]:
    """The operations in words, and all tensors with their names."""
    graph = traced.inlined_graph
    # Without the paths and lines of the source, and the numbers that tell classes of one name apart within a process.
    operations = re.sub(r"#.*|___torch_mangle_\d+\.", "", str(graph))
    literals = [
        ("", node.t("value"))
        for node in graph.findAllNodes("prim::Constant")  # type: ignore[attr-defined]
        if "value" in node.attributeNames() and node.kindOf("value") == "t"
    ]
    return operations, [*literals, *traced.named_parameters(), *traced.named_buffers()]


def _parts_of_export(exported: ExportedProgram) -> tuple[str, list[tuple[str, Tensor]]]:
    constants = {**exported.state_dict, **exported.constants}
    operations = f"torch.export {exported.graph} {exported.graph_signature}"
    return operations, [(name, tensor) for name, tensor in constants.items() if isinstance(tensor, Tensor)]


def _update(digest: "hashlib._Hash", tensor: Tensor) -> None:
    array = tensor.detach().cpu().contiguous().numpy()
    digest.update(f"{array.dtype} {array.shape}".encode())
    digest.update(array.tobytes())
