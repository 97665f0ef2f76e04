"""How often the report names the op of a fault: 200 faults in small networks of five kinds, by the place of the first right culprit.

A fault is put into the saved package; writes through views are lost by the converter itself. A fault that changes no output is no fault,
and another one is drawn. ``python -m benchmarks.localisation`` writes the table to benchmarks/results/localisation.json, and that of the
faults until then where it is interrupted.
"""

import argparse
import contextlib
import inspect
import os
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.measure import record
from benchmarks.mutations import KINDS, mutations_of
from benchmarks.networks import NETWORKS, Write, network_recipe
from coreflow.export.bundle import build, conversion_of
from coreflow.export.capture.capture import capture
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.targets.mlprogram import convert
from coreflow.runtime import load_model
from coreflow.validate import validate
from coreflow.validate.report.model import Culprit, Report

COUNT, TARGETS = 200, {1: 0.95, 3: 0.99}
LOST_WRITE = "lost write"
_NO_FAULT = 2e-6  # relative change of the outputs: less than this is not to be told from fp32 by any gate
_CAUSES = {
    "translation": ("attribute", "swapped inputs", "dropped residual", LOST_WRITE),
    "weights": ("zeroed 64th", "zeroed row", "bias", "table"),
}


def scale_half(x: Tensor) -> None:
    """A product with a slice."""
    half = x[..., : x.shape[-1] // 2]
    half.mul_(0.5)


def clamp_first(x: Tensor) -> None:
    """Limits for one element of every row."""
    row = x.select(-1, 0)
    row.clamp_(-0.1, 0.1)


def negate_second(x: Tensor) -> None:
    """Another sign for the second half."""
    second = x.chunk(2, -1)[1]
    second.neg_()


def add_to_last(x: Tensor) -> None:
    """A sum with one element of every row."""
    last = x[..., -1]
    last += 0.7


WRITES: tuple[Write, ...] = (scale_half, clamp_first, negate_second, add_to_last)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The report on one fault: the place of the first culprit that is right, from 1; None where there is none."""

    network: str
    kind: str
    text: str
    verdict: str
    cause: str | None
    rank: int | None
    expected: str
    culprits: tuple[str, ...]  # the first three
    seconds: float

    @property
    def has_right_cause(self) -> bool:
        """Whether the verdict is a failure of the kind's cause; a wrong mask may be either."""
        return self.verdict == "fail" and all(self.cause == cause for cause, kinds in _CAUSES.items() if self.kind in kinds)


class Packages:
    """The healthy packages of the networks, converted when they are asked for.

    >>> packages = Packages(Path("packages"))
    >>> recipe, package = packages.of("encoder")
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.of = cache(self._build)

    def _build(self, network: str, write: Write | None = None) -> tuple[Recipe, Path]:
        if write is None:
            recipe = network_recipe(network)
            return recipe, build(recipe, self._folder / network)
        recipe = network_recipe(network, write)  # an export would not lose the write, or say so: a trace does, converted without a proof
        return recipe, convert(conversion_of(capture(recipe)), self._folder / network / f"{write.__name__}.mlpackage")


def run_mutation(packages: Packages, network: str, kind: str, number: int, folder: Path) -> Outcome | None:
    """The outcome of the mutation of this number among those of its kind in a random order; None where there is none, or no effect."""
    recipe, package = packages.of(network)
    random = np.random.default_rng([number, list(KINDS).index(kind), list(NETWORKS).index(network)])
    choices = mutations_of(read_program(package).function()[0], kind, random)
    order = np.random.default_rng(0).permutation(len(choices))
    if number >= len(order):
        return None
    mutation = choices[order[number]]
    mutated = mutation.put_into(package, folder / f"{network}-{kind}-{number}.mlpackage")
    if not _differ(package, mutated, recipe):
        return None
    began = time.perf_counter()
    report = validate(mutated, recipe)
    places = [place for place, culprit in enumerate(report.culprits, 1) if culprit.name in mutation.ops]
    return _outcome(network, kind, mutation.text, report, places, ", ".join(mutation.ops), began)


def run_lost_write(packages: Packages, network: str, write: Write) -> Outcome:
    """The outcome of a write through a view in the middle of a network."""
    recipe, package = packages.of(network, write)
    began = time.perf_counter()
    report = validate(package, recipe)
    lines, first = inspect.getsourcelines(write)
    line = first + len(lines) - 1
    places = [place for place, culprit in enumerate(report.culprits, 1) if _is_at(culprit, line)]
    return _outcome(network, LOST_WRITE, write.__name__, report, places, f"{Path(__file__).name}:{line}", began)


def _is_at(culprit: Culprit, line: int) -> bool:
    return (Path(culprit.file or "").name, culprit.line) == (Path(__file__).name, line)


def _outcome(network: str, kind: str, text: str, report: Report, places: Sequence[int], expected: str, began: float) -> Outcome:
    return Outcome(
        network=network,
        kind=kind,
        text=text,
        verdict=report.verdict,
        cause=report.cause,
        rank=min(places, default=None),
        expected=expected,
        culprits=tuple(f"{culprit.kind} {culprit.name}" for culprit in report.culprits[:3]),
        seconds=time.perf_counter() - began,
    )


def _differ(package: Path, mutated: Path, recipe: Recipe) -> bool:
    """Whether an output of two packages differs for one of two seeds."""
    models = [load_model(path, "lifted", numerics="fp64", engine="interpreter") for path in (package, mutated)]
    for seed in range(2):
        for healthy, changed in zip(*(model.predict(recipe.inputs_for(seed)).values() for model in models), strict=True):
            if not np.linalg.norm(healthy - changed) <= _NO_FAULT * np.linalg.norm(healthy):
                return True
    return False


def run_all(folder: Path, count: int = COUNT) -> Iterator[Outcome]:
    """Outcomes of ``count`` faults, of all kinds in all networks in turn."""
    packages, number, made = Packages(folder / "healthy"), 0, 0
    while made < count and number < count:
        for kind in (*KINDS, LOST_WRITE):
            for network in NETWORKS:
                if made == count or (kind == LOST_WRITE and number >= len(WRITES)):
                    continue
                is_lost_write = kind == LOST_WRITE
                outcome = (
                    run_lost_write(packages, network, WRITES[number])
                    if is_lost_write
                    else run_mutation(packages, network, kind, number, folder)
                )
                if outcome is not None:
                    made += 1
                    yield outcome
        number += 1


def share(outcomes: Sequence[Outcome], most: int) -> float:
    """Share of faults whose op is among the first ``most`` culprits."""
    return sum(outcome.rank is not None and outcome.rank <= most for outcome in outcomes) / len(outcomes)


def main() -> int:
    """Measure, print, and write the results; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=None if sys.stdout.isatty() else 200)
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, contextlib.suppress(KeyboardInterrupt):
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"  # fresh conversions are by the code of today
        for outcome in run_all(Path(folder), options.count):
            outcomes.append(outcome)
            if options.verbose or outcome.rank != 1 or not outcome.has_right_cause:
                console.print(
                    f"{outcome.network} {outcome.kind}: {outcome.text}: {outcome.verdict} {outcome.cause}, rank {outcome.rank}; "
                    f"expected {outcome.expected}, culprits {'; '.join(outcome.culprits)} ({outcome.seconds:.1f} s)",
                    markup=False,
                )
    console.print(_table(outcomes))
    misses = [
        f"top-{most} {share(outcomes, most):.1%}; {limit:.0%} is the target"
        for most, limit in TARGETS.items()
        if share(outcomes, most) < limit
    ]
    for miss in misses:
        console.print(f"missed: {miss}", style="yellow")
    groups = _groups(outcomes)
    record(
        "localisation",
        ("coreflow", "torch", "numpy", "coremltools"),
        faults=len(outcomes),
        groups={name: _figures(group) for name, group in groups.items()},
        not_first=[asdict(outcome) for outcome in outcomes if outcome.rank != 1 or not outcome.has_right_cause],
        missed=misses,
    )
    return 1 if misses else 0


def _groups(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    """All outcomes, those of every kind and those of every network."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        for name in ("all", outcome.kind, outcome.network):
            groups[name].append(outcome)
    return groups


def _figures(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {
        "faults": len(outcomes),
        "fail": sum(outcome.verdict == "fail" for outcome in outcomes),
        "right_cause": sum(outcome.has_right_cause for outcome in outcomes),
        "top_1": share(outcomes, 1),
        "top_3": share(outcomes, 3),
    }


def _table(outcomes: Sequence[Outcome]) -> Table:
    table = Table("", "faults", "fail", "right cause", "top-1", "top-3", title="faults that the report names", title_justify="left")
    for name, group in _groups(outcomes).items():
        figures = _figures(group)
        counts = (str(figures[key]) for key in ("faults", "fail", "right_cause"))
        table.add_row(name, *counts, f"{figures['top_1']:.1%}", f"{figures['top_3']:.1%}")
    return table


if __name__ == "__main__":
    raise SystemExit(main())
