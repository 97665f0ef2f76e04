"""Pairs the constants of a saved program with the reference's unrounded weights, by value."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from coreflow.export.package.graph import Graph, Value
from coreflow.models.arrays import Array
from coreflow.validate.pairing.rounding import is_rounding_of, layouts, relative_distance
from coreflow.validate.pairing.stored import Stored, stored_constants
from coreflow.validate.pairing.weights import Weight

_ENDINGS = ("_to_fp16", "_cast_fp16", "_palettized", "_quantized", "_sparsified")  # of names, which conversion and compression append
# A weight of another name is the one that was meant if most elements, or the tensor as a whole, are near.
_NEAR_ELEMENTS = 0.5
_NEAR_DISTANCE = 0.25
_FEW, _MANY = 64, 4096  # elements that are looked at before all of them: to tell weights apart, to find the nearest


@dataclass(frozen=True, slots=True, kw_only=True)
class AlteredWeight:
    """A constant that is no rounding of the weight that it stands for.

    >>> altered = pairing.altered[0]
    >>> f"{altered.differing} of {altered.elements} elements of {altered.weight}, which {altered.op} reads"
    '64 of 4096 elements of layers.0.out.weight, which linear_3 reads'
    """

    constant: str
    op: str  # the first that reads it
    op_type: str
    weight: str  # of the reference
    differing: int  # elements beyond a rounding
    elements: int

    @property
    def text(self) -> str:
        """The finding in words."""
        share = "all" if self.differing == self.elements else f"{self.differing} of {self.elements}"
        return f"{share} elements of its constant {self.constant} are not those of {self.weight}, rounded"


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairing:
    """A program with unrounded weights, and the constants that have none.

    >>> pairing = pair(graph, [*weights_of_graph(fresh), *weights_of_module(module)])
    >>> pairing.share, [altered.weight for altered in pairing.altered], pairing.unknown
    (1.0, [], ())
    """

    graph: Graph
    elements: int  # of all constants that hold several floats
    paired: int  # of these
    altered: tuple[AlteredWeight, ...] = ()
    unknown: tuple[str, ...] = ()  # constants that resemble no weight: folded or computed otherwise than in a fresh conversion

    @property
    def share(self) -> float:
        """Share of the elements that have their unrounded weight."""
        return self.paired / self.elements if self.elements else 1.0

    @property
    def is_complete(self) -> bool:
        """Whether every constant is a weight of the reference, be it altered."""
        return not self.unknown


def pair(graph: Graph, weights: Iterable[Weight]) -> Pairing:
    """``graph`` with the weight of ``weights`` in the place of each constant that was stored for it.

    A constant of one element is an attribute: an epsilon, a factor. It becomes the number that a fresh conversion has for such an argument
    if it is the rounding of that, and stays as it is otherwise; without a fresh conversion nobody knows what it was, unless it is a short
    decimal number. All other floating constants are weights.
    """
    index = _Index(weights)
    replacements: dict[int, Value] = {}
    unpaired: list[Stored] = []
    elements = unpaired_elements = 0
    for stored in stored_constants(graph):
        is_number = stored.numbers.size == 1
        unrounded = index.number(stored) if is_number else index.weight(stored)
        if unrounded is not None:
            replacements[id(stored.value)] = replace(stored.value, data=unrounded, dtype=unrounded.dtype.name)
        elif not (is_number and (index.has_numbers or _is_short(stored.numbers))):
            unpaired.append(stored)
        if not is_number:
            elements += stored.numbers.size
            unpaired_elements += stored.numbers.size if unrounded is None else 0
    nearest = [(stored, index.nearest(stored)) for stored in unpaired]
    return Pairing(
        graph=graph.with_values(replacements),
        elements=elements,
        paired=elements - unpaired_elements,
        altered=tuple(altered for _, altered in nearest if altered is not None),
        unknown=tuple(stored.name for stored, altered in nearest if altered is None),
    )


class _Index:
    """Weights by name and by count of elements; those of one element by the argument that they are."""

    def __init__(self, weights: Iterable[Weight]) -> None:
        self._by_name: dict[str, Weight] = {}
        self._by_count: dict[int, list[Weight]] = {}
        self._numbers: dict[tuple[str, str], list[float]] = {}
        self._parameters: set[str] = set()  # names that the module gives; those of other constants say nothing
        self._used: set[int] = set()  # ids of weights that are paired
        self.has_numbers = False  # whether there are numbers as a conversion wrote them
        for weight in weights:
            if weight.reader is None:
                self._parameters.add(_plain_name(weight.name))
            if weight.values.size == 1:
                self.has_numbers |= weight.reader is not None
                self._numbers.setdefault(weight.reader or ("", ""), []).append(float(weight.values.reshape(-1)[0]))
            elif weight.values.size:
                self._by_name.setdefault(_plain_name(weight.name), weight)
                self._by_count.setdefault(weight.values.size, []).append(weight)

    def number(self, stored: Stored) -> Array | None:
        """The unrounded number of a constant of one element: from the same argument of an op of that type, else from any other."""
        reader, number = (stored.op.type, stored.argument), stored.numbers.reshape(-1)
        elsewhere = [value for other, values in self._numbers.items() if other != reader for value in values]
        for values in (self._numbers.get(reader, []), elsewhere):
            near = [value for value in values if stored.accepts(np.array([value]))[0]]
            if near:
                return np.full(stored.numbers.shape, min(near, key=lambda value: abs(value - float(number[0]))))
        return None

    def weight(self, stored: Stored) -> Array | None:
        """The weight that ``stored`` was stored for, laid out alike; one of the same name first."""
        places = _spread(stored, _FEW)
        for weight in self._candidates(stored):
            for permuted in layouts(weight.values):
                if stored.accepts(_at(permuted, places), places).all():
                    flat = permuted.reshape(-1)
                    if all(block.all() for block in stored.accepts_by_block(flat)):
                        self._used.add(id(weight))
                        return flat.reshape(stored.numbers.shape)
        return None

    def nearest(self, stored: Stored) -> AlteredWeight | None:
        """The unused weight that ``stored`` must have been; None where none is near."""
        namesake = self._by_name.get(_plain_name(stored.name)) if _plain_name(stored.name) in self._parameters else None
        places = _spread(stored, _MANY)
        probed = stored.numbers.reshape(-1)[places]
        best: tuple[float, float] | None = None
        for weight in self._candidates(stored):
            if id(weight) in self._used and weight is not namesake:
                continue
            for permuted in layouts(weight.values):
                values = _at(permuted, places)
                rank = 1 - float(stored.accepts(values, places).mean()), relative_distance(probed, values)
                is_near = weight is namesake or rank[0] <= _NEAR_ELEMENTS or rank[1] <= _NEAR_DISTANCE
                if is_near and (best is None or rank < best):
                    best, nearest, laid_out = rank, weight, permuted
        if best is None:
            return None
        return AlteredWeight(
            constant=stored.name,
            op=stored.op.name,
            op_type=stored.op.type,
            weight=self._parameter(nearest),
            differing=sum(int(np.count_nonzero(~block)) for block in stored.accepts_by_block(laid_out.reshape(-1))),
            elements=stored.numbers.size,
        )

    def _candidates(self, stored: Stored) -> Iterator[Weight]:
        """The weights of as many elements, one of the same name first; for one repeated number, as many weights are, it alone."""
        alike = self._by_count.get(stored.numbers.size, [])
        name = _plain_name(stored.name)
        namesake = self._by_name.get(name)
        namesakes = [weight for weight in alike if weight is namesake]
        if namesakes and name in self._parameters and stored.is_one_number:
            yield from namesakes
        else:
            yield from sorted(alike, key=lambda weight: weight is not namesake)

    def _parameter(self, weight: Weight) -> str:
        """Name of the module's parameter with the values of ``weight``, which may be a constant of a fresh conversion."""
        if weight.reader is None:
            return weight.name
        single, places = weight.values.astype(np.float32).reshape(-1), np.arange(weight.values.size)
        for other in self._by_count[weight.values.size]:
            if other.reader is None and any(is_rounding_of(single, _at(permuted, places)).all() for permuted in layouts(other.values)):
                return other.name
        return weight.name


def _spread(stored: Stored, count: int) -> "np.ndarray[tuple[int], np.dtype[np.intp]]":
    """Places of ``count`` elements at even distances."""
    return np.linspace(0, stored.numbers.size - 1, min(stored.numbers.size, count)).astype(np.intp)


def _at(values: Array, places: "np.ndarray[tuple[int], np.dtype[np.intp]]") -> Array:
    """Elements of ``values`` by their places in a flat copy, which is not made."""
    return values[np.unravel_index(places, values.shape)]


def _is_short(number: Array) -> bool:
    """Whether the shortest decimal that rounds to ``number`` is this very number, as of 0.5 and 64 but not of 0.1."""
    return float(str(number.reshape(-1)[0])) == float(number.reshape(-1)[0])


def _plain_name(name: str) -> str:
    """A name as both conversions have it."""
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name.replace(".", "_")
