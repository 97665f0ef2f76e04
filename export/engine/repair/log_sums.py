"""Logarithms of sums of powers, with the largest power taken out first."""

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, Uses, argument, integers, known_shape, number, rewrite
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.models import fp16

_NOT_A_NUMBER_OF_ITS_OWN = fp16.SMALLEST_SUBNORMAL  # the converter writes it where 1e-45, log's own epsilon, would be 0 in fp16


def stable_log_sums(graph: Graph, facts: Facts) -> Graph:
    """The logarithm of a softmax, and of a sum of powers, without numbers that fp16 has none for.

    Given::

        %y = log(x=softmax(x=%x, axis=-1))

    Result::

        %less = %x - reduce_max(x=%x, axes=[-1], keep_dims=True)
        %y = %less - log(x=reduce_sum(x=exp(x=%less), axes=[-1], keep_dims=True))

    A probability below 6e-8 is 0 in fp16 and its logarithm is lost (coremltools issue 2728). ``reduce_log_sum_exp``, which takes no maximum
    out on the engine (coremltools pull request 2726), becomes the maximum and the same logarithm.
    """
    uses = Uses(graph)

    def rule(op: Op, new: Builder) -> bool:
        if op.type == "log" and (softmax := uses.made_by(argument(op, "x"), "softmax")) is not None:
            return _log_softmax(op, softmax, new)
        return op.type == "reduce_log_sum_exp" and _log_sum(op, new)

    return rewrite(graph, rule)


def _log_softmax(op: Op, softmax: Op, new: Builder) -> bool:
    x, epsilon = argument(softmax, "x"), number(op.inputs.get("epsilon"))
    if x is None or (epsilon is not None and epsilon > _NOT_A_NUMBER_OF_ITS_OWN):
        return False
    axis = number(softmax.inputs.get("axis"))
    less, log = _parts(x, (-1 if axis is None else int(axis),), new)[1:]
    new("sub", x=less, y=log, gives=op.outputs[0])
    return True


def _log_sum(op: Op, new: Builder) -> bool:
    x = argument(op, "x")
    shape = known_shape(x)
    if x is None or shape is None:
        return False
    axes = integers(op.inputs.get("axes")) or tuple(range(len(shape)))
    largest, _, log = _parts(x, axes, new)
    if number(op.inputs.get("keep_dims")):
        new("add", x=largest, y=log, gives=op.outputs[0])
    else:
        total = new("add", x=largest, y=log)
        new("squeeze", x=total, axes=axes, gives=op.outputs[0])
    return True


def _parts(x: Value, axes: tuple[int, ...], new: Builder) -> tuple[Value, Value, Value]:
    """The largest of x along ``axes``, x less it, and the logarithm of the sum of the powers of that."""
    reduced = None if x.shape is None else tuple(1 if i in {a % len(x.shape) for a in axes} else extent for i, extent in enumerate(x.shape))
    largest = new("reduce_max", x=x, axes=axes, keep_dims=True, shape=reduced)
    less = new("sub", x=x, y=largest)
    total = new("reduce_sum", x=new("exp", x=less), axes=axes, keep_dims=True, shape=reduced)
    return largest, less, new("log", x=total)
