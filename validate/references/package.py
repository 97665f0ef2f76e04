"""Another package as the reference: float64 arithmetic is the reference, and its own fp16 the budget."""

from collections.abc import Sequence
from pathlib import Path

from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Array, Arrays
from coreflow.models.errors import ConfigError
from coreflow.runtime.backend import Model
from coreflow.validate.inputs.states import StatelessLifted
from coreflow.validate.references.reference import WithoutMargins


class PackageReference(WithoutMargins):
    """Another package, lifted and executed in float64 and in fp16.

    The two are different programs, so the comparison is not vacuous; a package compared with itself passes.

    >>> PackageReference(Path("encoder.mlpackage"), ["surface"]).outputs({"ids": ids, "mask": mask})
    """

    budget = "the reference package's own fp16"

    def __init__(self, path: Path, outputs: Sequence[str]) -> None:
        program = read_program(path)
        self._model_fp64, self._model_fp16 = (StatelessLifted(program, numerics) for numerics in ("fp64", "fp16"))
        self._path, self._outputs = path, check_output_names(path, list(self._model_fp64.outputs), outputs)
        self.label = f"package {path.name} in float64"

    def outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """Outputs in float64."""
        return self._predict(self._model_fp64, inputs)

    def simulated_outputs(self, inputs: Arrays) -> tuple[Array, ...]:
        """Outputs in fp16."""
        return self._predict(self._model_fp16, inputs)

    def _predict(self, model: Model, inputs: Arrays) -> tuple[Array, ...]:
        if list(inputs) != list(model.inputs):
            raise ConfigError(f"{self._path.name} takes {', '.join(model.inputs)}; the package takes {', '.join(inputs)}")
        outputs = model.predict(inputs)
        return tuple(outputs[name] for name in self._outputs)


def check_output_names(path: Path, names: Sequence[str], expected: Sequence[str]) -> list[str]:
    """``expected``, the names of the package's outputs in its order, if ``names`` are the same ones; no matching by place or likeness."""
    if sorted(names) != sorted(expected):
        raise ConfigError(
            f"{path.name} gives {', '.join(names)}; the package gives {', '.join(expected)}, and these names have to be the same"
        )
    return list(expected)
