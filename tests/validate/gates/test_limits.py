"""Limits that a caller sets: in a file, and on a package."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from coreflow.models.errors import ConfigError
from coreflow.validate import validate
from coreflow.validate.gates.limits import read_limits
from coreflow.validate.gates.tolerance import Limits

if TYPE_CHECKING:
    from tests.validate.conftest import Converted

EXPECTED = {"boxes": Limits(contract=0.02), "scores": Limits(contract=0.05, ceiling=0.1)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("limits.toml", "[boxes]\ncontract = 0.02\n[scores]\ncontract = 0.05\nceiling = 0.1\n"),
        ("limits.json", '{"boxes": {"contract": 0.02}, "scores": {"contract": 0.05, "ceiling": 0.1}}'),
    ],
    ids=["toml", "json"],
)
def test_a_file_names_outputs_and_their_limits(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert read_limits(file) == EXPECTED


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[y]\ncontract = ", "is no TOML"),
        ("contract = 0.02", "no table per output"),
        ("[y]\ntolerance = 0.02", "y has 'tolerance'; contract and ceiling can be set"),
        ("[y]\ncontract = true", "contract of y is True, not a number"),
        ("[y]\ncontract = '2 %'", "not a number"),
        ("[y]\nceiling = -1", "y: a ceiling of -1"),
    ],
    ids=["broken", "no table", "unknown key", "a flag", "a text", "negative"],
)
def test_a_file_that_says_nothing_useful_is_refused_by_name(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "limits.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_limits(file)
    assert said in str(caught.value) and "limits.toml" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not there"):
        read_limits(tmp_path / "none.toml")


def test_limits_of_a_package_and_of_one_of_its_outputs_hold(convert_network: "Callable[..., Converted]") -> None:
    healthy, in_fp32 = convert_network(2, 64), convert_network(2, 64, "fp32").package
    recipe = healthy.recipe()
    strict = validate(healthy.package, recipe, wide_package=in_fp32, contract=1e-4)
    assert strict.verdict == "fp16-unsafe" and "contract of 0.01 %" in strict.text
    assert validate(healthy.package, recipe, wide_package=in_fp32, ceiling=1e-4).verdict == "fp16-unsafe"
    by_output = {"y": Limits(contract=0.01, ceiling=0.01)}
    assert validate(healthy.package, recipe, wide_package=in_fp32, contract=1e-4, ceiling=1e-4, output_limits=by_output).verdict == "pass"
    with pytest.raises(ConfigError, match="limits for z; the outputs of network"):
        validate(healthy.package, recipe, wide_package=in_fp32, output_limits={"z": Limits(contract=0.1)})
