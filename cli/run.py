"""``coreflow run``."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import out, print_json, warn
from coreflow.cli.options import BackendOption, ComputeUnitsOption, DeviceOption, NumericsOption

if TYPE_CHECKING:
    from rich.table import Table

    from coreflow.models.family import ChainResult
    from coreflow.runtime.chain import Chain


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, as artifacts/demo.")],
    text: Annotated[str | None, typer.Argument(help="A sentence; without it, each line of standard input.")] = None,
    backend: BackendOption = "auto",
    numerics: NumericsOption = "fp16",
    device: DeviceOption = "cpu",
    compute_units: ComputeUnitsOption = "all",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to write at most [default: the decoder's length].")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search with so many beams, instead of greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this probability.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample with this temperature.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of sampling [default: 0].")] = None,
    corrections: Annotated[int, typer.Option(min=0, help="Rounds of iterative correction at most.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Save surfaces and paths of the flows as a PNG picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, a line per sentence from standard input.")] = False,
) -> int:
    """Run a sentence through the stages of a bundle."""
    from coreflow.runtime.chain import Chain

    chain = Chain.load(bundle, backend, numerics=numerics, device=device, compute_units=compute_units)  # type: ignore[arg-type]
    flags = {"max_tokens": max_tokens, "beams": beams, "top_k": top_k, "top_p": top_p, "temperature": temperature, "seed": seed}
    options = chain.options({name: value for name, value in flags.items() if value is not None})
    if text is not None:
        result = run_one(chain, text, options, corrections)
        if plot is not None:
            chain.plot(result, plot)
        if as_json:
            print_json(result.to_json(chain.backend))
        else:
            show(result, chain, plot)
        return 0
    return _run_lines(chain, sys.stdin, options, corrections, plot, as_json)


def run_one(chain: "Chain", text: str, options: Any = None, corrections: int = 0) -> "ChainResult":
    """One text through the chain, with warnings about parts that it could not read."""
    result: ChainResult = chain.run(text, options, corrections=corrections)
    for line in result.warnings:
        warn(line)
    return result


def show(result: "ChainResult", chain: "Chain", plot: Path | None = None) -> None:
    """The answer, the family's details, and the time per stage."""
    console = out()
    console.print(result.text, style="bold", markup=False, soft_wrap=True)
    for line in result.details():
        console.print(line, soft_wrap=True)
    console.print(_times(result, chain))
    if plot is not None:
        console.print(f"picture: {plot}", soft_wrap=True)


def _run_lines(chain: "Chain", lines: Iterable[str], options: Any, corrections: int, plot: Path | None, as_json: bool) -> int:
    """Decode each line that has a word; one result per line of output."""
    import json

    from coreflow.models.errors import InputError

    result, count = None, 0
    for line in lines:
        if not line.strip():
            continue
        result = run_one(chain, line.strip(), options, corrections)
        count += 1
        sys.stdout.write((json.dumps(result.to_json(chain.backend)) if as_json else result.text) + "\n")
        sys.stdout.flush()
    if result is None:
        raise InputError("no text: give a sentence after the bundle, or lines on standard input")
    if plot is not None:
        chain.plot(result, plot)
        if count > 1:
            warn(f"{plot} shows the last of {count} sentences")
    return 0


def _times(result: "ChainResult", chain: "Chain") -> "Table":
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, header_style="dim", title=f"time on this machine, {chain.backend} backend", title_justify="left"
    )
    for column in ("stage", "calls", "ms in all", "ms a call"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, time in result.times.items():
        table.add_row(name, str(time.calls), f"{time.total_ms:.2f}", f"{time.total_ms / time.calls:.2f}")
    return table
