"""The submodule that an op of the converter comes from."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import jit

from coreflow.models.errors import ConfigError

_NEVER_CALLED = frozenset({"ModuleList", "ModuleDict"})  # the converter's scopes do not name them


def outside_of(traced: jit.ScriptModule, paths: Iterable[str]) -> Callable[[Any], bool]:
    """Whether an op of the converter belongs to none of the submodules at ``paths``; for its ``op_selector``.

    ``ConfigError`` for a submodule that the converter's scopes do not tell from another: they leave out lists of modules, so that
    ``left.0`` and ``right.0`` are both ``0``.
    """
    kinds = {path: str(getattr(module, "original_name", "")) for path, module in traced.named_modules()}
    scopes = {path: scope_of(path, kinds) for path in kinds if path and kinds[path] not in _NEVER_CALLED}
    chosen = []
    for path in paths:
        others = [other for other, scope in scopes.items() if other != path and scope == scopes.get(path)]
        if path not in scopes or others:
            known = f"the converter cannot tell it from {', '.join(others)}" if others else "it is never called"
            raise ConfigError(f"compute_dtype of {path!r}: {known}; name a module around it, or give it a name of its own")
        chosen.append(scopes[path])

    def is_outside(op: Any) -> bool:
        names = next((tuple(names) for source, names in op.scopes.items() if source.name == "TORCHSCRIPT_MODULE_NAME"), ())
        return not any(names[: len(scope)] == scope for scope in chosen)

    return is_outside


def scope_of(path: str, kinds: dict[str, str]) -> tuple[str, ...]:
    """The names by which the converter knows the submodule at ``path``; ``kinds`` are the classes of all submodules."""
    parts = path.split(".")
    return tuple(part for place, part in enumerate(parts) if kinds.get(".".join(parts[: place + 1])) not in _NEVER_CALLED)
