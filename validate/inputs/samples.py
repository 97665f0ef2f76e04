"""Samples: sets of inputs for a package."""

from collections.abc import Mapping
from dataclasses import dataclass

from coreflow.models.arrays import Arrays
from coreflow.models.spec import TensorSpec

Specs = Mapping[str, TensorSpec]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One set of inputs, in the dtypes of the package.

    >>> sample = Sample(label="a letter", inputs={"ids": ids, "mask": mask})
    >>> report = validate("encoder.mlpackage", recipe, [sample])
    """

    label: str
    inputs: Arrays
    seed: int | None = None
    expected: Arrays | None = None  # outputs of torch in fp32, recorded with the sample
    swept: bool = False  # whether its inputs are extreme ones, which the reference may not take
