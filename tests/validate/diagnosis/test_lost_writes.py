"""Writes that Core ML Tools loses on the way from a trace: the report names the user's line, whatever the idiom.

Every idiom is converted as a user does, by ``torch.jit.trace`` and Core ML Tools. It loses the writes through views that it takes for
values of their own (``LOST``), and understands assignments (``KEPT``).
"""

import inspect
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.models.arrays import Arrays
from coreflow.validate import validate
from coreflow.validate.diagnosis.tracing import trace
from coreflow.validate.report.model import Report
from tests.validate.conversions import convert

FLOAT16 = np.float16


def column(y: Tensor, x: Tensor) -> None:
    y[:, [3]] = x[:, :1]  # with two columns the conversion ends in an error, in Core ML Tools 9.0


def clamp(y: Tensor, x: Tensor) -> None:
    v = y[:, 1]
    v.clamp_(-0.1, 0.1)


def scale(y: Tensor, x: Tensor) -> None:
    v = y[..., :2]
    v.mul_(2)


def mask(y: Tensor, x: Tensor) -> None:
    y[y > 0.2] = 0


def add_into(y: Tensor, x: Tensor) -> None:
    v = y[:, 2:4]
    torch.add(x[:, :2], x[:, 2:4], out=v)


def increment(y: Tensor, x: Tensor) -> None:
    v = y[:, 3]
    v += 1


def transposed(y: Tensor, x: Tensor) -> None:
    y.t()[0] = x[:, 0]


def flat(y: Tensor, x: Tensor) -> None:
    y.view(-1)[3] = 5


def put(y: Tensor, x: Tensor) -> None:
    y[:, 2:].index_put_((torch.tensor([0, 2]),), x[:2, :14])


def negative(y: Tensor, x: Tensor) -> None:
    y[:, -1:].neg_()


def masked_fill(y: Tensor, x: Tensor) -> None:
    y[:, :4].masked_fill_(x[:, :4] > 0, 0.5)


def assign(y: Tensor, x: Tensor) -> None:
    y[:, 1] = x[:, 0]


def assign_slice(y: Tensor, x: Tensor) -> None:
    y[1:3, 2:5] = x[:2, :3]


def add_to_item(y: Tensor, x: Tensor) -> None:
    y[:, 1] += 1


def chunk(y: Tensor, x: Tensor) -> None:
    v = y.chunk(2, 1)[1]
    v.neg_()


def clamp_all(y: Tensor, x: Tensor) -> None:
    y.clamp_(-0.1, 0.1)


LOST = (column, clamp, scale, add_into, increment, transposed, flat, put, masked_fill, chunk, negative)
KEPT = (mask, assign, assign_slice, add_to_item, clamp_all)


class Writing(nn.Module):
    """A linear layer, writes into its result, and another linear layer."""

    def __init__(self, *writes: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(16, 16), nn.Linear(16, 16)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        for write in self.writes:
            write(y, x)
        return self.after(y)


def rows(seed: int) -> Arrays:
    return {"x": np.random.default_rng(seed).standard_normal((4, 16)).astype(FLOAT16)}


def report_on(module: nn.Module, folder: Path) -> Report:
    """The report on what a user converts."""
    return validate(convert(module, folder, {"x": ((4, 16), FLOAT16)}), module, draw=rows)


def last_line(function: Callable[..., None]) -> int:
    """The line of a function's last statement, which writes."""
    lines, first = inspect.getsourcelines(function)
    return first + len(lines) - 1


def writes_named(report: Report) -> list[tuple[str, int | None]]:
    """File and line of the culprits that are lost writes."""
    lost = [culprit for culprit in report.culprits if "the program does not" in culprit.text]
    assert all(culprit.kind == "translation" for culprit in lost)
    return [(Path(culprit.file or "").name, culprit.line) for culprit in lost]


@pytest.mark.sampled(1)
@pytest.mark.parametrize("write", LOST)
def test_a_write_that_the_converter_lost_is_named_by_its_line(write: Callable[[Tensor, Tensor], None], tmp_path: Path) -> None:
    report = report_on(Writing(write).eval(), tmp_path)
    assert (report.verdict, report.cause, report.exit_code) == ("fail", "translation", 4)
    assert writes_named(report) == [(Path(__file__).name, last_line(write))]
    assert "the program does not" in report.culprits[0].text
    assert report.culprits[0].name in {op.name for op in report.ops}


@pytest.mark.slow
@pytest.mark.parametrize("write", KEPT)
def test_a_write_that_comes_through_is_right(write: Callable[[Tensor, Tensor], None], tmp_path: Path) -> None:
    assert report_on(Writing(write).eval(), tmp_path).verdict == "pass"


@pytest.mark.slow
def test_several_lost_writes_are_all_named_in_the_order_of_execution(tmp_path: Path) -> None:
    report = report_on(Writing(assign, scale, increment, assign_slice, chunk).eval(), tmp_path)
    assert [line for _, line in writes_named(report)] == [last_line(write) for write in (scale, increment, chunk)]


class Collecting(nn.Module):
    """Writes into a tensor of zeros, into the input, and into a copy of it."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.layer, self.target = nn.Linear(16, 16), target

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros(4, 16) if self.target == "zeros" else x if self.target == "input" else x.clone()
        part = y[:, 3:7]
        part += self.layer(x)[:, :4].tanh()  # collected
        return torch.tanh(y * 2)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("target", ["zeros", "input", "copy"])
def test_a_lost_write_into_what_no_op_gives_is_named(target: str, tmp_path: Path) -> None:
    report = report_on(Collecting(target).eval(), tmp_path)
    lines = Path(__file__).read_text("utf-8").splitlines()
    assert writes_named(report) == [
        (Path(__file__).name, next(place for place, text in enumerate(lines, 1) if text.endswith("# collected")))
    ]


def test_another_fault_is_not_taken_for_a_lost_write(tmp_path: Path) -> None:
    """The write before it is right, though the converter puts it in another form."""
    module = Writing(assign, add_to_item).eval()
    package = convert(module, tmp_path, {"x": ((4, 16), FLOAT16)})
    with torch.no_grad():
        module.after.weight[3] = 0
    report = validate(package, module, draw=rows)
    assert report.verdict == "fail" and not writes_named(report)


def test_a_trace_without_a_write_gives_what_the_view_holds_to_the_view_alone() -> None:
    """As a converter that loses the write; without a view there is nothing that it reaches."""

    class Both(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            y, z = x * 2, x * 3
            view = y[:, 0]
            view.neg_()
            z.neg_()
            return y, view[:2] + 1, z

    x = rows(0)["x"].astype(np.float64)
    y, view, z = trace(Both(), {"x": x}, lost={0, 1}).outputs
    np.testing.assert_array_equal(y, x * 2)
    np.testing.assert_array_equal(view, 1 - 2 * x[:2, 0])
    np.testing.assert_array_equal(z, x * 3)
    y, view, z = trace(Both(), {"x": x}).outputs
    np.testing.assert_array_equal(y[:, 0], -2 * x[:, 0])
    np.testing.assert_array_equal(z, x * -3)
