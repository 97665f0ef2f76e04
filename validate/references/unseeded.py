"""Recipes that are another one each time: weights drawn when their file is loaded, and inputs that no seed decides."""

import numpy as np
import torch

from coreflow.export.recipe import Recipe
from coreflow.export.user_files import load_recipes
from coreflow.models.arrays import Draw
from coreflow.models.errors import CoreflowError


def find_unseeded_weights(recipe: Recipe | None) -> str:
    """How the weights of a recipe differ when its file is executed again, in words; empty when they do not, or where there is no file."""
    if recipe is None or not recipe.source:
        return ""
    try:
        others = {other.name: other.module.state_dict() for other in load_recipes(recipe.source)}
    except CoreflowError:
        return ""
    again = others.get(recipe.name, {})
    for name, tensor in recipe.module.state_dict().items():
        if name in again and not torch.equal(tensor, again[name]):
            return (
                f"{recipe.source} draws its weights anew whenever it is loaded ({name!r} differs): this is not the module that was "
                "exported. Seed it (torch.manual_seed), or load the weights from a file"
            )
    return ""


def is_unseeded(draw: Draw | None) -> bool:
    """Whether two calls of ``draw`` with one seed differ."""
    if draw is None:
        return False
    first, second = draw(0), draw(0)
    return any(not np.array_equal(array, second[name], equal_nan=True) for name, array in first.items())
