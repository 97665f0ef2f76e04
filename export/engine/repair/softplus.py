"""Softplus that is right on the engine, where it is 0 above 10.4 (coremltools issue 2687; measured on an M4)."""

from coreflow.export.engine.repair.facts import Facts
from coreflow.export.engine.repair.rewrite import Builder, Uses, argument, number, rewrite
from coreflow.export.package.graph import Graph, Op, Value


def stable_softplus(graph: Graph, facts: Facts) -> Graph:
    """Softplus of numbers that are never positive.

    Given::

        %y = softplus(x=%x)

    Result::

        %y = relu(x=%x) + softplus(x=abs(x=%x) * -1)

    log(1 + exp(-|x|)) would be as right on paper, and in fp16 it loses what exp(-|x|) adds to 1: of softplus(-8), 3e-4, nothing is left.
    """
    uses = Uses(graph)

    def rule(op: Op, new: Builder) -> bool:
        x = argument(op, "x")
        if op.type != "softplus" or x is None or _is_never_positive(x, uses):
            return False
        below = new("mul", x=new("abs", x=x), y=-1.0)
        new("add", x=new("relu", x=x), y=new("softplus", x=below), gives=op.outputs[0])
        return True

    return rewrite(graph, rule)


def _is_never_positive(x: Value, uses: Uses) -> bool:
    product = uses.made_by(x, "mul")
    if product is None:
        return False
    factor = number(product.inputs.get("y"))
    return uses.made_by(argument(product, "x"), "abs") is not None and factor is not None and factor < 0
