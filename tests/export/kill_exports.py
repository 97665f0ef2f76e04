"""Run as a program by test_bundle.py: exports again and again into one folder, each time killed a little later.

Arguments: folder, number of exports, seconds until the latest kill. Prints one JSON line per export: whether it was killed
and what the folder holds afterwards. Children are forked before any torch operation has run, so that each starts within
milliseconds of its export and no thread is copied.
"""

import json
import os
import signal
import sys
import time
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


def main() -> None:
    folder, count, latest = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    quiet_coremltools()
    for number in range(count + 1):
        child = os.fork()
        if child == 0:
            export(folder, number)
            os._exit(0)
        if number:  # the first one makes the bundle that must survive
            time.sleep(latest * number / count)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        try:
            actual = read_manifest(folder)
            notes = (folder / str(actual.companions) / "note.txt").read_text().splitlines()
            seed, whole = actual.settings["seed"], set(notes) == {str(actual.settings["seed"])} and len(notes) == 10_000
        except BundleError as error:
            seed, whole = str(error), False
        print(json.dumps({"export": number, "killed": os.WIFSIGNALED(status), "seed": seed, "whole": whole}), flush=True)


if __name__ == "__main__":
    main()
