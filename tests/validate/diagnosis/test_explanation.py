"""The order of culprits."""

import math
from typing import Literal

import pytest

from coreflow.validate.diagnosis.explanation import Faults, rank_culprits
from coreflow.validate.report.model import Cause, Culprit

Kind = Literal["translation", "constant", "non-finite", "rounding"]


def culprit(kind: Kind, name: str, ratio: float = 4.0) -> Culprit:
    return Culprit(kind=kind, name=name, type="mul", ratio=ratio, text="", origin=None)


OP_CULPRITS = (culprit("rounding", "rounds"), culprit("non-finite", "overflows"))
FAULTS = Faults(
    translation=(culprit("translation", "departs"),),
    constants=(culprit("constant", "epsilon"), culprit("constant", "mask", math.inf)),
)


@pytest.mark.parametrize(
    ("cause", "names"),
    [
        ("translation", ["departs", "epsilon", "rounds", "overflows"]),
        ("weights", ["epsilon", "departs", "rounds", "overflows"]),
        ("non-finite", ["overflows", "epsilon", "mask", "departs", "rounds"]),
        (None, ["epsilon", "departs", "rounds", "overflows"]),
    ],
)
def test_culprits_of_the_cause_come_first_and_infinite_ones_explain_no_finite_error(cause: Cause | None, names: list[str]) -> None:
    assert [culprit.name for culprit in rank_culprits(cause, FAULTS, OP_CULPRITS)] == names
