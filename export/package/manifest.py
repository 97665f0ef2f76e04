"""The manifest of a bundle: its stages, and a digest of every file. Standard library only.

    artifacts/NAME/
      manifest.json                replaced in one rename
      packages/STAGE.mlpackage     replaced together, as one folder
      companions/<digest>/         tokenizers, reference weights, settings, golden samples

An export that replaces packages goes through these steps, and a bundle is whole after each of them, wherever it is killed:

    1. manifest.next.json is written         the old manifest and ``packages`` are the bundle
    2. packages -> packages.replaced         the old manifest is, with its packages in ``packages.replaced``
    3. the new packages -> packages          manifest.next.json and ``packages`` are
    4. manifest.next.json -> manifest.json   the new manifest and ``packages`` are; ``packages.replaced`` is deleted

Which files there are says which step was the last (``read_manifest``). The next export goes on from there, and deletes what no manifest
names. Bundles of earlier versions have packages in folders named after their fingerprints.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from coreflow.models.errors import BundleError, ConfigError, FileProblem
from coreflow.models.images import spec_from_json
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import write_json

SCHEMA = 2  # 1 has no functions, and is still written where there are none
MANIFEST, NEXT = "manifest.json", "manifest.next.json"
PACKAGES, REPLACED, COMPANIONS = "packages", "packages.replaced", "companions"


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEntry:
    """One package of a bundle.

    >>> stage = read_manifest(Path("artifacts/mine")).stages["classifier"]
    >>> stage.package, stage.inputs["ids"].shape
    """

    package: str  # path below the bundle
    fingerprint: str  # of the recipe, the traced operations, the weights and the versions
    inputs: Mapping[str, TensorSpec]
    outputs: Mapping[str, TensorSpec]
    recipe: Mapping[str, Any]  # ``Recipe.to_json``, and "weights": digest of the module's parameters
    function: str | None = None  # of a package of several
    errors: Mapping[str, float] | None = None  # of every output (``export.proof``); None where the program was not proven to be its module
    repairs: Mapping[str, Any] | None = None  # for the Neural Engine: target, changes, errors before and after (``export.proof.repairs``)


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Digest and size of one file.

    >>> sum(entry.size_bytes for entry in read_manifest(Path("artifacts/demo")).files.values())
    """

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The content of a bundle: its packages, its companions, and a digest of every file.

    >>> manifest = read_manifest(Path("artifacts/demo"))
    >>> manifest.stages["classifier"].package
    """

    name: str
    kind: str  # of a model family, or "recipes" for a user's own
    created: str  # ISO 8601, UTC
    versions: Mapping[str, str]
    stages: Mapping[str, StageEntry]
    companions: str | None = None  # folder below the bundle
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, FileEntry] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data, inverse of ``manifest_from_json``."""
        return {
            "schema": SCHEMA if any(stage.function for stage in self.stages.values()) else 1,
            "name": self.name,
            "kind": self.kind,
            "created": self.created,
            "versions": dict(self.versions),
            "stages": {
                name: {
                    "package": stage.package,
                    "fingerprint": stage.fingerprint,
                    "inputs": {key: spec.to_json() for key, spec in stage.inputs.items()},
                    "outputs": {key: spec.to_json() for key, spec in stage.outputs.items()},
                    "recipe": dict(stage.recipe),
                    **({} if stage.function is None else {"function": stage.function}),
                    "proof": {"checked": stage.errors is not None, "errors": dict(stage.errors or {})},
                    **({} if stage.repairs is None else {"repairs": dict(stage.repairs)}),
                }
                for name, stage in self.stages.items()
            },
            "companions": self.companions,
            "settings": dict(self.settings),
            "files": {path: {"sha256": entry.sha256, "size_bytes": entry.size_bytes} for path, entry in self.files.items()},
        }


def manifest_from_json(plain: Any) -> Manifest:
    """A manifest from parsed JSON; ``BundleError`` for a newer schema or anything that is not a manifest."""
    if not isinstance(plain, dict) or not isinstance(plain.get("schema"), int):
        raise BundleError("is not a coreflow manifest: it has no schema number")
    if plain["schema"] > SCHEMA:
        raise BundleError(f"has schema {plain['schema']}, and this coreflow reads up to {SCHEMA}; install a newer coreflow")
    try:
        stages = {
            str(name): StageEntry(
                package=_inside(stage["package"]),
                fingerprint=str(stage["fingerprint"]),
                inputs=_specs(stage["inputs"]),
                outputs=_specs(stage["outputs"]),
                recipe=dict(stage["recipe"]),
                function=None if stage.get("function") is None else str(stage["function"]),
                errors=_errors(stage.get("proof")),
                repairs=None if stage.get("repairs") is None else dict(stage["repairs"]),
            )
            for name, stage in plain["stages"].items()
        }
        files = {
            _inside(path): FileEntry(sha256=str(entry["sha256"]), size_bytes=int(entry["size_bytes"]))
            for path, entry in plain["files"].items()
        }
        companions = plain["companions"]
        return Manifest(
            name=str(plain["name"]),
            kind=str(plain["kind"]),
            created=str(plain["created"]),
            versions=dict(plain["versions"]),
            stages=stages,
            companions=None if companions is None else _inside(companions),
            settings=dict(plain["settings"]),
            files=files,
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise BundleError(f"is not a complete manifest: {type(error).__name__} {error}") from error


def read_manifest(bundle: Path, *, verify: bool = True) -> Manifest:
    """The manifest of the bundle at ``bundle``.

    With ``verify``, every file is read and compared with its digest; a ``BundleError`` names all that are missing or changed.
    """
    step = last_step(bundle)
    path = bundle / (NEXT if step == 3 else MANIFEST)
    if not path.is_file():  # an export has just gone on
        path = bundle / MANIFEST
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(f"{bundle} is not a bundle: it has no {MANIFEST}; `coreflow export` makes one", path=bundle) from None
    except (OSError, ValueError, RecursionError) as error:
        raise BundleError(f"{path} cannot be read: {error}", path=path) from error
    try:
        manifest = manifest_from_json(plain)
    except BundleError as error:
        raise BundleError(f"{path} {error}", path=path) from error
    if step == 2:
        manifest = _with_replaced_packages(manifest)
    if verify and (problems := damaged_files(bundle, manifest)):
        text = f"{bundle}: {'; '.join(problem.text for problem in problems)}. Export it again, or copy it again from where it came"
        raise BundleError(text, path=bundle, problems=problems)
    return manifest


def last_step(bundle: Path) -> int:
    """The last step (see above) of an export that is under way, or was killed; 0 where there is none."""
    if not (bundle / NEXT).exists():
        return 0
    if not (bundle / REPLACED).exists():
        return 1
    return 3 if (bundle / PACKAGES).exists() else 2


def _with_replaced_packages(manifest: Manifest) -> Manifest:
    """``manifest`` while its packages have another folder."""

    def moved(path: str) -> str:
        return f"{REPLACED}{path.removeprefix(PACKAGES)}" if path.startswith(f"{PACKAGES}/") else path

    stages = {name: replace(stage, package=moved(stage.package)) for name, stage in manifest.stages.items()}
    return replace(manifest, stages=stages, files={moved(path): entry for path, entry in manifest.files.items()})


def damaged_files(bundle: Path, manifest: Manifest) -> list[FileProblem]:
    """Every file that is missing, changed, or outside the bundle through a link, and every package without a recorded file."""
    problems = []
    root = bundle.resolve()
    for name, entry in manifest.files.items():
        path = bundle / name
        if not path.resolve().is_relative_to(root):
            problems.append(FileProblem(name, "outside", f"{name} leads out of the bundle"))
        elif not path.is_file():
            problems.append(FileProblem(name, "missing", f"{name} is missing"))
        elif path.stat().st_size != entry.size_bytes:
            problems.append(FileProblem(name, "size", f"{name} has {path.stat().st_size} bytes, not {entry.size_bytes}"))
        elif file_digest(path) != entry.sha256:
            problems.append(FileProblem(name, "digest", f"{name} was changed: its digest is not the recorded one"))
    unlisted = [
        stage.package for stage in manifest.stages.values() if not any(name.startswith(f"{stage.package}/") for name in manifest.files)
    ]
    return problems + [FileProblem(package, "unlisted", f"{package} has no recorded file") for package in unlisted]


def list_files(bundle: Path, folders: list[str]) -> dict[str, FileEntry]:
    """An entry for every file below these folders of the bundle, in the order of their names."""
    paths = sorted(path for folder in folders for path in (bundle / folder).rglob("*") if path.is_file())
    return {path.relative_to(bundle).as_posix(): FileEntry(sha256=file_digest(path), size_bytes=path.stat().st_size) for path in paths}


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(bundle: Path, manifest: Manifest) -> None:
    """Replace the manifest in one rename: before, the bundle is the old one; after, the new one."""
    write_json(bundle / MANIFEST, manifest.to_json())


def _inside(path: Any) -> str:
    """``path`` if it is a relative path that stays where it is resolved; ``ValueError`` otherwise."""
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts or "\\" in str(path) or ":" in pure.parts[0]:
        raise ValueError(f"the path {str(path)!r} leads out of the bundle")
    return str(pure)


def _errors(proof: Any) -> Mapping[str, float] | None:
    """None of bundles before there were proofs, too."""
    return {str(name): float(error) for name, error in proof["errors"].items()} if proof and proof["checked"] else None


def _specs(plain: Mapping[str, Any]) -> dict[str, TensorSpec]:
    return {str(name): spec_from_json(spec) for name, spec in plain.items()}
