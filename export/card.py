"""The model card of a bundle: a README.md that says what its packages take and give, how they were proven, and what they come from."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from coreflow.export.package.manifest import Manifest, StageEntry, damaged_files, read_manifest
from coreflow.models.images import ImageSpec
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import write_atomically, write_json
from coreflow.models.versions import version

CARD, VERDICTS = "README.md", "verdicts.json"  # of a bundle; the manifest lists neither
TOGETHER = "all together"  # the verdict on a whole bundle, among those on its stages; no stage can have this name
_MARK = "<!-- written by coreflow export; a card without this line is left alone -->"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a validation found of one stage, or of all together.

    >>> read_verdicts(Path("artifacts/mine"))["classifier"].outcome
    'pass'
    """

    outcome: str
    conditions: str  # options that change what passes, as they were given
    date: str  # of the report
    coreflow: str  # version that validated
    fingerprint: str  # of the stage at that time


def record_verdicts(bundle: Path, outcomes: Mapping[str, str], *, date: str, conditions: str = "") -> bool:
    """Keep the outcome of every stage, and of ``TOGETHER``, beside the manifest, and show them in the card.

    False where files are not as the manifest records them: its fingerprints would not be theirs.
    """
    manifest = read_manifest(bundle, verify=False)
    if damaged_files(bundle, manifest):
        return False
    verdicts = {
        name: Verdict(outcome=outcomes[name], conditions=conditions, date=date, coreflow=str(version("coreflow")), fingerprint=fingerprint)
        for name, fingerprint in _fingerprints(manifest).items()
        if name in outcomes
    }
    write_json(bundle / VERDICTS, {name: asdict(verdict) for name, verdict in (read_verdicts(bundle, manifest) | verdicts).items()})
    write_card(bundle, manifest)
    return True


def read_verdicts(bundle: Path, manifest: Manifest | None = None) -> dict[str, Verdict]:
    """The verdicts that are kept beside the manifest, by stage, without those on packages that were replaced since."""
    fingerprints = _fingerprints(manifest or read_manifest(bundle, verify=False))
    try:
        verdicts = {name: Verdict(**plain) for name, plain in json.loads((bundle / VERDICTS).read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}  # a file of somebody else, or none
    return {name: verdict for name, verdict in verdicts.items() if verdict.fingerprint == fingerprints.get(name)}


def _fingerprints(manifest: Manifest) -> dict[str, str]:
    fingerprints = {name: stage.fingerprint for name, stage in manifest.stages.items()}
    return {**fingerprints, TOGETHER: hashlib.sha256("".join(fingerprints.values()).encode()).hexdigest()}


def write_card(bundle: Path, manifest: Manifest) -> None:
    """Write the card of ``manifest`` into ``bundle``, over an earlier one of ours; a README.md of somebody else stays.

    The manifest does not list it: a card may be edited.
    """
    file = bundle / CARD
    if not file.exists() or is_ours(file):
        text = model_card(manifest, read_verdicts(bundle, manifest))
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def is_ours(file: Path) -> bool:
    """Whether ``file`` is a card that an export wrote."""
    try:
        return _MARK in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def model_card(manifest: Manifest, verdicts: Mapping[str, Verdict] | None = None) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    >>> print(model_card(read_manifest(Path("artifacts/mine"))))
    """
    return "\n".join(_lines(manifest, verdicts or {})) + "\n"


def _lines(manifest: Manifest, verdicts: Mapping[str, Verdict]) -> Iterator[str]:
    licences = sorted({licence for stage in manifest.stages.values() if (licence := _said(stage, "licence", "license"))})
    yield from ("---", "library_name: coreml", *(f"license: {licence.lower()}" for licence in licences[:1]), "tags: [coreml]", "---")
    yield from (_MARK, "", f"# {manifest.name}", "")
    count = len(manifest.stages)
    yield f"{count} Core ML {'model' if count == 1 else 'models'}, exported by coreflow on {manifest.created[:10]}."
    for name, stage in manifest.stages.items():
        yield from ("", f"## {name}", "")
        if text := stage.recipe.get("description"):
            yield from (str(text), "")
        yield from _facts(manifest, stage)
        yield from ("", "| | name | shape | type |", "|---|---|---|---|")
        yield from (f"| input | `{key}` | {_shape(spec)} | {_kind(spec)} |" for key, spec in stage.inputs.items())
        yield from (f"| output | `{key}` | {_shape(spec)} | {_kind(spec)} |" for key, spec in stage.outputs.items())
    yield from ("", "## Verdict", "")
    if verdicts:
        yield from ("| | `coreflow validate` | on | coreflow | fingerprint |", "|---|---|---|---|---|")
        for name, verdict in verdicts.items():
            outcome = f"{verdict.outcome} with {verdict.conditions}" if verdict.conditions else verdict.outcome
            yield f"| {name} | {outcome} | {verdict.date[:10]} | {verdict.coreflow} | `{verdict.fingerprint[:12]}` |"
    else:
        yield f"Not validated yet: `coreflow validate {manifest.name} --report report.html` writes it here."
    yield from ("", "## Provenance", "")
    source = manifest.settings.get("source")
    yield from (f"- exported from: {source}",) if source else ()
    yield f"- licence: {', '.join(licences) or 'not said'}"
    yield f"- versions: {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}"
    yield "- every file of the models has its SHA-256 in `manifest.json`"


def _facts(manifest: Manifest, stage: StageEntry) -> Iterator[str]:
    size = sum(entry.size_bytes for path, entry in manifest.files.items() if path.startswith(f"{stage.package}/"))
    function = f", function `{stage.function}`" if stage.function else ""
    yield f"- file: `{stage.package}`{function}, {size / 1e6:.1f} MB"
    yield f"- target {stage.recipe['target']}, {stage.recipe['precision']}"
    if stage.errors:
        worst = max(stage.errors.values())
        yield f"- proven when it was exported: in float64 the saved program is the torch module within {worst:.1e} of its outputs"
    else:
        yield "- not proven when it was exported"
    if changes := (stage.repairs or {}).get("changes"):
        names = ", ".join(str(change["repair"]) for change in changes)
        yield f"- repaired for the Neural Engine of {(stage.repairs or {})['target']}: {names}"
    for key, value in stage.recipe.get("metadata", {}).items():
        yield f"- {key}: {value}"


def _said(stage: StageEntry, *keys: str) -> str | None:
    metadata: Mapping[str, str] = stage.recipe.get("metadata", {})
    return next((metadata[key] for key in keys if key in metadata), None)


def _shape(spec: TensorSpec) -> str:
    return " × ".join(map(str, spec.shape))


def _kind(spec: TensorSpec) -> str:
    if isinstance(spec, ImageSpec):
        return f"{spec.colour} image"
    if spec.values is not None:
        return f"{spec.dtype}, {' or '.join(f'{value:g}' for value in spec.values)}"
    return spec.dtype if spec.bounds is None else f"{spec.dtype}, {spec.bounds[0]:g} to {spec.bounds[1]:g}"
