"""Laws of lowerings: random arguments, one op run in every way, and MIL's own inference for it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Feature, Graph, Interface, Op, Value
from coreflow.runtime.backend import NumericsName
from coreflow.runtime.lift.engines.interpreter import Interpreter
from coreflow.runtime.lift.engines.module import LiftedModule
from coreflow.runtime.lift.numerics.named import numerics_named

Arguments = dict[str, Any]
OPSETS = ("CoreML5", "CoreML6", "CoreML7", "CoreML8")
FEW, MANY = 10, 100


class Draw:
    """Random arguments for one example. An array's elements come from a seed: what matters here are shapes and options."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self._rng = np.random.default_rng(data.draw(st.integers(0, 2**16), label="seed"))

    def one(self, choices: Sequence[Any]) -> Any:
        return self._data.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        return bool(self._data.draw(st.booleans()))

    def whole(self, low: int, high: int) -> int:
        return int(self._data.draw(st.integers(low, high)))

    def wholes(self, count: int, low: int, high: int) -> list[int]:
        return [self.whole(low, high) for _ in range(count)]

    def since(self, opset: str) -> str:
        """An opset from this one on."""
        return str(self.one(OPSETS[OPSETS.index(opset) :]))

    def shape(self, low: int = 1, high: int = 5, *, least: int = 1, most: int = 4) -> list[int]:
        """Extents of ``low`` to ``high`` axes."""
        return self.wholes(self.whole(low, high), least, most)

    def axis(self, rank: int) -> int:
        return self.whole(-rank, rank - 1)

    def axes(self, rank: int, least: int = 1) -> list[int]:
        """Some axes, in any order, counted from either end."""
        chosen = self._data.draw(st.lists(st.integers(0, rank - 1), min_size=least, max_size=rank, unique=True))
        return [axis - rank if self.flag() else axis for axis in chosen]

    def perm(self, rank: int) -> list[int]:
        return list(self._data.draw(st.permutations(range(rank))))

    def floats(self, *shape: int, low: float | None = None, high: float | None = None) -> Any:
        """Normal numbers, or small whole ones (ties, zeros); within limits, evenly spread ones."""
        if low is not None and high is not None:
            return self._rng.uniform(low, high, shape).astype(np.float32)
        if self.flag():
            return self._rng.normal(size=shape).astype(np.float32)
        return self._rng.integers(-3, 4, shape).astype(np.float32)

    def distinct(self, *shape: int) -> Any:
        """Numbers of which no two are the same, on both sides of 0."""
        count = int(np.prod(shape))
        return self._rng.permutation(count).reshape(shape).astype(self.one((np.float32, np.int32))) - count // 3

    def ints(self, *shape: int, low: int = -5, high: int = 5, dtype: Any = np.int32) -> Any:
        return self._rng.integers(low, high, shape, endpoint=True).astype(dtype)

    def bools(self, *shape: int) -> Any:
        return self._rng.integers(0, 2, shape).astype(bool)

    def numbers(self, *shape: int) -> Any:
        """Floats or whole numbers."""
        return self.floats(*shape) if self.flag() else self.ints(*shape)

    def anything(self, *shape: int) -> Any:
        """Elements of any type."""
        return self.one((self.floats, self.ints, self.bools))(*shape)

    def broadcastable(self, count: int) -> list[list[int]]:
        """Shapes that go together: of any rank up to 5, with any axes of extent 1 or missing."""
        whole = self.shape(0, 5)
        shapes = []
        for _ in range(count):
            own = [1 if self.whole(0, 3) == 0 else extent for extent in whole]
            shapes.append(own[self.whole(0, len(own)) :] if self.flag() else own)
        return shapes


@dataclass(frozen=True)
class Declared:
    """What MIL infers of one result: an open extent is None; ``value`` is None where MIL does not compute."""

    shape: tuple[int | None, ...]
    kind: str  # f, i or b
    value: Any


def infer(op: str, arguments: Arguments, opset: str, *, values: bool = True) -> tuple[Declared, ...]:
    """MIL's type inference; and its value inference for constant arguments, unless the first of them is to be an input."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, Function, types

    target = dict(zip(OPSETS, (ct.target.iOS15, ct.target.iOS16, ct.target.iOS17, ct.target.iOS18), strict=True))[opset]
    inputs = {}
    if not values:
        name, first = next((name, data) for name, data in arguments.items() if isinstance(data, np.ndarray))
        inputs[name] = Builder.placeholder(first.shape, types.numpy_type_to_builtin_type(first.dtype))
    with Function(inputs, opset_version=target) as function, np.errstate(all="ignore"):
        actual = getattr(Builder, op)(**{**arguments, **function.inputs})
    parts = actual if isinstance(actual, tuple | list) else (actual,)
    return tuple(
        Declared(
            tuple(int(extent) if isinstance(extent, int | np.integer | np.floating) else None for extent in part.shape),
            np.dtype(types.nptype_from_builtin(part.dtype)).kind.replace("u", "i"),
            part.val,
        )
        for part in parts
    )


def _value(name: str, data: Any, *, constant: bool) -> Value:
    if isinstance(data, str):
        return Value("", "string", (), data=data)
    array = _array(data)
    return Value(name, array.dtype.name, array.shape, data=array if constant else None)


def _array(data: Any) -> Any:
    array = np.asarray(data)
    if isinstance(data, np.ndarray | np.generic):
        return array
    return array.astype({"i": np.int32, "f": np.float32}.get(array.dtype.kind, array.dtype))


How = Literal["constants", "computed", "module", "observed"]
HOW: tuple[How, ...] = get_args(How)[1:3]
# What is summed in another order where only x is computed.
PRODUCTS = ("linear", "matmul", "conv")


def run(
    op: str,
    arguments: Arguments,
    *,
    opset: str,
    results: int = 1,
    numerics: NumericsName = "fp64",
    declared: str = "float32",
    how: How = "constants",
) -> tuple[Any, ...]:
    """The results of one op as the interpreter gives them.

    ``computed``: arrays come in as a program's inputs and not as its constants. ``observed``: so too, with an observer.
    ``module``: constants that are a module's parameters.
    """
    chosen = numerics_named(numerics)
    given: dict[str, torch.Tensor] = {}
    values: dict[str, Any] = {}
    inputs: list[Value] = []

    def value_of(name: str, data: Any) -> Value:
        constant = how not in ("computed", "observed") or not isinstance(data, np.ndarray | list)
        value = _value(name, data, constant=constant)
        if not constant:
            tensor = torch.from_numpy(_array(data).copy())
            given[name] = tensor.to(chosen.dtype) if tensor.is_floating_point() else tensor if tensor.dtype == torch.bool else tensor.int()
            inputs.append(value)
        return value

    for name, data in arguments.items():
        several = isinstance(data, list) and len(data) > 0 and isinstance(data[0], np.ndarray)
        values[name] = tuple(value_of(f"{name}{i}", part) for i, part in enumerate(data)) if several else value_of(name, data)
    outputs = tuple(Value(f"y{i}", declared, None) for i in range(results))
    graph = Graph("main", opset, tuple(inputs), outputs, (Op(op, "op", values, outputs),), ())
    if how != "module":
        observe = (lambda op, results: None) if how == "observed" else None
        return tuple(value.numpy() for value in Interpreter(graph, chosen).run(given, observe).values())
    interface = Interface(inputs=(), outputs=tuple(Feature(value.name, "array") for value in outputs), states=())
    # Frozen, as the engine has it: for a mask that wants a gradient torch takes another kernel of attention.
    module = LiftedModule(graph, interface, chosen).requires_grad_(False)
    with torch.inference_mode():
        return tuple(value.numpy() for value in module())


def _as_fp16(data: Any) -> Any:
    """The same arguments with every float32 array in fp16."""
    if isinstance(data, dict):
        return {name: _as_fp16(item) for name, item in data.items()}
    if isinstance(data, list) and data and isinstance(data[0], np.ndarray):
        return [_as_fp16(item) for item in data]
    return data.astype(np.float16) if isinstance(data, np.ndarray | np.generic) and data.dtype == np.float32 else data


class Law:
    """Tries a rule on random examples."""

    def __init__(self, examples: int) -> None:
        self._examples = examples

    def __call__(self, rule: Callable[[Draw], None]) -> None:
        """``rule`` draws its example and asserts."""

        @settings(
            max_examples=self._examples,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
            phases=(Phase.generate, Phase.shrink),
        )
        @given(data=st.data())
        def tried(data: Any) -> None:
            rule(Draw(data))

        tried()

    def agrees_with_mil(
        self, op: str, arguments_of: Callable[[Draw], Arguments], oracle: Callable[..., Any] | None = None, *, values: bool = True
    ) -> None:
        """Results have the shape, the kind and, where MIL computes, the values that MIL infers; the oracle's values where there is one.

        ``values=False``: types only, where MIL's own values are wrong.
        Computed arguments and a module's parameters give what constants give; no fp16 result holds a number that fp16 does not.
        """

        def rule(draw: Draw) -> None:
            arguments, opset = _drawn(arguments_of, draw)
            references = infer(op, arguments, opset, values=values)
            actual = run(op, arguments, opset=opset, results=len(references))
            for got, reference in zip(actual, references, strict=True):
                extents = tuple(g if w is None else w for g, w in zip(got.shape, reference.shape, strict=False))
                assert (got.shape, got.dtype.kind) == (extents + reference.shape[len(extents) :], reference.kind)
                if reference.value is not None:
                    np.testing.assert_allclose(got, reference.value, rtol=1e-4, atol=1e-5)
            _check(op, arguments, opset, actual, oracle)

        self(rule)

    def agrees_with(self, oracle: Callable[..., Any], op: str, arguments_of: Callable[[Draw], Arguments]) -> None:
        """Results are the oracle's, for ops whose inference in MIL is wrong or incomplete."""

        def rule(draw: Draw) -> None:
            arguments, opset = _drawn(arguments_of, draw)
            references = oracle(**arguments)
            actual = run(op, arguments, opset=opset, results=len(references) if isinstance(references, tuple) else 1)
            _check(op, arguments, opset, actual, oracle)

        self(rule)

    def rounds_to_fp16(self, op: str, arguments_of: Callable[[Draw], Arguments]) -> None:
        """On fp16 arguments, fp16 numerics give what fp64 gives to a rounding of fp16: nothing inside is narrower than fp32."""

        def rule(draw: Draw) -> None:
            arguments, opset = _drawn(arguments_of, draw)
            fp16_arguments = _as_fp16(arguments)
            results = len(infer(op, arguments, opset))
            unrounded = run(op, fp16_arguments, opset=opset, results=results)
            for how in get_args(How):
                actual = run(op, fp16_arguments, opset=opset, results=results, numerics="fp16", declared="float16", how=how)
                for rounded, reference in zip(actual, unrounded, strict=True):
                    within = np.abs(reference) < np.finfo(np.float16).max
                    np.testing.assert_allclose(rounded[within], reference[within], rtol=2**-10, atol=1e-5)

        self(rule)


def _drawn(arguments_of: Callable[[Draw], Arguments], draw: Draw) -> tuple[Arguments, str]:
    """The arguments that were drawn, and the opset: theirs, or any."""
    arguments = {name: data for name, data in arguments_of(draw).items() if data is not None}
    opset = arguments.pop("opset", None) or draw.one(OPSETS)
    large = {name for name, data in arguments.items() if getattr(data, "size", 0) > 8}
    note(f"{opset}, {', '.join(f'{n}: {d.dtype} {d.shape}' if n in large else f'{n}: {d!r}' for n, d in arguments.items())}")
    return arguments, opset


def _check(op: str, arguments: Arguments, opset: str, actual: tuple[Any, ...], oracle: Callable[..., Any] | None) -> None:
    if oracle is not None:
        values = oracle(**arguments)
        for got, value in zip(actual, values if isinstance(values, tuple) else (values,), strict=True):
            assert got.shape == np.shape(value)
            np.testing.assert_allclose(got, value, rtol=1e-4, atol=1e-5)
    for how in ("module",) if op.startswith("constexpr_") else HOW:
        for got, again in zip(actual, run(op, arguments, opset=opset, results=len(actual), how=how), strict=True):
            np.testing.assert_array_equal(got, again)
    if op.startswith("random_"):
        return
    ways: tuple[How, ...] = ("constants",) if op.startswith("constexpr_") else ("observed", "computed", "constants")
    fp16_results = {
        how: run(op, _as_fp16(arguments), opset=opset, results=len(actual), numerics="fp16", declared="float16", how=how) for how in ways
    }
    for results in zip(*fp16_results.values(), strict=True):
        for rounded in results:
            assert rounded.dtype.kind != "f" or np.array_equal(rounded, rounded.astype(np.float16).astype(rounded.dtype), equal_nan=True)
            assert rounded.dtype.kind == results[0].dtype.kind
            if rounded.dtype.kind != "f":  # declared fp16 like all results here, which it is not in any program
                continue
            within = 2**-10 if op in PRODUCTS else 0
            np.testing.assert_allclose(rounded, results[0], rtol=within, atol=1e-5 * (within > 0), err_msg=str(ways))


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.slow)])
def law(request: pytest.FixtureRequest) -> Law:
    """``law(rule)`` and ``law.agrees_with_mil(op, arguments_of, oracle)``, on few examples or, among the slow tests, on many."""
    return Law(request.param)


@pytest.fixture(autouse=True)
def _no_overflow_warnings() -> Iterator[None]:
    with np.errstate(all="ignore"):
        yield


class RunOp(Protocol):
    """``run``, as tests get it."""

    def __call__(
        self,
        op: str,
        arguments: Arguments,
        *,
        opset: str,
        results: int = 1,
        numerics: NumericsName = "fp64",
        declared: str = "float32",
        how: How = "constants",
    ) -> tuple[Any, ...]:
        """The results of one op."""


class InferOp(Protocol):
    """``infer``, as tests get it."""

    def __call__(self, op: str, arguments: Arguments, opset: str, *, values: bool = True) -> tuple[Declared, ...]:
        """MIL's own inference for one op."""


@pytest.fixture(scope="session")
def run_op() -> RunOp:
    """``run``, for laws of another form."""
    return run


@pytest.fixture(scope="session")
def infer_op() -> InferOp:
    """``infer``, for laws of another form."""
    return infer
