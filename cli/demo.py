"""``coreflow demo``."""

from pathlib import Path
from typing import Annotated

import typer

from coreflow.cli.console import out

RUN, BUNDLE = Path("artifacts/runs/demo"), Path("artifacts/demo")


def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again, even if the demo was trained before.")] = False,
) -> int:
    """The whole chain on this machine: train, export, validate, and run a sentence that was never trained on."""
    from coreflow.cli.export import export_with_bar
    from coreflow.cli.export import summary as exported
    from coreflow.cli.run import run_one, show
    from coreflow.cli.train import summary as trained
    from coreflow.cli.train import train_with_bar
    from coreflow.cli.validate import validate_with_bar
    from coreflow.models.training.checkpoint import TRAINING, load_checkpoint
    from coreflow.models.training.trainer import TrainingOptions
    from coreflow.runtime.chain import Chain
    from coreflow.runtime.plot import plot_chain
    from coreflow.validate.report.terminal import render

    console = out()
    console.rule("1. train", align="left")
    if fresh or not (RUN / TRAINING).exists():
        console.print(trained(train_with_bar(TrainingOptions(preset="demo"), RUN)), soft_wrap=True)
    else:
        console.print(f"already trained: {RUN} (coreflow demo --fresh trains again)", soft_wrap=True)
    console.rule("2. export", align="left")
    console.print(exported(export_with_bar(str(RUN), BUNDLE)), soft_wrap=True)
    console.rule("3. validate", align="left")
    report = validate_with_bar(BUNDLE)
    console.print(render(report))
    console.rule("4. run a sentence that was never trained on", align="left")
    sentence = load_checkpoint(RUN).held_out[0]
    console.print(f"in:  {sentence}", soft_wrap=True, markup=False)
    chain = Chain.load(BUNDLE)
    result = run_one(chain, sentence)
    console.print("out: ", end="")
    picture = BUNDLE.with_suffix(".png")
    plot_chain(result, chain.config, picture)
    show(result, chain, picture)
    if result.text != sentence:
        console.print("[bold red]the sentence was not reproduced[/]")
    console.print(f'\nTry your own: coreflow run {BUNDLE} "{sentence}"', soft_wrap=True, markup=False)
    return report.exit_code or int(result.text != sentence)
