"""Validates a bundle: every package against torch, and the chain where the stages form one."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from coreflow.export.package.manifest import Manifest, damaged_files, read_manifest
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.export.run import stage_recipes
from coreflow.models.arrays import Arrays
from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.family import Companions, TextEntry, Trial, find_family
from coreflow.models.golden import has_samples
from coreflow.models.golden import read_samples as read_golden
from coreflow.models.stage import Stage
from coreflow.runtime.backend import Backend, ComputeUnits, NumericsName
from coreflow.validate.acceptance import unseen
from coreflow.validate.case import Case, make_case
from coreflow.validate.chain import judge_chain
from coreflow.validate.gates.limits import check_outputs
from coreflow.validate.gates.tolerance import Limits, Tolerance
from coreflow.validate.inputs.sample_files import read_samples
from coreflow.validate.inputs.samples import Sample
from coreflow.validate.ladder.opening import OpenPackage, open_package
from coreflow.validate.options import Evidence, Options
from coreflow.validate.package import judge_package, versions
from coreflow.validate.references.torch_module import TorchReference
from coreflow.validate.report.model import BundleReport, ChainReport, Outcome, Report
from coreflow.validate.verdict import Verdict, conclude_bundle


@dataclass(frozen=True, slots=True, kw_only=True)
class PartDone:
    """Event: the verdict on a stage, or on the chain, whose part is called cascade.

    >>> for event in judge_bundle("artifacts/demo"):
    ...     if isinstance(event, PartDone):
    ...         print(f"{event.done}/{event.total} {event.part}: {event.verdict}")
    """

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
    contract: float | None = None,
    ceiling: float | None = None,
    output_limits: Mapping[str, Limits] | None = None,
    verify: bool = True,
    texts: Path | None = None,
    sweep: bool = False,
    evidence: Path | None = None,
    quick: bool = False,
    seeds: int | None = None,
    accept: Mapping[str, str] | None = None,
) -> BundleReport:
    """The verdict on a bundle: every stage against torch, and the chain that they form.

    >>> report = validate_bundle("artifacts/demo")
    >>> report.verdict, report.text

    The reference of a family's bundle comes with it; a bundle of recipes needs ``recipes``, found by their names. A package whose files
    differ from the manifest is compared all the same, to show the effect of the change, but it never passes; with ``verify=False`` the
    change is a warning. A changed reference is refused. ``texts``, a file of sentences, joins the golden ones of a bundle that takes texts;
    ``sweep`` adds extreme inputs to every stage; ``evidence`` is the folder for replays. ``quick`` draws two seeds per stage and looks at
    no op, which notes of the report say; ``seeds`` draws another number. The other options are those of ``validate``.
    """
    options = Options(
        backend=backend,
        numerics=numerics,
        compute_units=compute_units,
        tolerance=tolerance,
        limits=Limits(contract=contract, ceiling=ceiling),
        output_limits=output_limits or {},
        sweep=sweep,
        evidence=None if evidence is None else Evidence(folder=evidence),
        quick=quick,
        seeds=seeds,
        accepted=accept or {},
    )
    *_, report = judge_parts(Path(bundle), options, recipes=recipes, texts=texts, verify=verify)
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
    contract: float | None = None,
    ceiling: float | None = None,
    output_limits: Mapping[str, Limits] | None = None,
    verify: bool = True,
    texts: Path | None = None,
    sweep: bool = False,
    evidence: Path | None = None,
    quick: bool = False,
    seeds: int | None = None,
    accept: Mapping[str, str] | None = None,
) -> Iterator[PartDone | BundleReport]:
    """A ``PartDone`` per stage and for the chain, then the report; the arguments are those of ``validate_bundle``."""
    options = Options(
        backend=backend,
        numerics=numerics,
        compute_units=compute_units,
        tolerance=tolerance,
        limits=Limits(contract=contract, ceiling=ceiling),
        output_limits=output_limits or {},
        sweep=sweep,
        evidence=None if evidence is None else Evidence(folder=evidence),
        quick=quick,
        seeds=seeds,
        accepted=accept or {},
    )
    yield from judge_parts(Path(bundle), options, recipes=recipes, texts=texts, verify=verify)


def judge_parts(
    folder: Path, options: Options, *, recipes: Sequence[Recipe] | None = None, texts: Path | None = None, verify: bool = True
) -> Iterator[PartDone | BundleReport]:
    """``judge_bundle`` with its options as one value."""
    started = time.monotonic()
    manifest = read_manifest(folder, verify=False)
    check_outputs(options.output_limits, [name for stage in manifest.stages.values() for name in stage.outputs], str(folder))
    damaged = damaged_files(folder, manifest)
    packages = [stage.package for stage in manifest.stages.values()]
    if verify and any(problem.kind in ("outside", "unlisted") or not any(map(problem.is_in, packages)) for problem in damaged):
        read_manifest(folder, verify=True)  # which refuses it
    changed = tuple(problem.text for problem in damaged)
    judging = _Judging(folder, manifest, recipes, texts, options)
    total = judging.parts
    reports: dict[str, Report] = {}
    for name in manifest.stages:
        reports[name] = judging.stage(name)
        yield PartDone(part=name, verdict=reports[name].verdict, seconds=reports[name].seconds, done=len(reports), total=total)
    chain, problems = None, list(judging.problems)
    if judging.has_chain:
        misfits = [name for name, report in reports.items() if report.cause == "structure"]
        if misfits:
            problems.append(f"the cascade was not run: {', '.join(misfits)} cannot be wired")
        else:
            chain = judging.chain(reports)
            yield PartDone(part="cascade", verdict=chain.verdict, seconds=chain.seconds, done=total, total=total)
    verdict = conclude_bundle(reports, chain, problems, changed if verify else ())
    warnings = (*changed, *unseen(options.accepted, list(reports.values())))
    yield _report(folder, manifest, reports, chain, verdict, warnings, time.monotonic() - started)


class _Judging:
    """The references, samples and options for the stages of one bundle."""

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        recipes: Sequence[Recipe] | None,
        texts: Path | None,
        options: Options,
    ) -> None:
        self.folder, self.manifest = folder, manifest
        self._texts, self._options = texts, options
        family = find_family(manifest.kind)
        if options.evidence is not None and family is not None:
            self._options = replace(options, evidence=replace(options.evidence, reference=folder))
        self._companions: Companions | None = None
        self._stages: dict[str, Stage] = {}
        self._opened: dict[str, OpenPackage] = {}
        self.problems: list[str] = []
        if family is not None:
            if recipes is not None:
                raise ConfigError(f"{folder} brings its own reference; recipes are for bundles that were exported from recipes")
            if manifest.companions is None:
                raise BundleError(f"{folder} holds no reference weights; export it again")
            self._companions = family.open_companions(folder / manifest.companions)
            self._stages = {stage.name: stage for stage in self._companions.stages()}
            recipes = stage_recipes(tuple(self._stages.values()))
        self._entry = self._text_entry()
        self.recipes = {part.name: part for recipe in recipes or () for part in recipe.parts}
        if recipes and not self.recipes.keys() & manifest.stages.keys():
            names = f"{', '.join(self.recipes)}; the bundle was exported from {', '.join(manifest.stages)}"
            raise ConfigError(f"{folder}: no package is named after the recipes {names}")
        if missing := [name for name in manifest.stages if name not in self.recipes and not self._recorded(name)]:
            self.problems.append(f"no reference for {', '.join(missing)}: pass the recipes that the bundle was exported from")
        self._trial = self._open_trial()

    @property
    def has_chain(self) -> bool:
        """Whether the stages form a chain that can be run."""
        return self._companions is not None

    @property
    def parts(self) -> int:
        """Number of stages, and the chain."""
        return len(self.manifest.stages) + self.has_chain

    def stage(self, name: str) -> Report:
        """The verdict on one package."""
        options = self._options.as_part(list(self.manifest.stages).index(name), self.parts)
        options.announce(name, "opening")
        stage = self.manifest.stages[name]
        opened = open_package(read_program(self.folder / stage.package).at(stage.function), options)
        self._opened[name] = opened
        recipe = self.recipes.get(name)
        if recipe is None and (recorded := self._recorded(name)):
            return judge_package(make_case(opened, None, recorded, name=name), options)
        if recipe is None:
            return judge_package(Case(opened=opened, name=name), options)
        given = [] if self._companions is None else _golden(self._companions.golden(name))
        if self._entry is not None and name == self._entry.stage:
            given += self._read_texts(self._entry)
        return judge_package(make_case(opened, recipe, given), options)

    def _recorded(self, name: str) -> list[Sample]:
        """Golden samples of a stage, by which a bundle of recipes is judged where nobody passes those."""
        companions = None if self.manifest.companions is None else self.folder / self.manifest.companions
        if companions is None or self._companions is not None or not has_samples(companions, name):
            return []
        return _golden(read_golden(companions, name))

    def _open_trial(self) -> Trial | None:
        """The chain on its samples, where there is one: those that cannot be read are refused before anything runs."""
        if self._companions is None:
            return None
        texts = [] if self._entry is None else [(sample.label, sample.inputs) for sample in self._read_texts(self._entry)]
        return self._companions.trial(self._stages, range(self._options.first_seeds), texts)

    def chain(self, reports: Mapping[str, Report]) -> ChainReport:
        """The verdict on the chain."""
        assert self._trial is not None
        self._options.as_part(self.parts - 1, self.parts).announce("cascade", "chain")
        models = {name: opened.model for name, opened in self._opened.items()}
        references = {name: TorchReference(recipe.module, names=recipe.outputs) for name, recipe in self.recipes.items()}
        tolerance_of = next(iter(self._opened.values())).tolerance_of
        return judge_chain(self._trial, self.recipes, references, models, reports, tolerance_of)

    def _text_entry(self) -> TextEntry | None:
        """The stage at which the texts of the caller enter; None without any."""
        if self._texts is None:
            return None
        entry = None if self._companions is None else self._companions.text_entry()
        if entry is None:
            raise ConfigError(f"{self.folder} takes no texts; validate one of its packages with the file {self._texts}")
        return entry

    def _read_texts(self, entry: TextEntry) -> list[Sample]:
        """The sentences of the caller's file as inputs of the stage at which they enter."""
        assert self._texts is not None
        return read_samples(self._texts, self.recipes[entry.stage].inputs, entry.tokenizer)


def _golden(pairs: Sequence[tuple[Arrays, Arrays]]) -> list[Sample]:
    """Recorded inputs of a stage as samples, with the outputs that torch gave for them."""
    return [Sample(label=f"golden {number}", inputs=inputs, expected=outputs) for number, (inputs, outputs) in enumerate(pairs)]


def _report(
    folder: Path,
    manifest: Manifest,
    reports: Mapping[str, Report],
    chain: ChainReport | None,
    verdict: Verdict,
    warnings: tuple[str, ...],
    seconds: float,
) -> BundleReport:
    present = versions()
    exported_with = {f"{name} (export)": then for name, then in manifest.versions.items() if present.get(name, then) != then}
    return BundleReport(
        bundle=str(folder),
        name=manifest.name,
        kind=manifest.kind,
        created=manifest.created,
        verdict=verdict.outcome,
        cause=verdict.cause,
        text=verdict.text,
        stages=dict(reports),
        cascade=chain,
        versions={**present, **exported_with},
        seconds=seconds,
        warnings=warnings,
        problems=verdict.problems,
    )
