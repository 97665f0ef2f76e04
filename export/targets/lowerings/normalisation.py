"""Norms and activations that coremltools lowers in a way that overflows, or is not a number where torch's is one."""

import numpy as np
from coremltools.converters.mil import Builder as mb

from coreflow.export.targets.lowerings.arithmetic import log_of_one_plus_exp_of_minus
from coreflow.export.targets.lowerings.registry import Ints, torch_lowering
from coreflow.export.targets.lowerings.structure import part
from coreflow.export.targets.lowerings.values import Var, fixed_size, is_float


@torch_lowering("rms_norm")
def rms_norm(x: Var, normalized_shape: Ints, weight: Var | None = None, eps: float | None = None) -> Var:
    """layer_norm of [x, -x], half of it"""
    # Their mean is 0 and their variance the mean of squares, which layer_norm forms without an overflow. coremltools divides by the largest
    # magnitude instead: rows of zeros are no numbers then, and epsilon, added to the quotient, is another one for every row.
    axes = list(range(-len(normalized_shape), 0))
    both = mb.concat(values=[x, mb.mul(x=x, y=-1.0)], axis=-1)
    normal = mb.layer_norm(x=both, axes=axes, epsilon=float(np.finfo(np.float32).eps) if eps is None else eps)
    result = part(normal, x.rank - 1, 0, fixed_size(x, x.rank - 1, "rms_norm"))
    return result if weight is None else mb.mul(x=result, y=weight)


@torch_lowering("log_softmax", "_log_softmax")
def log_softmax(x: Var, dim: int, *_: object, **__: object) -> Var:
    """x less its maximum, less the log of the sum of exp of that"""
    # Not the log of softmax, which is of 0 where a probability is below all numbers: -inf for a likelihood of -20 in fp16.
    x = x if is_float(x) else mb.cast(x=x, dtype="fp32")
    if x.rank == 0:
        return mb.sub(x=x, y=x)
    shifted = mb.sub(x=x, y=mb.reduce_max(x=x, axes=[dim], keep_dims=True))
    return mb.sub(x=shifted, y=mb.log(x=mb.reduce_sum(x=mb.exp(x=shifted), axes=[dim], keep_dims=True)))


@torch_lowering("softplus")
def softplus(x: Var, beta: float = 1.0, threshold: float = 20.0) -> Var:
    """max(x, 0) + log(1 + exp(-|x|))"""
    # exp(x) overflows in fp16 from 11.1 on. Torch gives x above the threshold, which differs by less than exp(-threshold).
    scaled = x if beta == 1 else mb.mul(x=x, y=np.float32(beta))
    result = mb.add(x=mb.relu(x=scaled), y=log_of_one_plus_exp_of_minus(mb.abs(x=scaled)))
    return result if beta == 1 else mb.mul(x=result, y=np.float32(1 / beta))


@torch_lowering("log_sigmoid")
def log_sigmoid(x: Var) -> Var:
    """min(x, 0) - log(1 + exp(-|x|))"""
    return mb.sub(x=mb.minimum(x=x, y=0.0), y=log_of_one_plus_exp_of_minus(mb.abs(x=x)))


@torch_lowering("celu")
def celu(x: Var, alpha: float = 1.0) -> Var:
    """relu(x) + alpha * (exp(min(x, 0) / alpha) - 1)"""
    below = mb.mul(x=mb.minimum(x=x, y=0.0), y=np.float32(1 / alpha))
    return mb.add(x=mb.relu(x=x), y=mb.mul(x=mb.sub(x=mb.exp(x=below), y=1.0), y=np.float32(alpha)))


@torch_lowering("hardshrink")
def hardshrink(x: Var, lambd: float = 0.5) -> Var:
    """x where its magnitude is above lambd, else 0"""
    above = mb.greater(x=mb.abs(x=x), y=np.float32(lambd))
    return mb.select(cond=above, a=x, b=mb.mul(x=x, y=0.0))


@torch_lowering("softshrink")
def softshrink(x: Var, lambd: float = 0.5) -> Var:
    """relu(x - lambd) - relu(-x - lambd)"""
    limit = np.float32(lambd)
    return mb.sub(x=mb.relu(x=mb.sub(x=x, y=limit)), y=mb.relu(x=mb.sub(x=mb.mul(x=x, y=-1.0), y=limit)))
