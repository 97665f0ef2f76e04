"""Reports of older schema versions: committed files that the code of then wrote are read, checked and compared."""

import copy
import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from coreflow.cli.main import main
from coreflow.models.errors import InputError
from coreflow.validate.report.diff import compare
from coreflow.validate.report.json import read_report, to_json
from coreflow.validate.report.older import ADDED, VERSIONS
from coreflow.validate.report.schema import SCHEMA_VERSION, schema

FOLDER = Path(__file__).parent / "older"
FILES = sorted(FOLDER.glob("*.json"))  # by version and kind: every one was written by the code of its version
VALIDATOR = Draft202012Validator(schema())


def written(plain: Any, path: Path) -> Path:
    path.write_text(json.dumps(plain))
    return path


def test_every_older_version_is_here_by_a_package_and_a_bundle() -> None:
    assert [path.stem for path in FILES] == [f"version-{version}-{kind}" for version in VERSIONS[:-1] for kind in ("bundle", "package")]
    for path in FILES:
        plain = json.loads(path.read_text())
        assert f"version-{plain['schema_version']}-{'bundle' if 'stages' in plain else 'package'}" == path.stem


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_an_older_report_is_read_in_todays_form_with_its_numbers(path: Path) -> None:
    was, report = json.loads(path.read_text()), read_report(path)
    VALIDATOR.validate(report)
    assert report["schema_version"] == SCHEMA_VERSION
    stages = [(was, report)] if "stages" not in was else [(was["stages"][name], report["stages"][name]) for name in was["stages"]]
    assert stages
    for old, new in stages:
        assert (new["verdict"], new["digest"], list(new["outputs"])) == (old["verdict"], old["digest"], list(old["outputs"]))
        assert new["samples"]["drawn"] == len(old["samples"]["seeds"]) > 0
        for name, output in new["outputs"].items():
            assert output["rho_rms"] == old["outputs"][name]["rho_rms"]
            assert output["rungs"]["R4"]["rho"] == pytest.approx(output["rho_rms"], rel=1e-6)
            assert output["rungs"]["R4"]["relative_rms"] == pytest.approx(output["relative_rms"], rel=1e-6)
    assert not compare(report, report).changes


def test_a_report_of_today_is_compared_with_a_baseline_of_any_version(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (FOLDER / f"version-{version}-package.json" for version in (1, 2))
    worse = read_report(second)
    for output in worse["outputs"].values():
        output["rho_rms"] *= 3
    for older in (first, second):
        assert main(["validate", "diff", str(older), str(written(worse, tmp_path / "new.json"))]) == 1
        assert "WORSE" in capsys.readouterr().out
    shutil.copy(second, tmp_path / "same.json")
    assert main(["validate", "diff", str(second), str(tmp_path / "same.json")]) == 0


def test_every_listed_field_is_one_of_today_and_needed_there(make: SimpleNamespace, tmp_path: Path) -> None:
    definitions = schema()["$defs"]
    for added in ADDED.values():
        for definition, fields in added.items():
            assert fields.keys() <= set(definitions[definition]["required"])
    plain = to_json(make.stage(make.output()))
    del plain["replay_package"]
    assert read_report(written({**plain, "schema_version": 2}, tmp_path / "two.json")) == to_json(make.stage(make.output()))
    with pytest.raises(InputError, match="lacks replay_package"):
        read_report(written(plain, tmp_path / "three.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_damaged_reports_are_refused_in_one_sentence(path: Path, tmp_path: Path) -> None:
    whole, draw, refused = json.loads(path.read_text()), random.Random(0), 0
    places = list(places_in(whole))
    for _ in range(150):
        plain, (holder, key) = copy.deepcopy(whole), draw.choice(places)
        parent = plain
        for step in holder:
            parent = parent[step]
        if draw.random() < 0.5:
            del parent[key]
        else:
            parent[key] = draw.choice((None, True, 1.5, "pass", [], [None], {}, {"x": 1}))
        try:
            VALIDATOR.validate(read_report(written(plain, tmp_path / "report.json")))
        except InputError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 50 < refused < 150, "both kinds are tried"


def places_in(plain: Any, path: tuple[Any, ...] = ()) -> Any:
    if isinstance(plain, dict | list):
        for key, value in plain.items() if isinstance(plain, dict) else enumerate(plain):
            yield path, key
            yield from places_in(value, (*path, key))
