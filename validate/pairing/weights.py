"""Weights of a reference before any rounding: those of its module, and the constants of its conversion at FLOAT32."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from coreflow.export.package.graph import Graph
from coreflow.models.arrays import Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """A weight that nothing has rounded.

    >>> Weight(name="layers.0.norm.weight", values=module.layers[0].norm.weight.detach().numpy())
    """

    name: str  # of the parameter, the buffer or the constant
    values: Array  # float32 or float64
    reader: tuple[str, str] | None = None  # of a constant: type of the op that reads it, and the argument


def weights_of_module(module: nn.Module) -> Iterator[Weight]:
    """Parameters, buffers, other tensors and numbers that ``module`` has, and the scale and shift that a batch norm amounts to.

    A batch norm in eval mode is x * scale + shift, with scale = weight / sqrt(running_var + eps) and shift = bias - running_mean * scale.
    """
    seen: set[int] = set()
    for path, part in module.named_modules():
        for place in (part._parameters, part._buffers, vars(part)):
            for name, value in place.items():
                if isinstance(value, Tensor) and value.is_floating_point() and id(value) not in seen:
                    seen.add(id(value))
                    yield Weight(name=_joined(path, name), values=_array(value))
                elif isinstance(value, float):  # an epsilon, a slope
                    yield Weight(name=_joined(path, name), values=np.array(value))
        if isinstance(part, _BatchNorm) and part.running_var is not None and part.running_mean is not None:
            scale = torch.rsqrt(part.running_var.double() + part.eps) * (1.0 if part.weight is None else part.weight.detach().double())
            shift = (0.0 if part.bias is None else part.bias.detach().double()) - part.running_mean.double() * scale
            yield Weight(name=_joined(path, "scale"), values=_array(scale))
            yield Weight(name=_joined(path, "shift"), values=_array(shift))


def weights_of_graph(graph: Graph) -> Iterator[Weight]:
    """Every floating constant that an op reads, once."""
    seen: set[int] = set()
    for op in graph.walk():
        for argument in op.inputs:
            for value in op.argument(argument):
                if isinstance(value.data, np.ndarray) and value.data.dtype.kind == "f" and id(value) not in seen:
                    seen.add(id(value))
                    yield Weight(name=value.name or f"{op.name}.{argument}", values=value.data, reader=(op.type, argument))


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    array: Array = (tensor if tensor.dtype == torch.float64 else tensor.float()).numpy()
    return array
