"""Converts recipes to packages and bundles; every file appears complete or not at all."""

import contextlib
import logging
import multiprocessing
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from coreflow.export.capture.capture import Captured, serialised
from coreflow.export.capture.fingerprint import weights_digest
from coreflow.export.capture.front_ends import advice_on_writes, capture_best, capture_by_other
from coreflow.export.card import write_card
from coreflow.export.loops import warn_of_loops
from coreflow.export.package.manifest import (
    COMPANIONS,
    MANIFEST,
    PACKAGES,
    Manifest,
    StageEntry,
    damaged_files,
    list_files,
    read_manifest,
)
from coreflow.export.package.mlpackage import read_program
from coreflow.export.proof.proof import Proof, prove
from coreflow.export.proof.repairs import repair_package
from coreflow.export.recipe import Recipe
from coreflow.export.replacement import (
    STAGING,
    is_left_by_export,
    keep_package,
    move_companions,
    only_writer,
    put_in_place,
    recover,
    sweep,
    without_trace,
)
from coreflow.export.targets.lowerings.registry import user_lowerings
from coreflow.export.targets.mlprogram import Conversion, convert
from coreflow.models.errors import BundleError, ConfigError, ExportError
from coreflow.models.storage import sync_folder
from coreflow.models.versions import version

logger = logging.getLogger(__name__)

_AT_FLOAT32, _BY_OTHER, _NEW = "at-float32", "by-other", "new-bundle"  # folders of staging, whose names no recipe can have


@dataclass(frozen=True, slots=True, kw_only=True)
class StageDone:
    """Event: a stage is in its place.

    >>> for event in export_bundle(recipes, "artifacts/own"):
    ...     if isinstance(event, StageDone):
    ...         print(f"{event.done}/{event.total} {event.stage}: {event.size_bytes} bytes")
    """

    stage: str
    reused: bool  # converted before from the same recipe, weights and versions
    seconds: float
    size_bytes: int
    done: int
    total: int
    warnings: tuple[str, ...] = ()  # values that the trace froze, with the lines that read them
    errors: Mapping[str, float] | None = None  # of every output, where the saved program was proven to be its module (``export.proof``)


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleDone:
    """Event: the bundle is complete.

    >>> *_, bundle = export_bundle(recipes, "artifacts/own")
    >>> bundle.path, list(bundle.manifest.stages)
    """

    path: Path
    manifest: Manifest
    seconds: float


def build(recipe: Recipe, out_dir: str | Path, *, check: bool = True) -> Path:
    """Convert one recipe into ``out_dir/NAME.mlpackage``, replacing what is there; returns the path. Logs values that a trace froze.

    The saved program is proven to be the module before it is put in place, unless ``check`` is False; ``ExportError`` where it is not.
    """
    out = Path(out_dir)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=STAGING) as folder:
            staging = Path(folder)
            captured = capture_best(recipe)
            ((_, result, _),) = _convert_all([captured], staging, jobs=1)
            settled = _settle(captured, result, staging, check)
            package = settled.package
            for text in _warnings(settled.captured, package, settled.proofs):
                logger.warning("%s: %s", recipe.name, text)
            target = out / package.name
            replaced = staging / "replaced"
            if target.exists():
                target.rename(replaced)
            package.rename(target)
        sync_folder(out)
    return target


def export_bundle(
    recipes: Sequence[Recipe],
    out: Path,
    *,
    kind: str = "recipes",
    settings: dict[str, Any] | None = None,
    write_companions: Callable[[Path], None] | None = None,
    jobs: int | None = None,
    check: bool = True,
) -> Iterator[StageDone | BundleDone]:
    """Write the bundle ``out``: a package per recipe, and the companions that ``write_companions`` puts into a folder.

    Stages whose fingerprint is that of a package already there are kept; the others convert in ``jobs`` processes (default: a process per
    core, at most one per stage). Every saved program is proven to be its module, unless ``check`` is False or that is on record;
    ``ExportError`` where it is not. Yields a ``StageDone`` per stage, then a ``BundleDone``. If it is interrupted, the previous bundle
    stays complete and loadable.
    """
    started = time.monotonic()
    check_destination(recipes, out)
    with _writing(out), without_trace(out):
        out.mkdir(parents=True, exist_ok=True)
        with only_writer(out):
            yield from _export(recipes, out, kind, settings or {}, write_companions, jobs, check, started)


def check_destination(recipes: Sequence[Recipe], out: Path) -> None:
    """``CoreflowError`` where ``recipes`` do not make a bundle, or ``out`` is no place for one."""
    if not recipes:
        raise ConfigError("no recipe to export")
    names = [part.name for recipe in recipes for part in recipe.parts]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"two recipes are named {', '.join(repeated)}; a bundle needs a name per stage")
    packages = [recipe.name.lower() for recipe in recipes]
    if alike := sorted({recipe.name for recipe in recipes if packages.count(recipe.name.lower()) > 1}):
        raise ConfigError(f"recipes {' and '.join(alike)} differ in case alone, which some systems do not tell apart in names of files")
    if out.exists() and not out.is_dir():
        raise BundleError(f"{out} is a file; give a folder for the bundle")
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists() and not is_left_by_export(out):
        raise BundleError(f"{out} holds files that are not a bundle's; give an empty or new folder")


def _export(
    recipes: Sequence[Recipe],
    out: Path,
    kind: str,
    settings: dict[str, Any],
    write_companions: Callable[[Path], None] | None,
    jobs: int | None,
    check: bool,
    started: float,
) -> Iterator[StageDone | BundleDone]:
    recover(out)
    # A manifest that we cannot read may be a newer coreflow's: an error, not something to replace.
    old = read_manifest(out, verify=False) if (out / MANIFEST).exists() else None
    sweep(out, old)
    captures = [capture_best(recipe) for recipe in recipes]
    stages: dict[str, StageEntry] = {}
    with tempfile.TemporaryDirectory(dir=out, prefix=STAGING) as folder:
        staging, packages = Path(folder), Path(folder) / _NEW / PACKAGES
        packages.mkdir(parents=True)
        has_changed = yield from _export_stages(captures, stages, out, old, staging, jobs, check)
        companions = None
        if write_companions is not None:
            made = staging / _NEW / COMPANIONS
            made.mkdir()
            write_companions(made)
            companions = f"{COMPANIONS}/{move_companions(made, out / COMPANIONS)}"
        files = list_files(packages.parent, [PACKAGES]) | ({} if companions is None else list_files(out, [companions]))
        manifest = Manifest(
            name=out.name,
            kind=kind,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=_versions(),
            stages=stages,
            companions=companions,
            settings=settings,
            files=files,
        )
        put_in_place(packages if has_changed else None, out, manifest)
    write_card(out, manifest)
    sweep(out, manifest)
    yield BundleDone(path=out, manifest=manifest, seconds=time.monotonic() - started)


def _export_stages(
    captures: Sequence[Captured],
    stages: dict[str, StageEntry],
    out: Path,
    old: Manifest | None,
    staging: Path,
    jobs: int | None,
    check: bool,
) -> Generator[StageDone, None, bool]:
    """Gather the packages in ``staging``: those of the bundle that are these already, and the others, converted and proven.

    Enters all in ``stages``. Returns whether the packages are others than those of the bundle.
    """
    for captured in captures:  # first of all, for their order
        stages.update(stage_entries(captured))
    packages = staging / _NEW / PACKAGES
    kept, done, total = {} if old is None else reusable_packages(out, old), 0, sum(len(captured.parts) for captured in captures)

    def finish(settled: _Settled, seconds: float, *, reused: bool) -> Iterator[StageDone]:
        nonlocal done
        package, entries = settled.package, stage_entries(settled.captured)
        for part in settled.captured.parts:
            done, name = done + 1, part.recipe.name
            proof = settled.proofs.get(name, Proof())
            stages[name] = replace(entries[name], errors=proof.errors or None, repairs=settled.repairs.get(name))
            yield StageDone(
                stage=name,
                reused=reused,
                seconds=seconds,
                size_bytes=_size(package),
                done=done,
                total=total,
                warnings=_warnings(part, package, {name: proof}),
                errors=proof.errors or None,
            )

    for captured in captures:
        if stage := kept.get(captured.fingerprint):
            settled = _as_recorded(captured, out / stage, {} if old is None else old.stages)
            if check and any(part.recipe.name not in settled.proofs for part in captured.parts):
                settled = replace(settled, proofs=_prove(captured, out / stage, staging))
            keep_package(out / stage, packages / f"{captured.recipe.name}.mlpackage")
            yield from finish(settled, 0.0, reused=True)
    todo = {captured.recipe.name: captured for captured in captures if captured.fingerprint not in kept}
    for name, result, seconds in _convert_all(list(todo.values()), staging, jobs):
        settled = _settle(todo[name], result, staging, check)
        moved = settled.package.rename(packages / settled.package.name)
        yield from finish(replace(settled, package=moved), seconds, reused=False)
    present = set() if old is None else {stage.package for stage in old.stages.values()}
    return bool(todo) or present != {stage.package for stage in stages.values()}


def _warnings(part: Captured, package: Path, proofs: Mapping[str, Proof]) -> tuple[str, ...]:
    """What is to be said of one function of a saved package, or of its only one."""
    loops = (text for graph in read_program(package).functions.values() for text in warn_of_loops(graph))
    return (*part.warnings, *loops, *(proof.warning for proof in proofs.values() if proof.warning))


@dataclass(frozen=True, slots=True)
class _Settled:
    """A package that may be put in place, with the proofs and the repairs of its functions by name."""

    captured: Captured
    package: Path
    proofs: Mapping[str, Proof]
    repairs: Mapping[str, Any]


def _as_recorded(captured: Captured, package: Path, entries: Mapping[str, StageEntry]) -> _Settled:
    """A package that is in place already, with what the manifest says of it."""
    proofs = {name: Proof(entry.errors) for name, entry in entries.items() if entry.errors}
    return _Settled(captured, package, proofs, {name: entry.repairs for name, entry in entries.items() if entry.repairs is not None})


def _settle(captured: Captured, result: Path | ExportError, staging: Path, check: bool) -> _Settled:
    """The package of a captured recipe, repaired and proven: that which was converted, or that of the other front end.

    Both have to fail for the ``ExportError`` of the first, with the places of writes that may be why.
    """
    try:
        if isinstance(result, ExportError):
            raise result
        if captured.lost_writes and captured.front_end == "trace" and not check:
            raise ExportError(f"{captured.recipe.name}: not proven to be the module")
        return _judge(captured, result, staging, check)
    except ExportError as error:
        if isinstance(error.__cause__, OSError | BundleError):
            raise
        if captured.recipe.front_end != "auto":
            raise ExportError(f"{error}{advice_on_writes(captured)}") from error
        try:
            other = capture_by_other(captured)
            package = _convert(conversion_of(other), staging / _BY_OTHER)
            return _judge(other, package, staging, check)
        except ExportError:
            raise ExportError(f"{error}{advice_on_writes(captured)}") from error


def _judge(captured: Captured, package: Path, staging: Path, check: bool) -> _Settled:
    """A saved package, repaired if its recipe says so, with proofs, none without ``check``.

    ``ExportError`` where it is not to be put in place.
    """
    _check_shapes(captured, package)
    repairs = repair_package(captured.recipe, package, staging, check=check) if captured.recipe.engine_safe else {}
    return _Settled(captured, package, _prove(captured, package, staging) if check else {}, repairs)


def _check_shapes(captured: Captured, package: Path) -> None:
    """Where shapes inside depend on values, those of the outputs do not."""
    if captured.data_shapes and not captured.recipe.shapes:
        graph, _ = read_program(package).function()
        if names := [value.name for value in graph.outputs if value.shape is None or None in value.shape]:
            raise ExportError(
                f"{captured.recipe.name}: the shape of {', '.join(map(repr, names))} depends on values, by {captured.data_shapes}; "
                "return all places, and a mask of those that count"
            )


def _prove(captured: Captured, package: Path, staging: Path) -> dict[str, Proof]:
    """Proofs of all functions of a saved package, by name."""

    def convert_fp32(part: Captured) -> Path:
        conversion = conversion_of(replace(part, functions=()))
        entry = replace(conversion.entry, recipe={**conversion.entry.recipe, "precision": "fp32"})
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(staging / _AT_FLOAT32)
        (staging / _AT_FLOAT32).mkdir()
        return convert(replace(conversion, entry=entry), staging / _AT_FLOAT32 / package.name)

    return {
        part.recipe.name: prove(part.recipe, package, partial(convert_fp32, part), part.recipe.name if captured.functions else None)
        for part in captured.parts
    }


def _convert_all(captures: Sequence[Captured], staging: Path, jobs: int | None) -> Iterator[tuple[str, Path | ExportError, float]]:
    """Convert side by side; yields the name, the package or why there is none, and the seconds of a stage as soon as it is there."""
    if not captures:
        return
    conversions = [conversion_of(captured) for captured in captures]
    # A user's lowering or pass stays where it is: another process cannot import its function, and to execute the file there would make the
    # modules again.
    has_users = user_lowerings() or any(part.recipe.passes for captured in captures for part in captured.parts)
    processes = 1 if has_users else min(jobs or os.cpu_count() or 1, len(conversions))
    if processes == 1:
        for conversion in conversions:
            yield conversion.name, *_timed_convert(conversion, staging)
        return
    # Spawned, not forked: the parent has used torch's thread pool, which a fork would copy in an unknown state.
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"), initializer=_one_thread)
    try:
        futures: dict[Future[tuple[Path | ExportError, float]], str] = {
            pool.submit(_timed_convert, conversion, staging): conversion.name for conversion in conversions
        }
        for future in as_completed(futures):
            try:
                package, seconds = future.result()
            except BrokenProcessPool as error:
                raise ExportError(f"{futures[future]}: the converting process was killed; was there enough memory?") from error
            yield futures[future], package, seconds
    finally:
        pool.shutdown(cancel_futures=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


def _timed_convert(conversion: Conversion, staging: Path) -> tuple[Path | ExportError, float]:
    began = time.monotonic()
    try:
        return _convert(conversion, staging), time.monotonic() - began
    except ExportError as error:
        return error, time.monotonic() - began


def conversion_of(captured: Captured) -> Conversion:
    """The converter's work for a captured recipe, and for its functions."""
    entries = stage_entries(captured)
    first, *further = [
        Conversion(
            program=serialised(part),
            is_exported=isinstance(part.program, ExportedProgram),
            entry=entries[part.recipe.name],
            removed_passes=part.removed_passes,
            passes=tuple(part.recipe.passes),
            prefix=part.prefix,
        )
        for part in captured.parts
    ]
    return replace(first, functions=tuple(further))


def stage_entries(captured: Captured) -> dict[str, StageEntry]:
    """Manifest entries of the package of a captured recipe: one, or one for every function."""
    name, fingerprint = captured.recipe.name, captured.fingerprint
    return {
        part.recipe.name: StageEntry(
            package=f"{PACKAGES}/{name}.mlpackage",
            fingerprint=fingerprint,
            inputs=dict(part.recipe.inputs),
            outputs=part.outputs,
            recipe={**part.recipe.to_json(), "weights": weights_digest(part.recipe.module), "front_end": part.front_end},
            function=part.recipe.name if captured.functions else None,
        )
        for part in captured.parts
    }


def _convert(conversion: Conversion, staging: Path) -> Path:
    folder = staging / conversion.name
    folder.mkdir(parents=True)
    return convert(conversion, folder / f"{conversion.name}.mlpackage")


def reusable_packages(out: Path, manifest: Manifest) -> dict[str, str]:
    """Fingerprint -> path of every package of the present bundle whose files are all as recorded."""
    problems = damaged_files(out, manifest)
    return {
        stage.fingerprint: stage.package
        for stage in manifest.stages.values()
        if not any(problem.is_in(stage.package) for problem in problems)
    }


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn what the system refuses into one clear error."""
    try:
        yield
    except OSError as error:
        raise ExportError(f"{out} could not be written: {error.strerror or error}; the previous bundle, if any, is as it was") from error


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("coreflow", "coremltools", "torch", "numpy")}
    return {**packages, "python": platform.python_version()}
