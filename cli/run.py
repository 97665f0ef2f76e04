"""``coreflow run``."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import out, print_json, warn

if TYPE_CHECKING:
    from rich.table import Table

    from coreflow.models.energy.decoding import DecodingOptions
    from coreflow.runtime.chain import Chain, ChainResult


def run(
    bundle: Annotated[Path, typer.Argument(help="A bundle of `coreflow export`, as artifacts/demo.")],
    text: Annotated[str | None, typer.Argument(help="A sentence; without it, each line of standard input.")] = None,
    backend: Annotated[str, typer.Option(help="auto (Core ML on macOS, lifted elsewhere), coreml or lifted.")] = "auto",
    numerics: Annotated[str, typer.Option(help="Arithmetic of the lifted backend: fp16, fp32 or fp64.")] = "fp16",
    device: Annotated[str, typer.Option(help="Device of the lifted backend: cpu, cuda or mps.")] = "cpu",
    compute_units: Annotated[str, typer.Option(help="Core ML's: all, cpu_only, cpu_and_gpu or cpu_and_ne.")] = "all",
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens to write at most [default: the decoder's length].")] = None,
    beams: Annotated[int | None, typer.Option(min=1, help="Beam search with so many beams, instead of greedy.")] = None,
    top_k: Annotated[int | None, typer.Option(min=1, help="Sample among the k likeliest tokens.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Sample among the likeliest tokens that hold this probability.")] = None,
    temperature: Annotated[float | None, typer.Option(help="Sample with this temperature.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    corrections: Annotated[int, typer.Option(min=0, help="Rounds of iterative correction at most.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Save surfaces and paths of the flows as a PNG picture.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON, a line per sentence from standard input.")] = False,
) -> int:
    """Run a sentence through a bundle: text to surface, lattice, surface, text."""
    from coreflow.runtime.chain import Chain

    chain = Chain.load(bundle, backend, numerics=numerics, device=device, compute_units=compute_units)  # type: ignore[arg-type]
    options = _options(chain, max_tokens, beams, top_k, top_p, temperature, seed)
    if text is not None:
        result = run_one(chain, text, options, corrections)
        if plot is not None:
            _plot(result, chain, plot)
        if as_json:
            print_json(to_json(result, chain))
        else:
            show(result, chain, plot)
        return 0
    return _run_lines(chain, sys.stdin, options, corrections, plot, as_json)


def run_one(chain: "Chain", text: str, options: "DecodingOptions | None" = None, corrections: int = 0) -> "ChainResult":
    """One text through the chain; what it could not read is warned of."""
    result = chain.run(text, options, corrections=corrections)
    if result.dropped_tokens:
        warn(f"the encoder reads {chain.config.text_length} tokens; {result.dropped_tokens} tokens of the text were dropped")
    if result.unknown:
        warn(f"not in the encoder's vocabulary, read as unknown: {', '.join(map(repr, result.unknown))}")
    return result


def show(result: "ChainResult", chain: "Chain", plot: Path | None = None) -> None:
    """The decoded text, the statistics of the flows, and the time per stage."""
    console = out()
    console.print(result.text, style="bold", markup=False, soft_wrap=True)
    flows = result.statistics
    console.print(
        f"flows: {flows.started} started, {flows.spawned} spawned, {flows.died} died, {flows.arrived} arrived "
        f"({flows.arrived_share:.0%}) in {flows.steps} steps; active {' -> '.join(map(str, flows.active))}; "
        f"mean energy {' -> '.join(f'{energy:.3f}' for energy in flows.mean_energy)}",
        soft_wrap=True,
    )
    if result.cosine is not None:
        console.print(f"correction: round {result.corrections} kept, cosine of the re-encoded text {result.cosine:.4f}")
    console.print(_times(result, chain))
    if plot is not None:
        console.print(f"picture: {plot}", soft_wrap=True)


def to_json(result: "ChainResult", chain: "Chain") -> dict[str, Any]:
    """Everything about one text, for programs."""
    from dataclasses import asdict

    return {
        "text": result.text,
        "tokens": list(result.tokens),
        "log_probability": result.log_probability,
        "backend": chain.backend,
        "dropped_tokens": result.dropped_tokens,
        "unknown": list(result.unknown),
        "corrections": result.corrections,
        "cosine": result.cosine,
        "statistics": {**asdict(result.statistics), "arrived_share": result.statistics.arrived_share},
        "times": {name: asdict(each) for name, each in result.times.items()},
        "input_surface": result.input_surface.tolist(),
        "output_surface": result.output_surface.tolist(),
    }


def _run_lines(chain: "Chain", lines: Iterable[str], options: "DecodingOptions", corrections: int, plot: Path | None, as_json: bool) -> int:
    """Decode each line that has a word; one result per line of output."""
    import json

    from coreflow.models.errors import InputError

    result, count = None, 0
    for line in lines:
        if not line.strip():
            continue
        result = run_one(chain, line.strip(), options, corrections)
        count += 1
        sys.stdout.write((json.dumps(to_json(result, chain)) if as_json else result.text) + "\n")
        sys.stdout.flush()
    if result is None:
        raise InputError("no text: give a sentence after the bundle, or lines on standard input")
    if plot is not None:
        _plot(result, chain, plot)
        if count > 1:
            warn(f"{plot} shows the last of {count} sentences")
    return 0


def _options(
    chain: "Chain", max_tokens: int | None, beams: int | None, top_k: int | None, top_p: float | None, temperature: float | None, seed: int
) -> "DecodingOptions":
    from coreflow.models.energy.decoding import DecodingOptions
    from coreflow.models.errors import ConfigError

    length = max_tokens or chain.config.decode_length
    sampled = {name: value for name, value in (("top_k", top_k), ("top_p", top_p), ("temperature", temperature)) if value is not None}
    if beams is not None and sampled:
        raise ConfigError(f"--beams searches and --{'/--'.join(sampled).replace('_', '-')} samples; give one or the other")
    if beams is not None:
        return DecodingOptions(max_tokens=length, method="beam", beams=beams)
    if sampled:
        return DecodingOptions(max_tokens=length, method="sample", seed=seed, **sampled)  # type: ignore[arg-type]
    return DecodingOptions(max_tokens=length)


def _times(result: "ChainResult", chain: "Chain") -> "Table":
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, header_style="dim", title=f"time on this machine, {chain.backend} backend", title_justify="left"
    )
    for column in ("stage", "calls", "ms in all", "ms a call"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, each in result.times.items():
        table.add_row(name, str(each.calls), f"{each.total_ms:.2f}", f"{each.total_ms / each.calls:.2f}")
    return table


def _plot(result: "ChainResult", chain: "Chain", path: Path) -> None:
    from coreflow.runtime.plot import plot_chain

    plot_chain(result, chain.config, path)
