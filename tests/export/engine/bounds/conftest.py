"""One lowering by itself, as the tests of the lifted backend run it."""

from tests.runtime.lift.conftest import evaluate

__all__ = ["evaluate"]
