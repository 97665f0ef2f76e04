"""The plan of a cut: which ops of a function are taken, and which values cross the border. Nothing is written.

Values that enter the cut become inputs and the op's results outputs, under their names. A value that Core ML cannot pass goes through a
cast or a reshape at the border, under a name of its own:

=====================================  ===============================
value                                  passed as
=====================================  ===============================
bool, int8, uint8, int16, uint16       int32
float16, before iOS16                  float32
a scalar                               a vector of one element
=====================================  ===============================
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from coreflow.export.package.graph import Graph, Op, Program, Value
from coreflow.models.errors import ConfigError, UnsupportedError
from coreflow.models.spec import Dtype

_FIRST_WITH_FP16 = 7  # specification version of iOS16
_PASSED_AS: Mapping[str, Dtype] = {
    "float16": "float16",
    "float32": "float32",
    "int32": "int32",
    # A cast makes these of int32, and int32 of these.
    "bool": "int32",
    "int8": "int32",
    "uint8": "int32",
    "int16": "int32",
    "uint16": "int32",
}


@dataclass(frozen=True, slots=True, eq=False)
class Port:
    """A value that crosses the border of a cut, and the input or output that stands for it.

    >>> [(port.name, port.dtype, port.shape) for port in plan_cut(program, "scores").inputs]
    """

    value: Value
    name: str
    dtype: Dtype
    shape: tuple[int, ...] | None  # None: only a prediction tells

    @property
    def casts(self) -> bool:
        """Whether the value is of another dtype than what is passed."""
        return self.value.dtype != self.dtype

    @property
    def reshapes(self) -> bool:
        """Whether the value is a scalar, which is passed as a vector."""
        return self.value.shape == ()


@dataclass(frozen=True, slots=True, eq=False)
class CutPlan:
    """The part of a function that is taken: ops in execution order, constant expressions included, and the border.

    >>> plan = plan_cut(read_program("encoder.mlpackage"), "layer_norm_3", radius=2)
    >>> [op.name for op in plan.ops], [port.name for port in plan.inputs]
    """

    program: Program
    graph: Graph  # of the function
    op: Op
    radius: int
    ops: tuple[Op, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]


def plan_cut(program: Program, op_name: str, radius: int = 0, function_name: str | None = None) -> CutPlan:
    """The cut around the op of that name, or around the one that gives the value of that name.

    Ops that touch a state, a list or a dictionary stay outside, and their results enter the cut; a control-flow op is taken whole.
    ``UnsupportedError`` for an op inside a block, for one that itself takes or gives no tensor, or nothing but constants, and where a value
    of an open shape would enter.
    """
    if radius < 0:
        raise ConfigError(f"radius {radius}; 0 takes the op alone")
    graph, _ = program.function(function_name)
    label = program.path.name
    op = _find(graph, op_name, label)
    ops = _select(graph, op, radius)
    entering = _entering_values(graph, ops)
    user = f"{label}: {op.type} {op.name!r} cannot be cut out"
    _check_border(op, entering, user)
    dtypes = _PASSED_AS if program.spec_version >= _FIRST_WITH_FP16 else {**_PASSED_AS, "float16": "float32"}
    names = _names(graph)
    inputs = tuple(_port(value, names, dtypes, user) for value in entering)
    if of_open_shape := [port.value.name for port in inputs if port.shape is None]:
        raise UnsupportedError(f"{user}: {', '.join(of_open_shape)}, which enters it, has a shape that only a prediction tells")
    outputs = tuple(_port(value, names, dtypes, user) for value in op.outputs)
    return CutPlan(program, graph, op, radius, ops, inputs, outputs)


def free_name(name: str, names: set[str]) -> str:
    """``name``, longer if it is one of ``names`` already; it is added to them."""
    while name in names:
        name += "_"
    names.add(name)
    return name


# -- the ops -----------------------------------------------------------------------------------------------------------------------


def _find(graph: Graph, name: str, label: str) -> Op:
    matching = [op for op in graph.ops if op.name == name] or [op for op in graph.ops if any(value.name == name for value in op.outputs)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        outputs = ", ".join(op.outputs[0].name for op in matching if op.outputs)
        raise ConfigError(f"{label}: {len(matching)} ops are named {name!r}; name one by what it gives: {outputs}")
    around = [op for op in graph.ops if any(inner.name == name for block in op.blocks for inner in block.walk())]
    if around:
        raise UnsupportedError(f"{label}: {name!r} is in a block of {around[0].type} {around[0].name!r}; cut that one, whole")
    near = difflib.get_close_matches(name, [op.name for op in graph.walk()], 3)
    raise ConfigError(f"{label}: no op {name!r}" + (f"; did you mean {', '.join(near)}?" if near else ""))


def _select(graph: Graph, op: Op, radius: int) -> tuple[Op, ...]:
    """``op``, the plain ops up to ``radius`` steps before it, and every constant expression that one of them reads."""
    producers = {id(value): op for op in graph.ops for value in op.outputs}
    selection, frontier = {id(op)}, [op]
    pending = [op]
    for _ in range(radius):
        before = _producers_of(frontier, producers)
        frontier = [op for op in before if id(op) not in selection and not _is_constant(op) and _is_plain(op)]
        selection.update(map(id, frontier))
        pending.extend(frontier)
    while pending:
        constants = [op for op in _producers_of([pending.pop()], producers) if _is_constant(op) and id(op) not in selection]
        selection.update(map(id, constants))
        pending.extend(constants)
    return tuple(op for op in graph.ops if id(op) in selection)


def _producers_of(ops: Iterable[Op], producers: Mapping[int, Op]) -> list[Op]:
    """The ops whose results ``ops`` read."""
    return [producers[id(value)] for op in ops for value in op.reads() if id(value) in producers]


def _is_constant(op: Op) -> bool:
    return op.type.startswith("constexpr_")


def _is_plain(op: Op) -> bool:
    """Whether only tensors go in and come out."""
    return bool(op.outputs) and all(value.kind == "tensor" for value in (*op.reads(), *op.outputs) if value.data is None)


# -- the border --------------------------------------------------------------------------------------------------------------------


def _entering_values(graph: Graph, ops: Sequence[Op]) -> list[Value]:
    """The values that ``ops`` read and do not make.

    They are in the order in which they are made, not in that of the arguments: a protobuf map has another in every process.
    """
    own = {id(value) for op in ops for value in op.outputs}
    read = {id(value) for op in ops for value in op.reads()}
    values = (*graph.inputs, *(value for op in graph.ops for value in op.outputs))
    return [value for value in values if id(value) in read and id(value) not in own]


def _check_border(op: Op, entering: Sequence[Value], user: str) -> None:
    for value in (*entering, *op.outputs):
        if value.kind != "tensor":
            raise UnsupportedError(f"{user}: {value.name!r} is a {value.kind}, no tensor; cut an op before or after it")
    if not op.outputs:
        raise UnsupportedError(f"{user}: it gives nothing; cut an op before or after it")
    if not entering:
        raise UnsupportedError(f"{user}: nothing but constants enters it, and a program needs an input")


def _names(graph: Graph) -> set[str]:
    """The names of all values."""
    values = (value for op in graph.walk() for value in (*op.outputs, *op.input_values()))
    return {value.name for value in (*graph.inputs, *values)}


def _port(value: Value, names: set[str], dtypes: Mapping[str, Dtype], user: str) -> Port:
    """The port of ``value``, under its own name where it is passed as it is."""
    if value.dtype not in dtypes:
        raise UnsupportedError(f"{user}: {value.name!r} is {value.dtype or 'untyped'}; {', '.join(dtypes)} can be passed")
    dtype = dtypes[value.dtype]
    shape = None if value.shape is None or None in value.shape else tuple(extent or 0 for extent in value.shape) or (1,)
    name = value.name
    if dtype != value.dtype or value.shape == ():
        name = free_name(f"{value.name}_as_{dtype if dtype != value.dtype else 'vector'}", names)
    return Port(value, name, dtype, shape)
