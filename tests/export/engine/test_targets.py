"""Names of targets: tables, aliases, neighbours of what has none, and the evidence of every table."""

from typing import Literal

import pytest

from coreflow.export.engine.targets import all_targets, find_targets, labels, op_evidence, sources
from coreflow.models.errors import ConfigError
from coreflow.runtime.lift.registry import load_lowerings, supported_ops

SECTIONS: tuple[Literal["never", "taken", "unsure", "remark"], ...] = ("never", "taken", "unsure", "remark")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("M4/macOS27", ["M4/macOS27"]),
        ("m4/macos27.0.1", ["M4/macOS27"]),
        ("M4", ["M4/macOS27"]),
        ("H16G", ["M4/macOS27"]),
        ("M1", ["M1/macOS27"]),
        ("M4 Pro/macOS26.5", ["M4Pro/macOS26.5"]),
        ("M4Pro/macOS26", ["M4Pro/macOS26.5"]),
        ("M5 Max/macOS26.5", ["M5Max/macOS26.6"]),
        ("M1/macOS14.5", ["M1/macOS14"]),
        ("M3/macOS27", ["M2/macOS27", "M4/macOS27"]),
        ("M4/macOS26", ["M4Pro/macOS26.5", "M4/macOS27"]),
        ("M7/macOS28", ["M6/macOS27"]),
        ("M3Max", ["M2/macOS27", "M4/macOS27"]),
    ],
)
def test_a_name_is_a_target_or_its_neighbours(name: str, keys: list[str]) -> None:
    assert [target.key for target in find_targets(name)] == keys


@pytest.mark.parametrize("name", ["", "A17", "iPhone", "M4/", "M4/Linux6", "Neural Engine", "H99"])
def test_a_name_that_is_no_target_is_one_clear_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no target .*; tables exist for M4/macOS27, "):
        find_targets(name)


def test_every_table_has_a_label_and_a_source() -> None:
    for target in all_targets().values():
        assert set(target.evidence) == {"graph", "peak", "bandwidth", "limits", "rates"}
        for evidence in target.evidence.values():
            assert evidence.label in labels()
            assert evidence.source[0] in sources() or evidence.source == f"the table of {evidence.borrowed_from}"
    every = [evidence for section in SECTIONS for _, evidence in op_evidence(section).values()]
    assert every
    assert all(evidence.label in labels() and evidence.source in sources() for evidence in every)


def test_tables_of_others_are_said_to_be_borrowed() -> None:
    (m2,) = find_targets("M2/macOS27")
    assert m2.evidence["rates"].borrowed_from == "M4/macOS27"
    assert "conv" in m2.borrowed_ops
    (m6,) = find_targets("M6/macOS27")
    assert not m6.borrowed_ops
    assert "490 of 490" in m6.evidence["rates"].source


def test_every_op_that_runs_is_in_one_section_of_the_tables() -> None:
    load_lowerings()
    known = set(supported_ops())
    never, taken, unsure = (set(op_evidence(section)) for section in SECTIONS[:3])
    assert not (never & taken | never & unsure | taken & unsure)
    placed = {op for op in known if not op.startswith("constexpr_")} - {"identity"}
    assert placed == never | taken | unsure
    named = {*op_evidence("remark"), *(op for target in all_targets().values() for op in (*target.rows, *target.limits.never))}
    assert not named - known
