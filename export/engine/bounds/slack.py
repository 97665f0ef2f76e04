"""By how much a computed result may differ from the exact function of the numbers that the op read."""

from collections.abc import Mapping
from dataclasses import dataclass, field

# Worst errors of the activation tables of the Neural Engine, relative and absolute: section 1.6 of the published measurements that
# docs/engine.md names (M6 and M1; M5 for those that were swept there alone).
_TABLES: Mapping[str, tuple[float, float]] = {
    "atan": (0.0, 0.12),
    "cos": (0.0, 0.12),
    "elu": (5.1e-3, 1e-3),
    "erf": (0.0, 8.6e-4),
    "exp": (5e-3, 0.0),
    "exp2": (5e-3, 0.0),
    "gelu": (0.0, 6.2e-3),
    "inverse": (7e-3, 0.0),
    "log": (0.0, 6.6e-3),
    "rsqrt": (2e-3, 0.0),
    "scaled_tanh": (1.7e-3, 0.0),
    "sigmoid": (0.0, 3.4e-3),
    "silu": (0.0, 1.5e-2),
    "sin": (0.0, 0.12),
    "softmax": (5e-3, 0.0),
    "softplus": (8e-4, 1e-3),
    "softsign": (8e-4, 1e-3),
    "sqrt": (1e-3, 0.0),
    "tanh": (0.0, 1.7e-3),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """Allowed differences: of a stored result, relative and absolute, of one product in a sum, and of single ops.

    >>> EXACT.of("gelu"), STORED.of("add")
    ((1e-12, 1e-150), (0.0009765625, 5.9604644775390625e-08))
    """

    relative: float
    absolute: float
    product: float
    ops: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def of(self, op: str) -> tuple[float, float]:
        """The relative and the absolute difference of a result of ``op``."""
        relative, absolute = self.ops.get(op, (0.0, 0.0))
        return self.relative + relative, self.absolute + absolute


# The function itself; what float64 loses on the way is far below 1e-12 of the magnitudes that are added up, or an underflow of a square.
EXACT = Slack(relative=1e-12, absolute=1e-150, product=0.0)

# Results in fp16, whichever neighbour is taken (2^-10 of a normal number, 2^-24 below them); sums of products as in fp32 or in the engine's
# accumulator, which rounds a product to a multiple of 2^-16 or drops it, and loses less than 2^-15 of each; activations by its tables.
STORED = Slack(relative=2.0**-10, absolute=2.0**-24, product=2.0**-15, ops=_TABLES)
