"""Values of its inputs that a module reads while it runs, with the lines."""

import inspect
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from coreflow.export.capture.value_reads import ValueReads


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        if not torch.isfinite(x).all():
            raise ValueError("not finite")
        assert x.shape[0] == 2 and (x < 1e6).all()
        y = x * self.scale.item()  # of a weight
        zeros = torch.zeros_like(x)
        if zeros.any():
            y = y + 1
        z = torch.zeros(2)
        z[0] = x[0, 0]
        if z[1] > 0:  # branch
            y = y * 2
        return y * float(x.max())  # size


def line_of(mark: str) -> int:
    lines, first = inspect.getsourcelines(Reader)
    return first + next(place for place, line in enumerate(lines) if mark in line)


def test_reads_of_inputs_are_recorded_and_reads_of_weights_and_guards_are_not() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    with ValueReads((x,)) as reads:
        Reader()(x)
    name = os.path.relpath(__file__) if Path(__file__).is_relative_to(Path.cwd()) else Path(__file__).name
    assert [(read.file, read.line, read.value) for read in reads.values] == [
        (name, line_of("# branch"), False),
        (name, line_of("# size"), 4.0),
    ]


def test_a_trace_reads_what_it_freezes() -> None:
    x = torch.ones(2, 2)
    with ValueReads((x,)) as reads, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(Reader(), (x,), check_trace=False)
    assert [read.line for read in reads.values] == [line_of("# branch"), line_of("# size")]
