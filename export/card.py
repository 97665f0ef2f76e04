"""The model card of a bundle: a README.md that says what its packages take and give, how they were proven, and what they come from."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from coreflow.export.package.manifest import Manifest, StageEntry
from coreflow.models.images import ImageSpec
from coreflow.models.spec import TensorSpec
from coreflow.models.storage import write_atomically

CARD = "README.md"
_MARK = "<!-- written by coreflow export; a card without this line is left alone -->"


def write_card(bundle: Path, manifest: Manifest) -> None:
    """Write the card of ``manifest`` into ``bundle``, over an earlier one of ours; a README.md of somebody else stays.

    The manifest does not list it: a card may be edited.
    """
    file = bundle / CARD
    if not file.exists() or is_ours(file):
        text = model_card(manifest)
        write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def is_ours(file: Path) -> bool:
    """Whether ``file`` is a card that an export wrote."""
    try:
        return _MARK in file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def model_card(manifest: Manifest) -> str:
    """The card as Markdown, with the front matter that model hubs read.

    >>> print(model_card(read_manifest(Path("artifacts/mine"))))
    """
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
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
    yield from ("", "## Provenance", "")
    source = manifest.settings.get("source")
    yield from (f"- exported from: {source}",) if source else ()
    yield f"- licence: {', '.join(licences) or 'not said'}"
    yield f"- versions: {', '.join(f'{name} {number}' for name, number in manifest.versions.items())}"
    yield "- every file but this card has its SHA-256 in `manifest.json`"
    yield f"- `coreflow validate {manifest.name}` compares the models with torch"


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
