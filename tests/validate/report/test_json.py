"""Reports as files for programs: the schema is published and kept, and what does not follow it is refused in one sentence."""

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from coreflow.models.errors import InputError
from coreflow.validate.report.json import read_report, to_json, without_pictures, write_report
from coreflow.validate.report.model import Plots
from coreflow.validate.report.schema import SCHEMA_VERSION, misfit, schema

PUBLISHED = Path(__file__).parents[3] / "docs/report.schema.json"
VALIDATOR = Draft202012Validator(schema())


@pytest.fixture(params=["bare", "whole", "bundle", "empty bundle", "hostile"])
def report(request: pytest.FixtureRequest, make: SimpleNamespace) -> Any:
    return {
        "bare": lambda: make.stage(make.output()),
        "whole": make.whole,
        "bundle": lambda: make.bundle(make.whole(), make.stage(name="other", verdict="incomplete")),
        "empty bundle": lambda: make.bundle(cascade=None),
        "hostile": make.hostile,
    }[request.param]()


def test_the_published_schema_is_the_one_of_the_dataclasses() -> None:
    assert json.loads(PUBLISHED.read_text()) == schema(), "python -m coreflow.validate.report.schema > docs/report.schema.json"
    Draft202012Validator.check_schema(schema())


def test_every_report_follows_the_schema_and_survives_a_round_trip(report: Any, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_report(path, report)
    plain = json.loads(path.read_text(), parse_constant=pytest.fail)
    VALIDATOR.validate(plain)
    assert read_report(path) == plain == to_json(report)


def test_a_real_report_follows_the_schema(real: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "report.json", real)
    VALIDATOR.validate(read_report(tmp_path / "report.json"))
    assert real.ops and real.culprits and all(item.plots.reference for item in real.outputs.values())


def test_json_has_no_nan_and_holds_derived_figures(make: SimpleNamespace) -> None:
    report = make.bundle(make.stage(make.output(), make.failing(), verdict="fail", cause="non-finite"), cause="non-finite")
    plain = to_json(report)
    json.dumps(plain, allow_nan=False)
    assert (plain["schema_version"], plain["report"], plain["kind"]) == (3, "coreflow validation of a bundle", "energy-flow")
    assert (plain["verdict"], plain["cause"], plain["exit_code"]) == ("fail", "non-finite", 3)
    assert plain["failing_stages"] == ["encoder"] and plain["cascade"]["tokens"]["share"] == pytest.approx(8 / 9)
    bad = plain["stages"]["encoder"]["outputs"]["hidden"]
    assert (bad["rho_rms"], bad["max_abs"], bad["outcome"], bad["largest_jump"]) == (None, None, "fail", "R4")


def test_a_baseline_keeps_the_numbers_and_drops_pictures_and_ops(report: Any, tmp_path: Path) -> None:
    bare = to_json(without_pictures(report))
    VALIDATOR.validate(bare)
    full = to_json(report)

    def numbers(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: numbers(value) for key, value in part.items() if key not in ("plots", "ops")}
        return [numbers(item) for item in part] if isinstance(part, list) else part

    assert numbers(bare) == numbers(full)
    kept = [at(bare, path) for path in places(bare) if path and path[-1] in ("plots", "ops")]
    assert all(not part or not any(part.values()) for part in kept)


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"report": NaN}', "NaN is no JSON number"),
        ("[1, 2]", "is not a report"),
        ('{"report": "else"}', "is not a report"),
        ('{"report": ["coreflow validation of a package"]}', "is not a report"),
        ('{"report": "coreflow validation of a package", "schema_version": 99}', "schema version 99, and this coreflow reads 1 to 3"),
        ('{"report": "coreflow validation of a package"}', "schema version None"),
        ('{"report": "coreflow validation of a package", "schema_version": 3}', "is not a whole report: the report lacks name, package"),
        ('{"report": "coreflow validation of a package", "schema_version": 2}', "is not a whole report: the report lacks name, package"),
        ('{"kind": "coreflow.validation.package", "schema_version": 1}', "is not a whole report: the report lacks name, package"),
        ('{"kind": "energy-flow", "stages": 1, "schema_version": 1}', "is not a whole report: the report lacks bundle, name"),
        ('{"kind": "energy-flow", "schema_version": 1}', "is not a report"),
    ],
)
def test_files_that_are_no_reports_are_refused_in_one_sentence(tmp_path: Path, written: str, said: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(written)
    with pytest.raises(InputError, match=r"report\.json") as caught:
        read_report(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        read_report(tmp_path / "nowhere.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_report(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not JSON"):
        read_report(tmp_path / "binary.json")


def test_a_wrong_value_is_named_with_its_place(make: SimpleNamespace, tmp_path: Path) -> None:
    plain = to_json(make.bundle(make.stage(make.output())))
    plain["stages"]["encoder"]["outputs"]["surface"]["gates"][0]["outcome"] = "splendid"
    (tmp_path / "report.json").write_text(json.dumps(plain))
    with pytest.raises(InputError) as caught:
        read_report(tmp_path / "report.json")
    assert 'stages.encoder.outputs.surface.gates[0].outcome is "splendid"; one of "pass", "warn", "fail"' in str(caught.value)


def places(plain: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(plain, dict | list):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield from places(value, (*path, key))


def at(plain: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        plain = plain[key]
    return plain


def test_the_reader_refuses_exactly_the_reports_that_a_json_schema_validator_refuses(make: SimpleNamespace) -> None:
    """Hundreds of damaged reports; the package ``jsonschema`` is the oracle."""
    few = Plots(reference=(1.0, 2.0), error=(0.5, 0.0), edges=(-1.0, 0.0), actual_counts=(2,), simulated_counts=(1,))
    outputs = {"hidden": make.failing(plots=few)}
    report = make.bundle(make.whole(ops=make.ops(2), outputs=outputs), make.stage(make.output(), name="other"))
    whole, random_, rules = to_json(report), random.Random(0), schema()
    strangers: tuple[Any, ...] = (None, True, False, 0, -1, 1.0, 1.5, 10**20, "", "pass", "R3", [], [None], ["x"], {}, {"x": 1}, [[]], 2)
    chosen = random_.sample([path for path in places(whole) if path], 250)
    refused = 0
    for path in chosen:
        plain = copy.deepcopy(whole)
        holder = at(plain, path[:-1])
        action = random_.choice(("replace", "replace", "remove", "add"))
        if action == "replace":
            holder[path[-1]] = random_.choice(strangers)
        elif action == "remove":
            del holder[path[-1]]
        elif isinstance(holder, dict):
            holder["stranger"] = random_.choice(strangers)
        # The file's kind is decided before its schema: "oneOf" would only repeat it.
        kind = rules["$defs"]["BundleReportFile"]
        oracle = Draft202012Validator({**kind, "$defs": rules["$defs"]})
        wrong = misfit(plain, kind, rules["$defs"])
        assert (wrong is None) == oracle.is_valid(plain), (path, action, wrong)
        refused += wrong is not None
    assert 100 < refused < 245, "both kinds are tried"
    assert rules["$defs"]["ReportFile"]["properties"]["schema_version"]["const"] == SCHEMA_VERSION
