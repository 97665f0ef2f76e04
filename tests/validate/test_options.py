"""Time that is seen and chosen: the phases of a validation, a quick look, a number of seeds."""

import itertools
from pathlib import Path
from typing import Any

import pytest

from coreflow.export.package.mlpackage import read_program
from coreflow.models.errors import ConfigError
from coreflow.validate import validate
from coreflow.validate.options import Options, Phase
from coreflow.validate.package import validate_package


def test_a_quick_look_says_what_it_leaves_out(converted: Any) -> None:
    report = validate(converted.package, converted.recipe(), backend="lifted", quick=True)
    assert report.verdict == "pass" and report.samples.seeds == (0, 1) and not report.ops
    (note,) = (note for note in report.notes if "seeds were drawn" in note)
    assert note.startswith("2 of 8 seeds were drawn and no op was looked at")


def test_a_failure_of_a_quick_look_has_the_cause_of_a_whole_one(converted: Any, tmp_path: Path) -> None:
    def fault(weights: dict[str, Any]) -> None:
        weights["layers.1.contract.weight"][:, :16] = 0

    package = converted.with_fault(tmp_path / "network.mlpackage", fault)
    quick, whole = (validate(package, converted.recipe(), backend="lifted", quick=quick) for quick in (True, False))
    assert (quick.verdict, quick.cause) == (whole.verdict, whole.cause) == ("fail", "weights")


@pytest.mark.parametrize(("seeds", "quick"), [(3, False), (3, True), (9, False)])
def test_as_many_seeds_are_drawn_as_are_asked_for(converted: Any, seeds: int, quick: bool) -> None:
    report = validate(converted.package, converted.recipe(), backend="lifted", seeds=seeds, quick=quick)
    assert report.verdict == "pass" and report.samples.seeds == tuple(range(seeds)) and bool(report.ops) != quick
    assert any(note.startswith("3 of 8 seeds were drawn") for note in report.notes) == (seeds == 3)


def test_a_whole_validation_leaves_nothing_out() -> None:
    assert (Options().omissions, Options().first_seeds, Options(seeds=8).omissions) == ("", 8, "")
    with pytest.raises(ConfigError, match="0 seeds; at least 1 is right"):
        Options(seeds=0)


def test_phases_of_a_package_are_announced_in_order_with_growing_shares(converted: Any) -> None:
    phases: list[Phase] = []
    report = validate_package(
        read_program(converted.package), converted.recipe(), [], Options(backend="lifted", seeds=4, progress=phases.append)
    )
    assert report.verdict == "pass"
    assert [name for name, _ in itertools.groupby(phase.name for phase in phases)] == [
        "opening", "converting anew", "saved program", "reference", "fresh conversion", "unrounded program", "gates", "ops",
    ]  # fmt: skip
    shares = [phase.share for phase in phases]
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] < 1 and len(set(shares)) > 12
    assert {phase.part for phase in phases} == {"network"}


def test_shares_of_a_part_are_those_of_the_whole() -> None:
    phases: list[Phase] = []
    whole = Options(progress=phases.append)
    for place in range(4):
        whole.as_part(place, 4).announce("part", "opening")
    whole.as_part(3, 4).announce("cascade", "chain", 1.0)
    assert [phase.share for phase in phases] == [0, 0.25, 0.5, 0.75, 1]
