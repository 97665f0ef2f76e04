"""Laws of reading and writing by index: any axis, any batch, negative indices up to iOS16, every mode and version."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from coreflow.models.errors import UnsupportedError

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law, RunOp

Arguments = dict[str, Any]


def indices(draw: "Draw", shape: Any, extent: int, *, negative: bool = True) -> Any:
    return draw.ints(*shape, low=-extent if negative else 0, high=extent - 1)


def checked(draw: "Draw") -> tuple[Arguments, bool]:
    """The opset and, since iOS17, whether indices are validated; and whether they may be negative."""
    opset = draw.since("CoreML5")
    validate = draw.one([None, False, True]) if opset >= "CoreML7" else None
    return {"opset": opset, "validate_indices": validate}, opset < "CoreML7"


def gather(draw: "Draw") -> Arguments:
    options, negative = checked(draw)
    x = draw.numbers(*draw.shape(1, 4))
    axis = draw.axis(x.ndim)
    batch = draw.whole(0, axis % x.ndim) if options["opset"] >= "CoreML6" else 0
    shape = [*x.shape[:batch], *draw.shape(0, 5 - x.ndim + (batch > 0))]
    options |= {"batch_dims": batch} if options["opset"] >= "CoreML6" else {}
    return {"x": x, "indices": indices(draw, shape, x.shape[axis], negative=negative), "axis": axis, **options}


def gathered(x: Any, indices: Any, axis: int, batch_dims: int = 0, validate_indices: bool = False) -> Any:
    """One element of the batch after the other."""
    axis = axis % x.ndim
    if batch_dims == 0:
        return np.take(x, indices, axis)
    parts = [gathered(rows, own, axis - 1, batch_dims - 1) for rows, own in zip(x, indices, strict=True)]
    return np.stack(parts)


def gather_along_axis(draw: "Draw") -> Arguments:
    options, negative = checked(draw)
    shape = draw.shape(1, 5)
    axis = draw.axis(len(shape))
    x = draw.numbers(*shape)
    shape[axis] = draw.whole(1, 4)
    return {"x": x, "indices": indices(draw, shape, x.shape[axis], negative=negative), "axis": axis, **options}


def gathered_along_axis(x: Any, indices: Any, axis: int, validate_indices: bool = False) -> Any:
    return np.take_along_axis(x, indices % x.shape[axis], axis)


def gather_nd(draw: "Draw") -> Arguments:
    options, negative = checked(draw)
    x = draw.numbers(*draw.shape(1, 5))
    batch = draw.whole(0, x.ndim - 1) if options["opset"] >= "CoreML6" else 0
    depth = draw.whole(1, x.ndim - batch)
    lead = [*x.shape[:batch], *draw.shape(0 if batch else 1, 2)]
    places = [indices(draw, lead, x.shape[batch + part], negative=negative) for part in range(depth)]
    options |= {"batch_dims": batch} if options["opset"] >= "CoreML6" else {}
    options["validate_indices"] = None  # MIL validates against all axes of x at once
    return {"x": x, "indices": np.stack(places, -1), **options}


def gathered_nd(x: Any, indices: Any, batch_dims: int = 0, validate_indices: bool = False) -> Any:
    lead = indices.shape[:-1]
    rest = x.shape[batch_dims + indices.shape[-1] :]
    result = np.empty((*lead, *rest), x.dtype)
    for place in np.ndindex(*lead):
        result[place] = x[(*place[:batch_dims], *indices[place])]
    return result


FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "update": lambda old, new: new,
    "add": lambda old, new: old + new,
    "sub": lambda old, new: old - new,
    "mul": lambda old, new: old * new,
    "div": lambda old, new: old / new,
    "max": max,
    "min": min,
}


def writing(draw: "Draw", data: Any, updates_shape: Any) -> Arguments:
    """Updates for every mode but ``update``, in which an index that comes twice has no defined result; nothing divides by 0."""
    options = {"opset": draw.since("CoreML5")}
    mode = draw.one([None, *(mode for mode in FOLD if mode != "update")])
    if mode == "div":
        return {"data": draw.floats(*data), "updates": draw.floats(*updates_shape, low=0.5, high=2), "mode": mode, **options}
    make = draw.one((draw.floats, draw.ints))
    return {"data": make(*data), "updates": make(*updates_shape), "mode": mode, **options}


def scatter(draw: "Draw") -> Arguments:
    data = draw.shape(1, 4)
    axis = draw.axis(len(data))
    lead = draw.shape(1, 5 - len(data) + 1)
    place = axis % len(data)
    arguments = writing(draw, data, [*data[:place], *lead, *data[place + 1 :]])
    return {**arguments, "indices": indices(draw, lead, data[axis], negative=arguments["opset"] < "CoreML7"), "axis": axis}


def scattered(data: Any, indices: Any, updates: Any, axis: int = 0, mode: str = "add") -> Any:
    axis = axis % data.ndim
    result = data.astype(np.float64)
    for place in np.ndindex(*updates.shape):
        chosen = indices[place[axis : axis + indices.ndim]]
        at = (*place[:axis], chosen, *place[axis + indices.ndim :])
        result[at] = FOLD[mode](result[at], float(updates[place]))
    return result


def scatter_along_axis(draw: "Draw") -> Arguments:
    data = draw.shape(1, 5)
    axis = draw.axis(len(data))
    shape = list(data)
    shape[axis] = draw.whole(1, 4)
    arguments = writing(draw, data, shape)
    return {**arguments, "indices": indices(draw, shape, data[axis], negative=arguments["opset"] < "CoreML7"), "axis": axis}


def scattered_along_axis(data: Any, indices: Any, updates: Any, axis: int = 0, mode: str = "add") -> Any:
    axis = axis % data.ndim
    result = data.astype(np.float64)
    for place in np.ndindex(*updates.shape):
        at = (*place[:axis], indices[place], *place[axis + 1 :])
        result[at] = FOLD[mode](result[at], float(updates[place]))
    return result


def scatter_nd(draw: "Draw") -> Arguments:
    data = draw.shape(1, 5)
    depth = draw.whole(1, len(data))
    lead = draw.shape(1, 5 - len(data) + depth)[:2]
    arguments = writing(draw, data, [*lead, *data[depth:]])
    places = [indices(draw, lead, data[part], negative=arguments["opset"] < "CoreML7") for part in range(depth)]
    return {**arguments, "indices": np.stack(places, -1)}


def scattered_nd(data: Any, indices: Any, updates: Any, mode: str = "add") -> Any:
    result = data.astype(np.float64)
    lead = indices.ndim - 1
    for place in np.ndindex(*updates.shape):
        at = (*indices[place[:lead]], *place[lead:])
        result[at] = FOLD[mode](result[at], float(updates[place]))
    return result


LAWS: dict[str, tuple[Callable[["Draw"], Arguments], Callable[..., Any]]] = {
    "gather": (gather, gathered),
    "gather_along_axis": (gather_along_axis, gathered_along_axis),
    "gather_nd": (gather_nd, gathered_nd),
    "scatter": (scatter, scattered),
    "scatter_along_axis": (scatter_along_axis, scattered_along_axis),
    "scatter_nd": (scatter_nd, scattered_nd),
}


@pytest.mark.parametrize("op", LAWS)
def test_results_are_those_of_a_loop_in_the_shape_that_mil_infers(law: "Law", op: str) -> None:
    # MIL's own values are wrong for batches (gather, with a negative axis) and modes (scatter_along_axis, always an update).
    law.agrees_with_mil(op, *LAWS[op], values=False)


@pytest.mark.parametrize("op", ["scatter", "scatter_along_axis", "scatter_nd"])
def test_an_update_replaces(law: "Law", op: str) -> None:
    """With indices of which none comes twice."""

    def arguments(draw: "Draw") -> Arguments:
        data = draw.numbers(draw.whole(2, 6), draw.whole(1, 3))
        chosen = np.array(draw.perm(len(data))[: draw.whole(1, len(data))], np.int32)
        updates = draw.floats(len(chosen), data.shape[1]).astype(data.dtype)
        shaped = {
            "scatter": chosen,
            "scatter_along_axis": np.repeat(chosen[:, None], data.shape[1], 1),
            "scatter_nd": chosen[:, None],
        }[op]
        return {"data": data, "indices": shaped, "updates": updates, "mode": "update"}

    law.agrees_with_mil(op, arguments, LAWS[op][1])


OUTSIDE: dict[str, Callable[[Any], Arguments]] = {
    "gather": lambda wrong: {"x": np.zeros((3, 2), np.float32), "indices": wrong, "axis": 0},
    "gather_along_axis": lambda wrong: {"x": np.zeros((3, 1), np.float32), "indices": wrong[:, None], "axis": 0},
    "gather_nd": lambda wrong: {"x": np.zeros((3, 2), np.float32), "indices": wrong[:, None]},
    "scatter": lambda wrong: {"data": np.zeros((3, 2), np.float32), "indices": wrong, "updates": np.ones((2, 2), np.float32)},
    "scatter_along_axis": lambda wrong: {
        "data": np.zeros((3, 1), np.float32), "indices": wrong[:, None], "updates": np.ones((2, 1), np.float32)
    },
    "scatter_nd": lambda wrong: {"data": np.zeros((3, 2), np.float32), "indices": wrong[:, None], "updates": np.ones((2, 2), np.float32)},
    "gather_nd of places": lambda wrong: {"x": np.zeros((2, 3), np.float32), "indices": np.stack((0 * wrong, wrong), -1)},
    "scatter_nd of places": lambda wrong: {
        "data": np.zeros((9, 3), np.float32), "indices": np.stack((0 * wrong + 3, wrong), -1), "updates": np.ones(2, np.float32)
    },
}  # fmt: skip


@pytest.mark.parametrize("case", OUTSIDE)
def test_an_index_outside_the_axis_is_an_error_validated_or_not(law: "Law", run_op: "RunOp", case: str) -> None:
    """Never another element, never memory that is none of the tensor's."""
    op = case.partition(" ")[0]

    def rule(draw: "Draw") -> None:
        wrong = np.array([draw.whole(-3, 2), draw.one([3, 4, -4, -7, 2**31 - 1, -(2**31)])], np.int32)
        options = {"mode": draw.one(list(FOLD))} if op.startswith("scatter") else {}
        for validate in (False, True):
            with pytest.raises(UnsupportedError, match=f"{op} 'op' cannot be executed"):
                run_op(op, {**OUTSIDE[case](wrong[:: draw.one([1, -1])]), **options, "validate_indices": validate}, opset="CoreML8")

    law(rule)


@pytest.mark.parametrize("case", OUTSIDE)
def test_no_index_counts_from_the_end_since_ios17(run_op: "RunOp", case: str) -> None:
    """MIL leaves its result undefined: what is right here would be wrong on a device."""
    op, arguments = case.partition(" ")[0], OUTSIDE[case](np.array([0, -1], np.int32))
    run_op(op, arguments, opset="CoreML6")
    for validate in (False, True):
        with pytest.raises(UnsupportedError, match="index -1 is negative, and since iOS17 none counts from the end"):
            run_op(op, {**arguments, "validate_indices": validate}, opset="CoreML7")
