"""Laws of ops that make, mark and choose elements."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from tests.runtime.lift.laws.conftest import Draw, Law, RunOp

Arguments = dict[str, Any]


def fill(draw: "Draw") -> Arguments:
    return {"shape": draw.shape(1, 5), "value": draw.one([None, 1.5, np.int32(4), np.bool_(True)])}


def fill_like(draw: "Draw") -> Arguments:
    arguments = fill(draw)
    return {"ref_tensor": draw.anything(*arguments["shape"]), "value": arguments["value"], "opset": draw.since("CoreML6")}


def range_1d(draw: "Draw") -> Arguments:
    step = draw.one([1, 2, 3, -1, -2])
    start, count = draw.whole(-5, 5), draw.whole(1, 6)
    end = start + step * count - draw.whole(0, abs(step) - 1) * (1 if step > 0 else -1)
    if draw.flag():
        return {"start": np.int32(start), "end": np.int32(end), "step": np.int32(step)}
    unit = draw.one([4, 10, 3])  # tenths and thirds are no floats: where a range ends is decided in float32
    return {"start": np.float32(start / unit), "end": np.float32(end / unit), "step": np.float32(step / unit)}


def one_hot(draw: "Draw") -> Arguments:
    """Indices outside mark nothing."""
    shape = draw.shape(0, 4)
    size = draw.whole(1, 4)
    values = draw.one([{}, {"on_value": 2.5, "off_value": -1.0}, {"on_value": np.int32(7), "off_value": np.int32(-2)}])
    axis = draw.one([None, draw.axis(len(shape) + 1)])
    return {"indices": draw.ints(*shape, low=-2, high=size + 1), "one_hot_vector_size": size, "axis": axis, **values}


def marked(indices: Any, one_hot_vector_size: int, axis: int = -1, on_value: Any = 1, off_value: Any = 0) -> Any:
    hot = np.stack([np.where(indices == k, on_value, off_value) for k in range(one_hot_vector_size)], -1)
    return np.moveaxis(hot, -1, axis)


def band_part(draw: "Draw") -> Arguments:
    return {"x": draw.anything(*draw.shape(2, 5)), "lower": draw.one([None, -1, 0, 1, 2]), "upper": draw.one([None, -1, 0, 1, 2])}


def reshape_like(draw: "Draw") -> Arguments:
    """Two references, of each the axes from one place to another."""
    shapes, begins, ends, masks = [draw.shape(2, 4), draw.shape(2, 3)], [], [], []
    extents: list[int] = []
    for shape in shapes:
        begin, is_open = draw.whole(0, len(shape) - 1), draw.flag()
        end = draw.whole(begin + 1, len(shape))
        extents += shape[begin : None if is_open else end]
        begins.append(np.array(begin, np.int32))
        ends.append(np.array(end, np.int32))
        masks.append(np.array(is_open))
    x = draw.distinct(*reversed(extents))
    references = [draw.floats(*shape) for shape in shapes]
    return {"x": x, "ref_tensors": references, "begins": begins, "ends": ends, "end_masks": masks, "opset": draw.since("CoreML6")}


def in_the_shape_of(x: Any, ref_tensors: Any, begins: Any, ends: Any, end_masks: Any) -> Any:
    parts = zip(ref_tensors, begins, ends, end_masks, strict=True)
    return x.reshape([extent for r, begin, end, is_open in parts for extent in r.shape[begin : r.ndim if is_open else end]])


def suppression(draw: "Draw") -> Arguments:
    n, B, K = draw.whole(1, 2), draw.whole(1, 7), draw.whole(1, 3)
    boxes = np.concatenate((draw.floats(n, B, 2, low=0, high=4), draw.floats(n, B, 2, low=1, high=4)), -1)
    options = {"max_boxes": draw.whole(1, 5), "per_class_suppression": draw.one([None, False, True])}
    return {"boxes": boxes, "scores": draw.floats(n, B, K, low=0, high=1), "iou_threshold": draw.one([0.2, 0.5]), **options}


def suppression_ios15(draw: "Draw") -> Arguments:
    return {**suppression(draw), "score_threshold": draw.one([0.0, 0.4, 0.9]), "opset": draw.one(["CoreML5", "CoreML6"])}


def suppression_ios17(draw: "Draw") -> Arguments:
    arguments = suppression(draw)
    turned = {name: arguments[name].transpose(0, 2, 1).copy() for name in ("boxes", "scores")}
    return {**arguments, **turned, "opset": draw.since("CoreML7")}


def overlap(a: Any, b: Any) -> float:
    """Intersection over union of two boxes (centre x, centre y, width, height)."""
    sides = [max(0.0, min(a[i] + a[i + 2] / 2, b[i] + b[i + 2] / 2) - max(a[i] - a[i + 2] / 2, b[i] - b[i + 2] / 2)) for i in (0, 1)]
    shared = sides[0] * sides[1]
    return float(shared / (a[2] * a[3] + b[2] * b[3] - shared))


def survivors(
    boxes: Any, scores: Any, iou_threshold: float, max_boxes: int, score_threshold: float = -np.inf, per_class_suppression: bool = False
) -> tuple[Any, ...]:
    """The best box that is left, until none is; then what it overlaps is gone, too. The very best is never gone."""
    n, _, K = scores.shape
    kept, kept_scores = np.zeros((n, max_boxes, 4)), np.zeros((n, max_boxes, K))
    numbers, counts = np.full((n, max_boxes), -1), np.zeros(n, int)
    for image in range(n):
        best, kind = scores[image].max(-1), scores[image].argmax(-1)
        left = [b for b in range(len(best)) if best[b] >= score_threshold] or [int(best.argmax())]
        while left and counts[image] < max_boxes:
            chosen = max(left, key=lambda b: best[b])
            place = image, counts[image]
            kept[place], kept_scores[place], numbers[place] = boxes[image, chosen], scores[image, chosen], chosen
            counts[image] += 1
            rivals = [b for b in left if not per_class_suppression or kind[b] == kind[chosen]]
            gone = {b for b in rivals if overlap(boxes[image, b], boxes[image, chosen]) > iou_threshold} | {chosen}
            left = [b for b in left if b not in gone]
    return kept, kept_scores, numbers, counts


def survivors_ios17(boxes: Any, scores: Any, **options: Any) -> tuple[Any, ...]:
    kept, kept_scores, numbers, _ = survivors(boxes.transpose(0, 2, 1), scores.transpose(0, 2, 1), **options)
    return kept.transpose(0, 2, 1), kept_scores.transpose(0, 2, 1), numbers


def drawn(**parameters: Any) -> Callable[["Draw"], Arguments]:
    """A seed, so that what is drawn twice is the same."""
    return lambda draw: {"shape": draw.shape(1, 5), **draw.one([{}, parameters]), "seed": draw.whole(0, 9)}


def categorical(draw: "Draw") -> Arguments:
    x = draw.floats(*draw.shape(1, 3), low=0.1, high=1)
    return {"x": x, "mode": draw.one([None, "logits", "probs"]), "size": draw.whole(1, 4), "seed": draw.whole(0, 9)}


LAWS: dict[str, tuple[Callable[["Draw"], Arguments], Callable[..., Any] | None]] = {
    "fill": (fill, None),
    "fill_like": (fill_like, None),
    "range_1d": (range_1d, None),
    "one_hot": (one_hot, marked),
    "band_part": (band_part, None),
    "non_zero": (lambda draw: {"x": draw.anything(*draw.shape(1, 5))}, None),
    "shape": (lambda draw: {"x": draw.anything(*draw.shape(1, 5))}, None),
    "reshape_like": (reshape_like, in_the_shape_of),
    "non_maximum_suppression": (suppression_ios15, survivors),
    "non_maximum_suppression since iOS17": (suppression_ios17, survivors_ios17),
    "random_normal": (drawn(mean=1.0, stddev=2.0), None),
    "random_uniform": (drawn(low=-1.0, high=2.0), None),
    "random_bernoulli": (drawn(prob=0.25), None),
    "random_categorical": (categorical, None),
}


@pytest.mark.parametrize("case", LAWS)
def test_results_are_those_that_mil_infers(law: "Law", case: str) -> None:
    law.agrees_with_mil(case.partition(" ")[0], *LAWS[case])


def test_draws_stay_within_their_distribution(law: "Law", run_op: "RunOp") -> None:
    def rule(draw: "Draw") -> None:
        shape, seed = draw.shape(1, 4), draw.whole(0, 99)
        (uniform,) = run_op("random_uniform", {"shape": shape, "low": -1.0, "high": 2.0, "seed": seed}, opset="CoreML5")
        (coins,) = run_op("random_bernoulli", {"shape": shape, "prob": draw.one([0.0, 0.5, 1.0]), "seed": seed}, opset="CoreML5")
        assert ((uniform >= -1) & (uniform < 2)).all() and set(np.unique(coins)) <= {0.0, 1.0}
        classes = draw.whole(1, 5)
        x = draw.floats(2, classes, low=0.1, high=1)
        (chosen,) = run_op("random_categorical", {"x": x, "size": 7, "seed": seed}, opset="CoreML5")
        assert chosen.shape == (2, 7) and set(np.unique(chosen)) <= set(range(classes))

    law(rule)
