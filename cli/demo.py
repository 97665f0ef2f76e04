"""``coreflow demo``."""

from pathlib import Path
from typing import Annotated

import typer

from coreflow.cli.console import out

PRESET, RUN, BUNDLE = "demo", Path("artifacts/runs/demo"), Path("artifacts/demo")


def demo(
    fresh: Annotated[bool, typer.Option("--fresh", help="Train again, even if the demo was trained before.")] = False,
) -> int:
    """The whole chain on this machine: train, export, validate, and run a sentence that was never trained on."""
    from coreflow.cli.export import export_with_bar
    from coreflow.cli.export import summary as exported
    from coreflow.cli.run import run_one, show
    from coreflow.cli.train import train_with_bar
    from coreflow.cli.validate import validate_with_bar
    from coreflow.models.family import family_of_preset
    from coreflow.runtime.chain import Chain
    from coreflow.validate.options import Options
    from coreflow.validate.report.terminal.report import render

    family = family_of_preset(preset=PRESET)
    console = out()
    console.rule("1. train", align="left")
    if fresh or not family.is_finished(RUN):
        console.print(train_with_bar(family, family.training_options({"preset": PRESET}), RUN).summary(), soft_wrap=True)
    else:
        console.print(f"already trained: {RUN} (coreflow demo --fresh trains again)", soft_wrap=True)
    console.rule("2. export", align="left")
    console.print(exported(export_with_bar(str(RUN), BUNDLE)), soft_wrap=True)
    console.rule("3. validate", align="left")
    report = validate_with_bar(BUNDLE, Options())
    console.print(render(report))
    console.rule("4. run a sentence that was never trained on", align="left")
    sentence = family.open_run(RUN).held_out[0]
    console.print(f"in:  {sentence}", soft_wrap=True, markup=False)
    chain = Chain.load(BUNDLE)
    result = run_one(chain, sentence)
    console.print("out: ", end="")
    picture = BUNDLE.with_suffix(".png")
    chain.plot(result, picture)
    show(result, chain, picture)
    if result.text != sentence:
        console.print("[bold red]the sentence was not reproduced[/]")
    console.print(f'\nTry your own: coreflow run {BUNDLE} "{sentence}"', soft_wrap=True, markup=False)
    return report.exit_code or int(result.text != sentence)
