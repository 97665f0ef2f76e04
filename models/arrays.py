"""Types of arrays, of mappings from names to arrays, and of functions that draw them. numpy only."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Arrays = Mapping[str, Array]  # by name of an input, an output or a state
Draw = Callable[[int], Arrays]  # a seed -> one set of inputs
