"""The front end that captures a module: the trace, or ``torch.export`` where a trace cannot follow it or would lose a write."""

import contextlib
import math
from typing import Any

from coreflow.export.capture.capture import Captured, FrontEndError, capture, capture_by_export
from coreflow.export.recipe import Recipe
from coreflow.models.errors import ExportError

_REPLAYS = 2  # of a trace that froze no value and computes no index; each costs two runs of the module, and the proof makes more


def capture_best(recipe: Recipe) -> Captured:
    """``recipe`` by a trace, or by ``torch.export`` where the trace gives up, or loses writes that are made through views.

    >>> capture_best(recipe).front_end
    'trace'

    A ``nn.GRU`` of one step would be a loop by the trace, and is its few operations by ``torch.export``. That makes a new value of every
    write as well, but drops other things (``decompositions``): what it gives is proven after it has
    been converted. The ``ExportError`` of a module that neither can follow is that of the trace. A recipe that names a front end gets that.
    Weights without a value are refused.
    """
    for part in recipe.parts:
        _check_weights(part)
    if recipe.front_end != "auto":
        return capture(recipe, replays=_REPLAYS) if recipe.front_end == "trace" else _by_export(recipe)
    try:
        traced = capture(recipe, replays=_REPLAYS)
    except FrontEndError as error:
        with contextlib.suppress(ExportError):
            return _by_export(recipe)
        raise error
    if traced.lost_writes or _has_gru_of_one_step(traced):
        with contextlib.suppress(ExportError):
            return _by_export(recipe)
    return traced


def capture_by_other(captured: Captured) -> Captured:
    """The module of ``captured`` by the other front end."""
    return capture(captured.recipe, replays=_REPLAYS) if captured.front_end == "export" else _by_export(captured.recipe)


def advice_on_writes(captured: Captured) -> str:
    """What to write in place of writes that the converter loses, with their lines; empty where there are none."""
    if not captured.lost_writes:
        return ""
    places = ", ".join(dict.fromkeys(str(place) for place in captured.lost_writes if place is not None))
    where = f" at {places}" if places else ""
    return f"; forward writes through a view{where}, which is lost: assign to the tensor (y[:, 3] = y[:, 3] + 1)"


def _check_weights(recipe: Recipe) -> None:
    """Every tensor is in memory and no number is NaN; what is trained is finite, and a mask, a buffer or frozen, may be infinite."""
    for name, tensor in (*recipe.module.named_parameters(), *recipe.module.named_buffers()):
        if tensor.device.type != "cpu":
            raise ExportError(f"{recipe.name}: {name} is on the device {tensor.device}; load weights and call module.cpu() first")
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        least, greatest = (float(end) for end in tensor.detach().aminmax())  # NaN where there is one
        if math.isnan(least) or (tensor.requires_grad and math.inf in (-least, greatest)):
            raise ExportError(f"{recipe.name}: {name} holds {'NaN' if math.isnan(least) else 'infinity'}; weights are finite numbers")


def _has_gru_of_one_step(traced: Captured) -> bool:
    graph: Any = traced.program.inlined_graph  # type: ignore[union-attr]  # a variable, since its nodes do not keep it alive
    for node in graph.findAllNodes("aten::gru"):
        x, *_, is_batch_first = node.inputs()
        extents = x.type().sizes()
        if extents and extents[1 if is_batch_first.toIValue() else 0] == 1:
            return True
    return False


def _by_export(recipe: Recipe) -> Captured:
    if recipe.functions:
        raise FrontEndError(f"{recipe.name}: several functions are captured by traces")
    return capture_by_export(recipe)
