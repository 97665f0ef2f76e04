"""The stages of a bundle, loaded and wired by its family: text in, text out."""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from coreflow.export.package.manifest import Manifest, read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.models.arrays import Arrays
from coreflow.models.errors import BundleError
from coreflow.models.family import ChainResult, Companions, StageTime, find_family
from coreflow.runtime.backend import Backend, ComputeUnits, EngineName, LoadOptions, Model, NumericsName
from coreflow.runtime.load import open_model


class Chain:
    """Loaded stages, and the pipeline that joins them.

    >>> Chain.load("artifacts/demo").run("the patient farmer danced behind the old mill").text

    Everything that the family's pipeline offers beside ``run`` is an attribute of the chain: ``config`` and ``options`` of every family,
    ``run_embedding`` and ``decode`` of an energy flow.
    """

    def __init__(self, manifest: Manifest, stages: Mapping[str, Model], companions: Companions) -> None:
        self.manifest = manifest
        self.stages = stages
        self._times: dict[str, list[float]] = defaultdict(list)
        self.pipeline = companions.pipeline(self._predict)

    @classmethod
    def load(
        cls,
        bundle: str | Path,
        backend: Backend = "auto",
        *,
        numerics: NumericsName = "fp16",
        device: str = "cpu",
        engine: EngineName = "auto",
        compute_units: ComputeUnits = "all",
        verify: bool = True,
    ) -> Self:
        """The chain in the bundle at ``bundle``; arguments as ``load_model``'s.

        Every file is compared with its digest first, unless ``verify`` is False. ``BundleError`` names what is missing or changed.
        """
        folder = Path(bundle)
        manifest = read_manifest(folder, verify=verify)
        family = find_family(manifest.kind)
        if family is None or manifest.companions is None:
            raise BundleError(
                f"{folder} holds {', '.join(manifest.stages)} and no chain; load its packages with coreflow.runtime.load_model"
            )
        options = LoadOptions(backend=backend, numerics=numerics, device=device, engine=engine, compute_units=compute_units)
        programs = {name: read_program(folder / stage.package).at(stage.function) for name, stage in manifest.stages.items()}
        stages = {name: open_model(program, options) for name, program in programs.items()}
        return cls(manifest, stages, family.open_companions(folder / manifest.companions))

    def __getattr__(self, name: str) -> Any:
        if name == "pipeline":  # not made yet: nothing to look in
            raise AttributeError(name)
        return getattr(self.pipeline, name)

    @property
    def backend(self) -> str:
        """``coreml`` or ``lifted``: the backend that really executes."""
        return next(iter(self.stages.values())).backend

    def run(self, text: str, options: Any = None, *, corrections: int = 0) -> Any:
        """One input through the stages: the family's ``ChainResult``, with the time of each stage.

        ``options`` are the family's, as ``Pipeline.options`` makes them. Raises ``InputError`` for what the chain cannot read.
        """
        self._times.clear()
        result: ChainResult = self.pipeline.run(text, options, corrections=corrections)
        times = {name: StageTime(calls=len(calls), total_ms=sum(calls) * 1e3) for name, calls in self._times.items()}
        return replace(result, times=times)

    def _predict(self, name: str, inputs: Arrays) -> dict[str, Any]:
        began = time.perf_counter()
        outputs = self.stages[name].predict(inputs)
        self._times[name].append(time.perf_counter() - began)
        return outputs
