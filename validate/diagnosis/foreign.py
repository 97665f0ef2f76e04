"""Packages that were made of other weights than the reference has, by what the export wrote into them."""

import json

from torch import nn

from coreflow.export.capture.fingerprint import weights_digest
from coreflow.export.package.graph import Program
from coreflow.models.spec import RECIPE_KEY


def find_foreign_weights(program: Program, module: nn.Module | None) -> str:
    """That the package was made of other weights, in words; empty where it was not, or where nobody knows, as of a package from elsewhere.

    >>> find_foreign_weights(read_program("encoder.mlpackage"), recipe.module)
    ''
    """
    try:
        exported = json.loads(program.recorded(RECIPE_KEY, program.default_function) or "")["weights"]
    except (KeyError, TypeError, ValueError):
        return ""
    if module is None or weights_digest(module) == exported:
        return ""
    return "the module has other weights than those that were exported: give it the file of then, or draw both from one seed"
