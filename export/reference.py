"""The reference that a bundle of recipes carries: the weights of its modules, and golden samples, by which it is validated without them."""

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model

from coreflow.export.capture.calls import call
from coreflow.export.capture.evaluation import clear_states, evaluating, read_states, tensors
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Arrays
from coreflow.models.golden import write_samples

WEIGHTS = "weights"
SAMPLES = range(8)  # seeds of the golden samples


def write_reference(recipes: Sequence[Recipe], companions: Path) -> None:
    """``weights/STAGE.safetensors`` and ``golden/STAGE.safetensors`` of every stage of ``recipes``, below ``companions``.

    Outputs are torch's in fp32 for inputs in the dtypes of the package; a state after a call is the output ``STATE_out``.
    """
    folder = companions / WEIGHTS
    folder.mkdir()
    for recipe in recipes:
        for part in recipe.parts:
            if any(True for _ in part.module.parameters()):
                save_model(part.module, str(folder / f"{part.name}.safetensors"))
            write_samples(companions, part.name, golden_samples(part))


def weights_file(companions: Path, stage: str) -> Path | None:
    """The file of the weights of ``stage`` below ``companions``; None where a bundle was exported without."""
    file = companions / WEIGHTS / f"{stage}.safetensors"
    return file if file.is_file() else None


def golden_samples(recipe: Recipe) -> list[tuple[Arrays, Arrays]]:
    """Inputs that the recipe draws, and what its module gives for them."""
    dtypes = {tensor.dtype for tensor in recipe.module.state_dict().values() if tensor.is_floating_point()}
    module = recipe.module if dtypes <= {torch.float32} else copy.deepcopy(recipe.module).float()
    samples: list[tuple[Arrays, Arrays]] = []
    with evaluating(module):
        for inputs in map(recipe.inputs_for, SAMPLES):
            clear_states(module, recipe.states)
            values = {name: tensor.clone() for name, tensor in tensors(inputs).items()}  # a module may write to them
            outputs = dict(zip(recipe.outputs, call(module, values, recipe.outputs, strict=True), strict=True))
            outputs |= {
                f"{name.replace('.', '_')}_out": state
                for name, state in zip(recipe.states, read_states(module, recipe.states), strict=True)
            }
            samples.append((inputs, {name: np.asarray(tensor).copy() for name, tensor in outputs.items()}))
    return samples
