"""Exports a trained run to a bundle: a package per stage, and the companions that its family reads back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from coreflow.export.bundle import BundleDone, StageDone, export_bundle
from coreflow.export.recipe import Recipe, Target
from coreflow.models.family import family_of_run
from coreflow.models.stage import Stage


def stage_recipes(stages: Sequence[Stage], target: Target = "iOS17", engine_safe: str = "") -> tuple[Recipe, ...]:
    """A recipe per stage."""
    return tuple(Recipe(**vars(stage), target=target, engine_safe=engine_safe) for stage in stages)


def export_run(
    run: Path, out: Path, *, target: Target = "iOS17", engine_safe: str = "", jobs: int | None = None, check: bool = True
) -> Iterator[StageDone | BundleDone]:
    """Export the run at ``run`` to the bundle ``out``; see ``export_bundle``."""
    family = family_of_run(run)
    trained = family.open_run(run)
    return export_bundle(
        stage_recipes(trained.stages(), target, engine_safe),
        out,
        kind=family.kind,
        settings=dict(trained.settings),
        write_companions=trained.write_companions,
        jobs=jobs,
        check=check,
    )


def run_recipes(run: Path, target: Target = "iOS17", engine_safe: str = "") -> tuple[Recipe, ...]:
    """The recipes of the stages of the run at ``run``."""
    return stage_recipes(family_of_run(run).open_run(run).stages(), target, engine_safe)
