"""Run as a program by test_bundle.py: exports again and again into one folder, each time killed a little later.

Arguments: folder, number of exports, seconds until the latest kill; or folder, "renames": killed before the first rename in the folder,
then before the second, until an export ends. Prints one JSON line per export: whether it was killed
and what the folder holds afterwards. Children are forked before any torch operation has run, so that each starts within
milliseconds of its export and no thread is copied.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from coreflow.export.bundle import export_bundle
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.manifest import read_manifest
from coreflow.export.recipe import Recipe
from coreflow.models.errors import BundleError
from coreflow.models.spec import TensorSpec


def export(folder: Path, seed: int) -> None:
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    recipes = [
        Recipe(
            name=name,
            module=nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64)),
            inputs={"x": TensorSpec((1, 64))},
            outputs=("y",),
        )
        for name in ("first", "second")
    ]
    companions = lambda place: (place / "note.txt").write_text(f"{seed}\n" * 10_000) and None  # noqa: E731
    for _ in export_bundle(recipes, folder, settings={"seed": seed}, write_companions=companions, jobs=1):
        pass


def kill_at_rename(folder: Path, place: int) -> None:
    """Let this process be killed before it renames a file or folder to one in ``folder`` or its own folders for the ``place``-th time."""
    count = 0

    def wrap(rename: Callable[..., None]) -> Callable[..., None]:
        def renaming(source: Path, target: Path) -> None:
            nonlocal count
            if Path(target).parent in (folder, folder / "companions"):
                count += 1
                if count == place:
                    os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        return renaming

    os.rename, os.replace = wrap(os.rename), wrap(os.replace)


def state(folder: Path) -> dict[str, object]:
    """Whose bundle it is, and whether all of it is there."""
    try:
        actual = read_manifest(folder)
        notes = (folder / str(actual.companions) / "note.txt").read_text().splitlines()
    except (BundleError, OSError) as error:
        return {"seed": str(error), "whole": False}
    seed = actual.settings["seed"]
    return {"seed": seed, "whole": set(notes) == {str(seed)} and len(notes) == 10_000}


def run(folder: Path, number: int, kill_after: float | None, kill_at: int | None) -> bool:
    """Export in a process of its own; whether that was killed."""
    child = os.fork()
    if child == 0:
        if kill_at is not None:
            kill_at_rename(folder, kill_at)
        export(folder, number)
        os._exit(0)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main() -> None:
    folder, by_renames = Path(sys.argv[1]), sys.argv[2] == "renames"
    quiet_coremltools()
    count = 100 if by_renames else int(sys.argv[2])
    for number in range(count + 1):  # the first one makes the bundle that must survive
        kill_after = float(sys.argv[3]) * number / count if number and not by_renames else None
        killed = run(folder, number, kill_after, number if number and by_renames else None)
        print(json.dumps({"export": number, "killed": killed, **state(folder)}), flush=True)
        if by_renames and number and not killed:
            break


if __name__ == "__main__":
    main()
