"""Columns of tables: one list, read by every rendering."""

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from coreflow.validate.report.columns import CHAIN, ELEMENTS, LARGEST_JUMP, OPS, OUTPUTS, Column, pick
from coreflow.validate.report.files import known_formats
from coreflow.validate.report.terminal.report import render

TABLES: dict[str, tuple[Column[Any], ...]] = {"outputs": OUTPUTS, "elements": ELEMENTS, "chain": CHAIN, "ops": OPS}


@pytest.mark.parametrize("columns", TABLES.values(), ids=TABLES)
def test_a_key_names_one_column(columns: tuple[Column[Any], ...]) -> None:
    assert len({column.key for column in columns}) == len({column.title for column in columns}) == len(columns)


def test_a_healthy_output_in_every_column(make: SimpleNamespace) -> None:
    output = make.output()
    assert {column.key: column.format(output) for column in (*OUTPUTS, LARGEST_JUMP)} == {
        "output": "surface", "reference_rms": "0.50", "relative_rms": "6.0e-04", "snr_db": "64.0", "budget": "3.0e-04", "rho_rms": "1.02",
        "rho_max": "1.10", "rho_slice": "1.30", "worst_slice": "[:, 17]", "contract": "3.0e-04 of 4.0e-03", "flips": "-",
        "non_finite": "0", "headroom": "32%", "verdict": "PASS", "largest_jump": "R4 fp16 arithmetic (2.0e-04 to 6.0e-04)",
    }  # fmt: skip


def test_an_op_in_every_column(make: SimpleNamespace) -> None:
    op = make.ops()[30 + 1]
    texts = {column.key: column.format(op) for column in OPS}
    assert texts["op"] == op.name and texts["shape"] == "1 × 64" and texts["ulps"] == "1.00 of 2.00" and texts["underflowed"] == "2.0%"
    assert pick(OPS, "ulps")[0].format(make.ops()[30]) == "1.00 of 0.50 ✗", "an op beyond its limit is marked"


def test_columns_are_picked_by_key_in_the_order_asked_for() -> None:
    assert [column.title for column in pick(OPS, "largest", "op", "source")] == ["largest", "op", "torch source"]
    with pytest.raises(KeyError):
        pick(OPS, "largest", "nothing of the kind")


def test_every_rendering_has_the_same_headings(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    report = make.bundle(make.whole())
    terminal = shown(render(report), 200)
    page = known_formats()[".html"].to_text(report)
    headings = set(re.findall(r'<th scope="col"[^>]*>([^<]*)</th>', page))
    assert all((column.short or column.title) in terminal for column in OUTPUTS)
    assert {column.title for columns in TABLES.values() for column in columns} <= headings
    markdown = known_formats()[".md"].to_text(report)
    assert "| package | output | verdict | relative RMS | rho_rms | rho_max | rho_slice | headroom | largest jump |" in markdown


def test_a_terminal_of_few_columns_shows_the_essential_ones(make: SimpleNamespace, shown: Callable[..., str]) -> None:
    header = next(line for line in shown(render(make.stage(make.output())), 100).splitlines() if line.startswith("output"))
    assert header.split() == [word for column in OUTPUTS if column.essential for word in column.title.split()]
