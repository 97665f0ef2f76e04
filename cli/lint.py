"""``coreflow lint``: what is known to go wrong, in the conversion of recipes and on the Neural Engine, found without running anything."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from coreflow.cli.console import print_json, warn
from coreflow.cli.options import json_option
from coreflow.models.errors import ConfigError

if TYPE_CHECKING:
    from coreflow.export.engine.bounds.hazards import Proofs
    from coreflow.export.engine.finding import Finding
    from coreflow.export.engine.lint import Data
    from coreflow.export.lint.suppressions import Suppression

_FORMS = "FILE.py:NAME of recipes, an .mlpackage, or a bundle"


def lint(
    source: Annotated[str | None, typer.Argument(help="FILE.py:NAME of recipes, an .mlpackage, or a bundle.")] = None,
    chip: Annotated[list[str] | None, typer.Option(help="Chip, as M4 or M4/macOS27; may be given again [default: M1 to M6].")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Inputs of one package (.npz, .safetensors, .jsonl): it is run to see its values.")
    ] = None,
    fail_on: Annotated[str, typer.Option("--fail-on", help="Exit with 1 from this severity on: error, warning or note.")] = "error",
    suppress: Annotated[list[str] | None, typer.Option(help="RULE:REASON or RULE@PLACE:REASON; may be given again.")] = None,
    suppressions: Annotated[Path | None, typer.Option(help="TOML file with a table [lint.suppress].")] = None,
    sarif: Annotated[Path | None, typer.Option(help="Write the findings as SARIF 2.1.0 too.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a map of the package or bundle too, for the first chip [default: M4].")] = None,
    rules: Annotated[bool, typer.Option("--rules", help="List the rules.")] = False,
    as_json: Annotated[bool, json_option("the findings", "or the rules of --rules")] = False,
) -> int:
    """Find what is converted wrongly, and what goes wrong on the Neural Engine or leaves it. Nothing runs but recipes, and --data."""
    from coreflow.export.engine.finding import Severity, is_at_least
    from coreflow.export.lint.catalogue import catalogue
    from coreflow.export.lint.suppressions import read_suppressions, split

    if rules:
        _list_rules(as_json)
        return 0
    if source is None:
        raise ConfigError(f"a source is missing; {_FORMS} is right, as in coreflow lint my_recipes.py:ENCODER")
    levels: tuple[Severity, ...] = get_args(Severity)
    least = next((level for level in levels if level == fail_on), None)
    if least is None:
        raise ConfigError(f"--fail-on {fail_on}: no such severity; {', '.join(levels)} are right", expected=levels)
    accepted = read_suppressions(suppress or (), suppressions, {entry.id for entry in catalogue()})
    chips = list(dict.fromkeys(chip or ()))
    examined = _examine(source, chips, data)
    kept, suppressed = split(examined.findings, accepted)
    _warn_of_idle(accepted, [finding for finding, _ in suppressed])
    if sarif is not None:
        _write_sarif(sarif, kept, suppressed, examined.files)
    if html is not None:
        _write_map(html, source, chips)
    if as_json:
        plain = [asdict(finding) | {"suppressed": None} for finding in kept]
        print_json([*plain, *(asdict(finding) | {"suppressed": reason} for finding, reason in suppressed)])
    else:
        from coreflow.cli.text.findings import show_findings

        show_findings(source, kept, suppressed, chips, examined.proofs)
    return int(any(is_at_least(finding.severity, least) for finding in kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """Findings; the path of every recipe and package that was looked at, by name; and the proofs of every function, by its label.

    >>> _examine("encoder.mlpackage", ["M4"], None).files
    {'encoder.mlpackage': 'encoder.mlpackage'}
    """

    findings: "Sequence[Finding]"
    files: dict[str, str]
    proofs: "dict[str, Proofs]"


def _examine(source: str, chips: Sequence[str], data: Path | None) -> Examined:
    from coreflow.export.engine.chips import find_chip
    from coreflow.export.lint.lint import examine_package, packages_of
    from coreflow.export.package.manifest import MANIFEST

    for chip in chips:
        find_chip(chip)
    path = Path(source)
    is_package = path.suffix == ".mlpackage" or (path / MANIFEST).is_file()
    packages = [path] if path.suffix == ".mlpackage" else packages_of(path) if is_package else []
    if data is not None and len(packages) != 1:
        kind = f"holds {len(packages)} packages" if is_package else "is no package"
        raise ConfigError(
            f"--data {data}: {source} {kind}; data are the inputs of one package, as in coreflow lint FILE.mlpackage --data FILE"
        )
    if not is_package:
        return _examine_recipes(source, chips)
    seen = None if data is None else _magnitudes(packages[0], data)
    results = {package: examine_package(package, chips, seen) for package in packages}
    return Examined(
        findings=[finding for result in results.values() for finding in result.findings],
        files={package.name: package.as_posix() for package in packages},
        proofs={
            package.name if len(result.proofs) == 1 else f"{package.name}, {function}": proofs
            for package, result in results.items()
            for function, proofs in result.proofs.items()
        },
    )


def _magnitudes(package: Path, data: Path) -> "Data":
    """What the ops of the default function have over the samples in a file; ``InputError`` for data that do not fit."""
    from coreflow.export.package.mlpackage import read_program
    from coreflow.runtime.backend import LoadOptions
    from coreflow.runtime.lifted import LiftedModel
    from coreflow.validate.inputs.sample_files import read_samples
    from coreflow.validate.ladder.magnitudes import magnitudes

    program = read_program(package)
    graph, interface = program.function()
    model = LiftedModel(program, LoadOptions(numerics="fp64", engine="interpreter"))
    samples = read_samples(data, model.inputs, interface=interface)
    return {graph.name: magnitudes(model, [sample.inputs for sample in samples])}


def _examine_recipes(source: str, chips: Sequence[str]) -> Examined:
    """By what the modules call; with ``chips`` by the converted programs too."""
    from coreflow.export.lint.lint import lint_conversion_of, lint_recipe
    from coreflow.export.user_files import is_recipe_source, load_recipes

    if not is_recipe_source(source):
        raise ConfigError(f"{source} cannot be linted; {_FORMS} is right")
    recipes, file = load_recipes(source), source.partition(".py")[0] + ".py"
    findings = [finding for recipe in recipes for finding in lint_recipe(recipe)]
    if chips:
        findings += [finding for recipe in recipes for finding in lint_conversion_of(recipe, chips)]
    return Examined(findings=findings, files={recipe.name: file for recipe in recipes}, proofs={})


def _warn_of_idle(suppressions: "Sequence[Suppression]", suppressed: "Sequence[Finding]") -> None:
    for suppression in suppressions:
        if not any(suppression.covers(finding) for finding in suppressed):
            warn(f"nothing is suppressed by {suppression.rule}@{suppression.place} ({suppression.reason}); it can go")


def _write_sarif(file: Path, findings: "Sequence[Finding]", suppressed: "Sequence[tuple[Finding, str]]", files: dict[str, str]) -> None:
    import json

    from coreflow.export.lint.catalogue import catalogue
    from coreflow.export.lint.sarif import sarif

    try:
        file.write_text(json.dumps(sarif(findings, suppressed, catalogue(), files), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--sarif {file} cannot be written: {error.strerror or error}", path=file) from error


def _write_map(file: Path, source: str, chips: Sequence[str]) -> None:
    from coreflow.cli.place import functions_at
    from coreflow.cli.text.maps import write_map
    from coreflow.export.engine.targets import DEFAULT_TARGET, find_targets
    from coreflow.export.package.manifest import MANIFEST

    path = Path(source)
    if path.suffix != ".mlpackage" and not (path / MANIFEST).is_file():
        raise ConfigError(f"--html {file}: a map is of a saved program, and {source} is none; an .mlpackage or a bundle is right")
    write_map(file, functions_at(path, None), find_targets(chips[0] if chips else DEFAULT_TARGET)[0])


def _list_rules(as_json: bool) -> None:
    from coreflow.export.lint.catalogue import catalogue

    if not as_json:
        from coreflow.cli.text.findings import show_rules

        show_rules(catalogue())
        return
    listed: list[dict[str, Any]] = [asdict(entry) | {"source": entry.known.evidence.source} for entry in catalogue()]
    print_json(listed)
