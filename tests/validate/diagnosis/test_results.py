"""Results of one program among those of another."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from coreflow.export.package.graph import Op, Value
from coreflow.validate.diagnosis.results import Execution, Likeness, Numbers, find_likenesses

X = torch.linspace(-1, 2, 24, dtype=torch.float64)


def execution(*results: tuple[str, Tensor], inputs: Sequence[Tensor] = ()) -> Execution:
    """The execution of ops of these types with these results."""
    ops = tuple(Op(kind, f"{kind}_{place}", {}, (Value(f"{kind}_{place}", "float32", None),)) for place, (kind, _) in enumerate(results))
    return Execution(inputs=tuple(map(Numbers.of, inputs)), ops=ops, results=tuple((Numbers.of(result),) for _, result in results))


def likenesses(saved: Execution, fresh: Execution, tolerance: float = 1e-7) -> tuple[Likeness, ...]:
    return find_likenesses(saved, fresh, [tolerance] * len(saved.ops))


@pytest.mark.parametrize(
    ("result", "likeness"),
    [
        (X, "same"),
        (X.reshape(2, 12), "same"),
        (X * (1 + 1e-9), "same"),
        (X * (1 + 1e-4), "unknown"),
        (X.roll(12), "reordered"),
        (X.reshape(4, 6).T, "reordered"),
        (X[:12], "unknown"),
        (-X, "unknown"),
        (X / 0, "unknown"),
    ],
)
def test_a_result_is_the_same_number_for_number(result: Tensor, likeness: Likeness) -> None:
    assert likenesses(execution(("add", result)), execution(("mul", X * 2), ("add", X))) == (likeness,)


def test_a_result_is_there_as_often_as_the_other_program_computes_it() -> None:
    once, twice = execution(("relu", X)), execution(("relu", X), ("relu", X))
    assert likenesses(twice, once) == ("same", "repeated")
    assert likenesses(twice, twice) == ("same", "same")


def test_other_shapes_of_the_same_elements_are_free() -> None:
    saved = execution(("cast", X), ("relu", X * 2), ("reshape", X * 2), ("squeeze", X * 2), ("read_state", X))
    assert likenesses(saved, execution(("relu", X * 2), inputs=[X])) == ("same",) * 5
    assert likenesses(execution(("relu", X)), execution(("reshape", X), inputs=[X])) == ("repeated",), "nothing computes it"


def test_an_op_is_as_the_worst_of_its_results() -> None:
    split = Op("split", "split", {}, (Value("a", "float32", None), Value("b", "float32", None)))
    saved = Execution(inputs=(), ops=(split,), results=((Numbers.of(X), Numbers.of(X + 1)),))
    assert likenesses(saved, execution(("add", X))) == ("unknown",)
    assert likenesses(saved, execution(("add", X), ("add", X + 1))) == ("same",)


def test_nothing_is_known_of_a_program_that_was_not_run() -> None:
    assert likenesses(execution(("add", X), ("mul", X)), execution()) == ("unknown", "unknown")
    assert find_likenesses(Execution(inputs=(), ops=execution(("make_list", X)).ops, results=((),)), execution(), [0.0]) == ("same",)


def test_tolerances_are_by_op() -> None:
    near = torch.from_numpy(np.asarray(X) * (1 + 1e-4))
    saved, fresh = execution(("add", near), ("mul", near * 2)), execution(("add", X), ("mul", X * 2))
    assert find_likenesses(saved, fresh, [1e-3, 1e-7]) == ("same", "unknown")
