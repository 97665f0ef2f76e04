"""Normalisation of pixels as the first ops of a module, so that a package takes pictures as they are."""

import copy
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from coreflow.models.images import ImageSpec
from coreflow.models.spec import TensorSpec


class _Normalisation:
    """A forward pre-hook: pixels of every image among the inputs become what the module takes."""

    def __init__(self, inputs: Mapping[str, TensorSpec]) -> None:
        self._images = {name: (place, spec) for place, (name, spec) in enumerate(inputs.items()) if isinstance(spec, ImageSpec)}

    def __call__(self, module: nn.Module, ordered: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(pixels, ...) -> (pixels * scale + bias, ...)."""
        values, named = list(ordered), dict(named)
        for name, (place, spec) in self._images.items():
            if name in named:
                named[name] = _normalise(named[name], spec)
            else:
                values[place] = _normalise(values[place], spec)
        return tuple(values), named


def with_pictures(module: nn.Module, inputs: Mapping[str, TensorSpec]) -> nn.Module:
    """``module`` as a function of pixels where ``inputs`` hold images with a normalisation; itself otherwise.

    >>> with_pictures(resnet, {"photo": ImageSpec.of(224, 224, scale=1 / 255)})(pixels)

    The copy shares everything with ``module`` but its list of hooks, and its weights keep their names.
    """
    if not any(isinstance(spec, ImageSpec) and spec.is_normalised for spec in inputs.values()):
        return module
    hooks = {key: hook for key, hook in module._forward_pre_hooks.items() if not isinstance(hook, _Normalisation)}
    copied = copy.copy(module)
    copied.__dict__ = dict(module.__dict__)
    copied._forward_pre_hooks = OrderedDict(hooks)
    copied._forward_pre_hooks_with_kwargs = OrderedDict(
        (key, value) for key, value in module._forward_pre_hooks_with_kwargs.items() if key in hooks
    )
    copied.register_forward_pre_hook(_Normalisation(inputs), prepend=True, with_kwargs=True)
    return copied


def _normalise(pixels: Tensor, spec: ImageSpec) -> Tensor:
    scale, bias = (torch.tensor(numbers, dtype=pixels.dtype, device=pixels.device).view(1, -1, 1, 1) for numbers in (spec.scale, spec.bias))
    return pixels * scale + bias
