"""Apple's estimate of an op on each back end, in milliseconds, by published tables: what decides the placement, and no forecast of time.

Default rule: time = max(work / peak, bytes / bandwidth). Rated ops: time = work / rate, by rows that depend on the features.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from coreflow.export.engine.features import Features, Tensor
from coreflow.export.engine.targets import BACKENDS, Backend, Row, Target

_GIB, _KIB = 2**30, 2**10
_POOLS = ("avg_pool", "max_pool", "l2_pool")


@dataclass(frozen=True, slots=True)
class Estimate:
    """Milliseconds by back end, and how they came about.

    >>> x = Tensor((1, 64, 32, 32), "float16")
    >>> estimate(Features(type="relu", inputs=(x,), outputs=(x,)), find_targets("M4/macOS27")[0]).ms["ane"]
    0.00262144

    ``others`` are the rows that hold on the other side of a gap in what was seen, where the features lie in one; ``is_borrowed``
    says that the rates are those of another target.
    """

    ms: Mapping[Backend, float]
    others: tuple[Mapping[Backend, float], ...] = ()
    is_borrowed: bool = False


def estimate(features: Features, target: Target) -> Estimate:
    """What Apple's planner charges for an op on each back end, supported there or not."""
    default = _default(features, target)
    rows = target.rows.get(features.type, ())
    if not rows:
        return Estimate(default)
    work = WORK[rows[0].work](features)
    distances = [_distance(row, features, work) for row in rows]
    nearest = min(range(len(rows)), key=distances.__getitem__)
    others = () if distances[nearest] == 0 else tuple(_rated(row, work, default) for row in _alternatives(rows, distances, nearest))
    return Estimate(_rated(rows[nearest], work, default), others, rows[nearest].is_borrowed or features.type in target.borrowed_ops)


def _alternatives(rows: tuple[Row, ...], distances: list[float], nearest: int) -> list[Row]:
    """The rows other than the nearest one between which the features may lie: the second nearest."""
    rest = sorted((index for index in range(len(rows)) if index != nearest and math.isfinite(distances[index])), key=distances.__getitem__)
    return [rows[index] for index in rest[:1]]


def _rated(row: Row, work: float, default: Mapping[Backend, float]) -> Mapping[Backend, float]:
    return {backend: work / row.rates[backend] / 1e6 if backend in row.rates else default[backend] for backend in BACKENDS}


def _default(features: Features, target: Target) -> dict[Backend, float]:
    work = DEFAULT_WORK.get(features.type, _elements)(features)
    area = math.prod(features.kernel) if features.type in _POOLS else 0
    moved = features.bytes + 4 * area
    return {backend: 1e3 * max(work / (target.peak[backend] * 1e9), moved / (target.bandwidth[backend] * _GIB)) for backend in BACKENDS}


def _distance(row: Row, features: Features, work: float) -> float:
    """0 inside the ranges of a row; else how far the features are from them, in powers of e. A yes-or-no feature has no neighbourhood."""
    total = 0.0
    for name, (low, high) in row.where.items():
        value = _CONDITIONS[name](features, work)
        if not low <= value <= high:
            edge = low if value < low else high
            total += math.inf if name in _YES_OR_NO else abs(math.log((1 + value) / (1 + edge)))
    return total


def _weight_bytes(features: Features) -> int:
    return max((tensor.bytes for tensor in features.constants), default=0)


_CONDITIONS: Mapping[str, Callable[[Features, float], float]] = {
    "moves_batch": lambda features, work: float(features.permutation[:1] not in ((), (0,))),
    "unaligned": lambda features, work: float(_last_extent(features) % 16 != 0),
    "intensity": lambda features, work: work / max(features.bytes, 1),
    "out_channels": lambda features, work: float((*_shape(features.outputs), 1, 1)[1]),
    "weight_kib": lambda features, work: _weight_bytes(features) / _KIB,
    "work": lambda features, work: work,
}
_YES_OR_NO = ("moves_batch", "unaligned")


# --- work: operations as the planner counts them, which is not always what an op computes -------------------------------------------


def _elements(features: Features) -> float:
    return 2.0 * features.elements


def _results(features: Features) -> float:
    return float(features.outputs[0].elements) if features.outputs else 0.0


def _permuted(features: Features) -> float:
    shape = _shape(features.inputs)
    return 2.0 * (math.prod(shape) + len(shape))


def _look_up(features: Features) -> float:
    """The whole table counts, not the rows that are picked: table + index + 3."""
    tensors = sorted((*features.inputs, *features.constants), key=lambda tensor: -tensor.elements)[:2]
    return 2.0 * (sum(tensor.elements for tensor in tensors) + 3)


def _shape(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    """The shape of the first of them; a broken program may have none."""
    return tensors[0].shape if tensors else ()


def _last_extent(features: Features) -> int:
    return (1, *_shape(features.inputs))[-1]


def _linear(features: Features) -> float:
    """2 M K^2: the width of the result is ignored."""
    return 2.0 * math.prod(_shape(features.inputs)) * _last_extent(features)


def _input_channels(features: Features) -> int:
    return (*_shape(features.inputs), 1, 1)[1] // max(features.groups, 1)


def _conv(features: Features) -> float:
    """2 C_in / groups x kernel x results / dilations, and one more a result for a bias."""
    terms = 2.0 * _input_channels(features) * math.prod(features.kernel) / math.prod(features.dilations or (1,))
    return (terms + features.has_bias) * _results(features)


def _conv_transpose(features: Features) -> float:
    """2 C_in / groups x kernel x results: the stride is ignored."""
    return 2.0 * _input_channels(features) * math.prod(features.kernel) * _results(features)


def _matmul(features: Features) -> float:
    return 2.0 * _results(features) * features.contraction


def _pool(features: Features) -> float:
    return _results(features) * math.prod(features.kernel)


def _recurrent(features: Features) -> float:
    """A cell's step: H (I + H) + 165 a unit; three or four times that for gates. Seen at one shape, 16 steps of 64 units."""
    steps, hidden = math.prod(_shape(features.inputs)[:2]), (1, *_shape(features.outputs))[-1]
    cells = {"rnn": 1, "gru": 3, "lstm": 4}[features.type]
    return float(steps * hidden * (cells * (hidden * (_last_extent(features) + hidden) + 165) + (features.type == "gru")))


WORK: Mapping[str, Callable[[Features], float]] = {
    "elements": _elements,
    "operands": _elements,
    "results": _results,
    "permuted": _permuted,
    "look_up": _look_up,
    "linear": _linear,
    "conv": _conv,
    "conv_transpose": _conv_transpose,
    "matmul": _matmul,
    "recurrent": _recurrent,
}
DEFAULT_WORK: Mapping[str, Callable[[Features], float]] = {
    "matmul": _matmul,
    **dict.fromkeys(_POOLS, _pool),
    **dict.fromkeys(("rnn", "gru", "lstm"), _recurrent),
}
