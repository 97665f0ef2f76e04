"""A whole bundle: every package against torch, and, where the stages form a chain, the chain."""

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file

from coreflow.export.energy import GOLDEN, KIND, energy_recipes
from coreflow.export.package.manifest import OUTSIDE, Manifest, damaged_files, read_manifest
from coreflow.export.recipe import Recipe
from coreflow.models.arrays import Array
from coreflow.models.data.tokenizers import TextTokenizer
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.training.checkpoint import CONFIG, WEIGHTS, WORDPIECE, load_config, load_weights
from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
from coreflow.validate.chain import Sentence, judge_cascade
from coreflow.validate.gates.tolerance import Tolerance
from coreflow.validate.inputs.samples import Sample, read_samples
from coreflow.validate.ladder.ladder import OpenPackage, open_package
from coreflow.validate.package import describer, judge_package, versions
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.replay.evidence import Evidence
from coreflow.validate.report.model import BundleReport, CascadeReport, Outcome, Report, first_cause, worst


@dataclass(frozen=True, slots=True, kw_only=True)
class PartJudged:
    """A stage, or the cascade, has its verdict."""

    part: str
    verdict: Outcome
    seconds: float
    done: int
    total: int


def validate_bundle(
    bundle: str | Path,
    *,
    recipes: Sequence[Recipe] | None = None,
    backend: Backend = "auto",
    numerics: NumericsName = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
    verify: bool = True,
    texts: Path | None = None,
    sweep: bool = False,
    evidence: Path | None = None,
) -> BundleReport:
    """The last event of ``judge_bundle``, which takes the same arguments."""
    report = None
    options: dict[str, Any] = {"recipes": recipes, "backend": backend, "numerics": numerics, "compute_units": compute_units}
    options |= {"tolerance": tolerance, "verify": verify, "texts": texts, "sweep": sweep, "evidence": evidence}
    for event in judge_bundle(bundle, **options):
        report = event
    assert isinstance(report, BundleReport)
    return report


def judge_bundle(
    bundle: str | Path,
    *,
    recipes: Sequence[Recipe] | None = None,
    backend: Backend = "auto",
    numerics: NumericsName = "fp16",
    compute_units: ComputeUnits = "all",
    tolerance: Tolerance | None = None,
    verify: bool = True,
    texts: Path | None = None,
    sweep: bool = False,
    evidence: Path | None = None,
) -> Iterator[PartJudged | BundleReport]:
    """A ``PartJudged`` per stage and for the cascade, then the report.

    The reference of an energy-flow bundle comes with it; a bundle of recipes needs ``recipes``, found by their names. A package
    whose files are not those that the manifest records is judged all the same, to say what the change does, but it never passes:
    unless ``verify`` is False, which makes the change a warning. A changed reference is refused. ``texts``, a file of sentences, joins the
    golden ones of an energy-flow bundle; ``sweep`` adds extreme inputs to every stage; ``evidence`` is the folder for replays.
    """
    started = time.monotonic()
    folder = Path(bundle)
    manifest = read_manifest(folder, verify=False)
    changed = tuple(damaged_files(folder, manifest))
    packages = tuple(f"{stage.package}/" for stage in manifest.stages.values())
    if verify and not all(line.startswith(packages) and not line.endswith(OUTSIDE) for line in changed):
        read_manifest(folder, verify=True)  # which refuses it
    judging = _Judging(folder, manifest, recipes, backend, numerics, compute_units, tolerance, texts, sweep, evidence)
    total = len(manifest.stages) + judging.has_cascade
    reports: dict[str, Report] = {}
    for name in manifest.stages:
        reports[name] = judging.stage(name)
        yield PartJudged(part=name, verdict=reports[name].verdict, seconds=reports[name].seconds, done=len(reports), total=total)
    cascade, problems = None, list(judging.problems)
    if judging.has_cascade:
        misfits = [name for name, report in reports.items() if report.cause == "structure"]
        if misfits:
            problems.append(f"the cascade was not run: {', '.join(misfits)} cannot be wired")
        else:
            cascade = judging.cascade(reports)
            yield PartJudged(part="cascade", verdict=cascade.verdict, seconds=cascade.seconds, done=total, total=total)
    report = _conclude(folder, manifest, reports, cascade, changed, tuple(problems), time.monotonic() - started)
    yield _sealed(report) if verify and changed else report


class _Judging:
    """What the stages of one bundle are judged with."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        recipes: Sequence[Recipe] | None,
        backend: Backend,
        numerics: NumericsName,
        compute_units: ComputeUnits,
        tolerance: Tolerance | None,
        texts: Path | None,
        sweep: bool,
        evidence: Path | None,
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._texts, self._sweep = texts, sweep
        self._evidence = None if evidence is None else Evidence(folder=evidence, reference=folder if manifest.kind == KIND else None)
        self._options: dict[str, Any] = {"numerics": numerics, "compute_units": compute_units, "tolerance": tolerance}
        self._backend: Backend = backend
        self._config: EnergyConfig | None = None
        self._targets: dict[str, OpenPackage] = {}
        self.problems: list[str] = []
        found = recipes
        if manifest.kind == KIND:
            if found is not None:
                raise ConfigError(f"{folder} brings its own reference; recipes are for bundles that were exported from recipes")
            self._config, found = self._energy_recipes()
        if texts is not None and self._config is None:
            raise ConfigError(f"{folder} is no energy flow, which takes texts; validate one of its packages with the file {texts}")
        self.recipes = {recipe.name: recipe for recipe in found or ()}
        if missing := [name for name in manifest.stages if name not in self.recipes]:
            self.problems.append(f"no reference for {', '.join(missing)}: pass the recipes that the bundle was exported from")

    @property
    def has_cascade(self) -> bool:
        """Whether the stages form a chain that can be run."""
        return self._config is not None

    @property
    def companions(self) -> Path:
        """The folder of the reference weights."""
        if self.manifest.companions is None:
            raise BundleError(f"{self.folder} holds no reference weights; export it again")
        return self.folder / self.manifest.companions

    def stage(self, name: str) -> Report:
        """The verdict on one package."""
        target = open_package(self.folder / self.manifest.stages[name].package, self._backend, **self._options)
        self._targets[name] = target
        recipe = self.recipes.get(name)
        if recipe is None:
            text = "no reference: nothing was compared"
            return describer(target, name)("incomplete", None, text, problems=(text,))
        given = self._golden(name) if self._config is not None else []
        if self._config is not None and name == "encoder":
            given += self._given_texts(self._config)
        return judge_package(target, recipe, given, recipe.inputs_for, sweep=self._sweep, evidence=self._evidence)

    def cascade(self, reports: Mapping[str, Report]) -> CascadeReport:
        """The verdict on the chain."""
        assert self._config is not None
        models = {name: target.model for name, target in self._targets.items()}
        references = {name: TorchReference(recipe.module) for name, recipe in self.recipes.items()}
        tolerance = next(iter(self._targets.values())).tolerance
        return judge_cascade(self._config, self.recipes, references, models, self._sentences(self._config), reports, tolerance)

    def _energy_recipes(self) -> tuple[EnergyConfig, tuple[Recipe, ...]]:
        config = load_config(self.companions / CONFIG)
        return config, energy_recipes(load_weights(EnergyFlow(config), self.companions / WEIGHTS))

    def _golden(self, stage: str) -> list[Sample]:
        """The recorded samples of a stage with what torch gave for them."""
        path = self.companions / GOLDEN / f"{stage}.safetensors"
        try:
            arrays = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BundleError(f"{path} is not a readable safetensors file: {error}") from error
        numbers = sorted({int(found[1]) for key in arrays if (found := re.match(r"(\d+)\.in\.", key))})

        def side(number: int, which: str) -> dict[str, Array]:
            prefix = f"{number}.{which}."
            return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}

        return [Sample(label=f"golden {number}", inputs=side(number, "in"), expected=side(number, "out")) for number in numbers]

    def _sentences(self, config: EnergyConfig) -> list[Sentence]:
        path = self.companions / GOLDEN / "sentences.json"
        try:
            texts = [str(each["text"]) for each in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BundleError(f"{path} does not hold golden sentences: {error}") from error
        tokenizer = TextTokenizer.load(self.companions / WORDPIECE)
        encoded = [tokenizer.encode(text, config.text_length) for text in texts]
        golden = [Sentence(text=text, ids=each.ids[None], mask=each.mask[None]) for text, each in zip(texts, encoded, strict=True)]
        given = self._given_texts(config)
        return golden + [Sentence(text=each.label, ids=each.inputs["ids"], mask=each.inputs["mask"]) for each in given]

    def _given_texts(self, config: EnergyConfig) -> list[Sample]:
        """The sentences of the file that the caller gave, as the encoder reads them."""
        if self._texts is None:
            return []
        tokenizer = TextTokenizer.load(self.companions / WORDPIECE)
        return read_samples(self._texts, self.recipes["encoder"].inputs, tokenizer)


def _sealed(report: BundleReport) -> BundleReport:
    """The report on a bundle whose packages are not the exported ones: good numbers do not make it a pass."""
    if report.verdict not in ("pass", "warn"):
        return report
    text = f"{'; '.join(report.warnings)} (what it computes is within tolerance). Export again, or accept the files with --unsealed"
    return replace(report, verdict="fail", cause="structure", text=text)


def _conclude(
    folder: Path,
    manifest: Manifest,
    reports: Mapping[str, Report],
    cascade: CascadeReport | None,
    warnings: tuple[str, ...],
    problems: tuple[str, ...],
    seconds: float,
) -> BundleReport:
    """The worst of the parts, and the parts that are to blame."""
    parts: dict[str, Report | CascadeReport] = {**reports, **({} if cascade is None else {"cascade": cascade})}
    verdict = worst([*(part.verdict for part in parts.values()), *(("incomplete",) if problems else ())])
    blamed = {name: part for name, part in parts.items() if part.verdict == verdict}
    if set(blamed) > {"cascade"} and verdict == "fail":
        blamed.pop("cascade", None)  # it fails because a stage does
    if verdict == "pass":
        text = f"{len(reports)} stages{' and the cascade' if cascade else ''} are within fp16 tolerance of torch"
    elif blamed:
        text = "; ".join(f"{name}: {part.text}" for name, part in blamed.items())
    else:
        text = "; ".join(problems)
    present = versions()
    exported_with = {f"{name} (export)": each for name, each in manifest.versions.items() if present.get(name, each) != each}
    return BundleReport(
        bundle=str(folder),
        name=manifest.name,
        kind=manifest.kind,
        created=manifest.created,
        verdict=verdict,
        cause=first_cause([part.cause for part in blamed.values()]),
        text=text,
        stages=dict(reports),
        cascade=cascade,
        versions={**present, **exported_with},
        seconds=seconds,
        warnings=warnings,
        problems=problems,
    )
