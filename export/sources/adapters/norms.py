"""RMSNorms of transformers as torch's own, whose conversion keeps the squares out of fp16."""

import torch
from torch import nn

_PROBES = 4  # rows of random numbers on which two norms agree


def use_torch_norms(model: nn.Module) -> None:
    """Replace every RMSNorm within ``model`` that transformers wrote out by an ``nn.RMSNorm`` that gives the same.

    >>> use_torch_norms(llama)

    Written out, squares pass between two ops, and in fp16 those of 256 and above are infinite; the residual streams of large models, and of
    T5, reach thousands.
    """
    for part in list(model.modules()):
        for name, child in list(part.named_children()):
            if (norm := _as_torch(child)) is not None:
                setattr(part, name, norm)


def _as_torch(module: nn.Module) -> nn.RMSNorm | None:
    """An ``nn.RMSNorm`` equal to ``module``, with its weight or one more (Gemma); None for a module that is another thing."""
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.RMSNorm) or not isinstance(eps, float) or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    if not isinstance(weight, nn.Parameter) or weight.dim() != 1:
        return None
    norm = nn.RMSNorm(len(weight), eps=eps).eval()
    x = torch.randn(_PROBES, len(weight), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for scale in (weight, nn.Parameter(1 + weight, requires_grad=weight.requires_grad)):
            norm.weight = scale
            if torch.allclose(norm(x), module(x), rtol=1e-5, atol=1e-6):
                return norm
    return None
