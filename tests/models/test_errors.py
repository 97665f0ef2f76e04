"""What an error knows stands in its attributes, wherever it was raised."""

import copy
import pickle
from pathlib import Path

import pytest

from coreflow.models.errors import BundleError, CoreflowError, FileProblem

PROBLEM = FileProblem("packages/00ff/head.mlpackage/weight.bin", "missing", "packages/00ff/head.mlpackage/weight.bin is missing")


def test_an_error_carries_its_path_and_problems() -> None:
    error = BundleError("demo: a file is missing", path="demo", problems=[PROBLEM], expected=("a", "b"))
    assert (str(error), error.path, error.problems, error.expected) == ("demo: a file is missing", Path("demo"), (PROBLEM,), ("a", "b"))


def test_an_error_that_is_about_nothing_in_particular_says_so() -> None:
    error = CoreflowError("so it is")
    assert (str(error), error.path, error.problems, error.expected) == ("so it is", None, (), ())


@pytest.mark.parametrize("over", [copy.copy, lambda error: pickle.loads(pickle.dumps(error))], ids=["copied", "from another process"])
def test_the_attributes_go_along(over: object) -> None:
    assert callable(over)
    error = over(BundleError("gone", path="demo", problems=[PROBLEM], expected=["a"]))
    assert (type(error), str(error), error.path, error.problems, error.expected) == (BundleError, "gone", Path("demo"), (PROBLEM,), ("a",))


@pytest.mark.parametrize(
    ("folder", "inside"),
    [("packages/00ff/head.mlpackage", True), ("packages/00ff/head", False), ("companions", False), (PROBLEM.path, True)],
)
def test_a_problem_lies_in_a_folder_by_whole_names(folder: str, inside: bool) -> None:
    assert PROBLEM.is_in(folder) is inside
