"""``coreflow train``."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coreflow.cli.console import err, out, print_json, progress_bar

if TYPE_CHECKING:
    from coreflow.models.training.trainer import Trained, TrainingOptions


def train(
    preset: Annotated[str, typer.Option(help="Size of the model: demo, debug, experiment or optimized.")] = "demo",
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the run [default: artifacts/runs/PRESET].")] = None,
    corpus: Annotated[Path | None, typer.Option(help="Plain text, one sentence a line, or JSONL; default: a built-in grammar.")] = None,
    teacher: Annotated[Path | None, typer.Option(help="A local Hugging Face encoder directory; default: hashed n-grams.")] = None,
    t5: Annotated[Path | None, typer.Option(help="A local Hugging Face T5 directory whose decoder to start from.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, mps or cuda.")] = "auto",
    steps: Annotated[int | None, typer.Option(help="Steps of the optimizer [default: the preset's].")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sentences in a batch [default: the preset's].")] = None,
    accumulate: Annotated[int, typer.Option(help="Batches per step of the optimizer.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of data and weights.")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> int:
    """Train an energy-flow model: text and embeddings through the lattice and back."""
    from coreflow.models.training.trainer import TrainingOptions

    options = TrainingOptions(
        preset=preset,
        corpus=corpus,
        teacher=teacher,
        t5=t5,
        device=device,  # type: ignore[arg-type]
        steps=steps,
        batch_size=batch_size,
        accumulate=accumulate,
        seed=seed,
    )
    trained = train_with_bar(options, out_dir or Path("artifacts/runs") / preset, resume)
    if as_json:
        print_json({name: value for name, value in asdict(trained).items() if name != "curve"} | {"directory": str(trained.directory)})
    else:
        out().print(summary(trained), soft_wrap=True)
    return 0


def train_with_bar(options: "TrainingOptions", directory: Path, resume: bool = False) -> "Trained":
    """Train while a bar shows the losses; returns the result."""
    from coreflow.models.training.trainer import Trained
    from coreflow.models.training.trainer import train as start

    with progress_bar("training") as (bar, task):
        for event in start(options, directory, resume):
            if isinstance(event, Trained):
                return event
            detail = f"text {event.text_loss:.3f}  energy {event.energy_loss:.3f}  {event.step_ms:.0f} ms/step"
            bar.update(
                task, total=event.steps, completed=event.step, detail=detail + (f"  {event.memory_mb:.0f} MB" if event.memory_mb else "")
            )
            if bar.disable and event.step % 250 == 0:
                err().print(f"step {event.step} of {event.steps}: {detail}")
    raise AssertionError("training ends with its result")


def summary(trained: "Trained") -> str:
    """Three lines for people."""
    return (
        f"trained {trained.parameters / 1e6:.2f} M parameters in {trained.seconds:.0f} s on {trained.device}: {trained.directory}\n"
        f"held-out sentences: {trained.token_accuracy:.1%} of tokens right, {trained.sentence_accuracy:.1%} of sentences whole; "
        f"embeddings: cosine {trained.embedding_cosine:.3f}\n"
        f"loss curve: {trained.directory / 'loss.png'}"
    )
