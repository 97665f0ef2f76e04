"""``coreflow train``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coreflow.cli.console import err, out, print_json, progress_bar
from coreflow.models.family import Trained, families, family_of_preset

if TYPE_CHECKING:
    from coreflow.models.family import Family

RUNS = Path("artifacts/runs")
PRESETS = [preset for family in families() for preset in family.presets]


def train(
    preset: Annotated[str | None, typer.Option(help=f"Size of the model: {', '.join(PRESETS)} [default: {PRESETS[0]}].")] = None,
    family: Annotated[str | None, typer.Option(help="Kind of model [default: the one that has the preset].")] = None,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the run [default: artifacts/runs/PRESET].")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Plain text, one sentence a line, or JSONL; default: a built-in grammar.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A local Hugging Face encoder directory; default: hashed n-grams.")] = None,
    t5: Annotated[Path | None, typer.Option(help="A local Hugging Face T5 directory whose decoder to start from.")] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, mps or cuda [default: auto].")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer [default: the preset's].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences in a batch [default: the preset's].")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Batches per step of the optimizer [default: 1].")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of data and weights [default: 0].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train a model of one of the families; without options, a small energy flow: text and embeddings through a lattice and back."""
    flags: dict[str, Any] = {"preset": preset, "corpus": corpus, "teacher": teacher, "t5": t5, "device": device, "steps": steps}
    flags |= {"batch_size": batch_size, "accumulate": accumulate, "seed": seed}
    chosen = family_of_preset(family, preset)
    options = chosen.training_options({name: value for name, value in flags.items() if value is not None})
    trained = train_with_bar(chosen, options, out_dir or RUNS / options.preset, resume)
    if as_json:
        print_json(trained.to_json())
    else:
        out().print(trained.summary(), soft_wrap=True)
    return 0


def train_with_bar(family: "Family", options: Any, directory: Path, resume: bool = False) -> "Trained":
    """Train while a bar shows the losses; returns the result."""
    with progress_bar("training") as (bar, task):
        for event in family.train(options, directory, resume):
            if isinstance(event, Trained):
                return event
            detail = "  ".join(f"{name} {loss:.3f}" for name, loss in event.losses.items()) + f"  {event.step_ms:.0f} ms/step"
            bar.update(
                task, total=event.steps, completed=event.step, detail=detail + (f"  {event.memory_mb:.0f} MB" if event.memory_mb else "")
            )
            if bar.disable and event.step % 250 == 0:
                err().print(f"step {event.step} of {event.steps}: {detail}")
    raise AssertionError("training ends with its result")
