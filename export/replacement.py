"""Puts the packages of a bundle in place, all at once, and clears away what killed exports left; the steps are ``package.manifest``'s."""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from coreflow.export.card import CARD
from coreflow.export.package.manifest import (
    COMPANIONS,
    MANIFEST,
    NEXT,
    PACKAGES,
    REPLACED,
    Manifest,
    last_step,
    list_files,
    write_manifest,
)
from coreflow.models.errors import BundleError
from coreflow.models.storage import sync_folder, write_json

STAGING, LOCK = ".staging-", ".lock"


def put_in_place(packages: Path | None, out: Path, manifest: Manifest) -> None:
    """Make ``manifest`` that of the bundle ``out``, whose packages are those in the folder ``packages``; None: those that are there.

    The bundle is the old one or the new one, wherever this is interrupted.
    """
    place = out / PACKAGES
    if packages is None:
        write_manifest(out, manifest)
        return
    _sync(packages)
    if not place.exists():
        _rename(packages, place)
        write_manifest(out, manifest)
        return
    write_json(out / NEXT, manifest.to_json())
    _rename(place, out / REPLACED)
    _rename(packages, place)
    _rename(out / NEXT, out / MANIFEST)
    shutil.rmtree(out / REPLACED, ignore_errors=True)


def recover(out: Path) -> None:
    """Bring the bundle ``out`` to what it is, where an export was killed between two steps."""
    step = last_step(out)
    if step == 2:
        _rename(out / REPLACED, out / PACKAGES)
    if step == 3:
        _rename(out / NEXT, out / MANIFEST)
    (out / NEXT).unlink(missing_ok=True)
    shutil.rmtree(out / REPLACED, ignore_errors=True)


def sweep(out: Path, manifest: Manifest | None) -> None:
    """Remove what no manifest names: leftovers of killed exports, and companions that were replaced."""
    named = [] if manifest is None else [*(stage.package for stage in manifest.stages.values()), manifest.companions or ""]
    for left in out.glob(f"{STAGING}*"):
        shutil.rmtree(left, ignore_errors=True)
    for name in (MANIFEST, NEXT, CARD):  # files that were being written
        for left in out.glob(f".{name}-*"):
            left.unlink(missing_ok=True)
    for path in (*out.glob(f"{PACKAGES}/*"), *out.glob(f"{COMPANIONS}/*")):
        name = path.relative_to(out).as_posix()
        if not any(kept == name or kept.startswith(f"{name}/") for kept in named):
            shutil.rmtree(path, ignore_errors=True)
    if manifest is None:
        shutil.rmtree(out / PACKAGES, ignore_errors=True)


def is_left_by_export(out: Path) -> bool:
    """Whether a folder without a manifest holds nothing but what a first, killed export leaves."""
    ours = {PACKAGES, COMPANIONS, LOCK}
    return all(path.name in ours or path.name.startswith((STAGING, f".{MANIFEST}-")) for path in out.iterdir())


def keep_package(package: Path, target: Path) -> None:
    """The files of a package of the present bundle in a folder of the next one, by another name for each where the system has that."""

    def link(source: str, copy: str) -> None:
        try:
            os.link(source, copy)
        except OSError:
            shutil.copy2(source, copy)

    shutil.copytree(package, target, copy_function=link)


def move_companions(source: Path, companions: Path) -> str:
    """Rename a finished folder to one below ``companions`` that is named after its content; returns the name."""
    target = companions / _folder_digest(source)[:16]
    if not (target.exists() and _folder_digest(target) == _folder_digest(source)):
        _sync(source)
        companions.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        _rename(source, target)
    return target.name


@contextlib.contextmanager
def only_writer(out: Path) -> Iterator[None]:
    """A lock that the system lets go of when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows, where an open file cannot be replaced anyway
        yield
        return
    path = out / LOCK
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file.fileno()).st_ino != path.stat().st_ino:  # the export before has just ended, and removed it
                raise BlockingIOError
        except OSError:
            raise BundleError(f"{out} is being written by another export; wait for it to end") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


@contextlib.contextmanager
def without_trace(out: Path) -> Iterator[None]:
    """After a failure, no folder where there was none."""
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        yield
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # those that hold something stay
        raise


def _rename(source: Path, target: Path) -> None:
    source.replace(target)
    sync_folder(target.parent)


def _sync(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            sync_folder(path)
    sync_folder(folder)


def _folder_digest(folder: Path) -> str:
    entries = list_files(folder, ["."])
    return hashlib.sha256(repr(sorted((name, entry.sha256) for name, entry in entries.items())).encode()).hexdigest()
