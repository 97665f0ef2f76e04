"""The list of exceptions and the sample are what they claim to be."""

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conformance.conftest import Operators


@pytest.fixture
def operators(request: pytest.FixtureRequest) -> "Operators":
    """The plugin, if all operator tests were collected in this run."""
    plugin: Operators | None = request.config.pluginmanager.get_plugin("apple-operators")
    assert plugin is not None
    if len(plugin.cases) < 10_000:
        pytest.skip("needs the collected operator tests: run the whole folder")
    return plugin


def test_every_exception_names_a_case(operators: "Operators") -> None:
    unused = [entry.cases.pattern for entry in operators.exceptions if not any(map(entry.cases.fullmatch, operators.cases))]
    assert not unused


def test_the_sample_is_large_and_has_some_of_every_test_function(operators: "Operators") -> None:
    function = lambda case: case.partition("[")[0]  # noqa: E731
    assert set(map(function, operators.sampled)) == set(map(function, operators.cases))
    assert len(operators.sampled) >= 1500
