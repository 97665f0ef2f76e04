"""Faults in saved packages of small networks are named by their op: a few of them here, 200 by ``python -m benchmarks.localisation``."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

ROOT = Path(__file__).parents[2]

if TYPE_CHECKING:
    from benchmarks.localisation import Packages


@pytest.fixture(scope="module", autouse=True)
def _importable_benchmarks() -> Iterator[None]:
    """Benchmarks are installed nowhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(ROOT)])
        yield


@pytest.fixture(scope="module")
def packages(_importable_benchmarks: None, tmp_path_factory: pytest.TempPathFactory) -> "Packages":
    from benchmarks.localisation import Packages

    return Packages(tmp_path_factory.mktemp("healthy"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("network", "kind", "number"),
    [
        ("recurrent", "swapped inputs", 0),  # of a concat: the same elements in another order
        ("recurrent", "dropped residual", 0),
        ("recurrent", "bias", 4),  # all zero, as the state of the LSTM is
        ("recurrent", "zeroed row", 4),  # of an LSTM: its first step does not show it
        pytest.param("convolutional", "swapped inputs", 0, marks=pytest.mark.slow),  # of a division by 0: infinite further on
        pytest.param("convolutional", "swapped inputs", 2, marks=pytest.mark.slow),  # of a difference whose square is the same
        pytest.param("convolutional", "dropped residual", 0, marks=pytest.mark.slow),  # a ReLU of what is a ReLU's
        pytest.param("decoder", "dropped residual", 0, marks=pytest.mark.slow),  # the same norm of the same values twice
        pytest.param("decoder", "table", 0, marks=pytest.mark.slow),  # rotary, of a key: resembles no weight
        pytest.param("encoder", "attribute", 4, marks=pytest.mark.slow),  # an epsilon
    ],
)
def test_the_first_culprit_is_the_op_of_the_fault(network: str, kind: str, number: int, packages: "Packages", tmp_path: Path) -> None:
    from benchmarks.localisation import run_mutation

    outcome = run_mutation(packages, network, kind, number, tmp_path)
    assert outcome is not None and (outcome.rank, outcome.has_right_cause) == (1, True), outcome


@pytest.mark.slow
def test_of_forty_faults_the_first_culprit_names_95_in_100(tmp_path: Path) -> None:
    from benchmarks.localisation import TARGETS, run_all, share

    outcomes = list(run_all(tmp_path, 40))
    assert {outcome.network for outcome in outcomes} == {"encoder", "decoder", "convolutional", "recurrent", "state-space"}
    assert all(share(outcomes, most) >= target for most, target in TARGETS.items()), [outcome for outcome in outcomes if outcome.rank != 1]
