"""How coreflow export and coreflow repair print what was repaired of a package."""

from collections.abc import Iterator, Mapping
from typing import Any


def repair_lines(entry: Mapping[str, Any] | None) -> Iterator[str]:
    """What was repaired of a package, and what that changes as the engine computes."""
    entry = entry or {}
    for change in entry.get("changes", ()):
        (engine, engine_after), count = change["engine"], len(change["ops"])
        yield f"{change['repair']}: {count} {'op' if count == 1 else 'ops'}, on the engine {engine} before, {engine_after} after"
    if errors := entry.get("errors"):
        before, after = (_largest(errors[when]) for when in ("before", "after"))
        yield f"error by {entry['numerics']} numerics (a published model, not measured): {before} before, {after} after"


def _largest(errors: Mapping[str, float | None]) -> str:
    known = [error for error in errors.values() if error is not None]
    return f"{max(known, default=0):.1e}" if len(known) == len(errors) else "not finite"
