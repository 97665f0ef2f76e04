"""``coreflow``: one file per command, imported when it runs. Exit codes are listed in docs/commands.md."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from coreflow.cli import demo, estimate, export, inspection, lift, lint, place, probe, run, train, validate
from coreflow.cli.console import fail, hint, out
from coreflow.cli.guard import run_guarded
from coreflow.models.errors import CoreflowError
from coreflow.models.versions import version


class _Commands(TyperGroup):
    """Knows commands of two words, as ``validate diff``: another second word, as in ``validate PATH``, is the command's own."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """The longest name that the arguments begin with."""
        both = " ".join(args[:2])
        return super().resolve_command(ctx, [both, *args[2:]] if both in self.commands else args)


app = typer.Typer(
    name="coreflow",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PyTorch models to Core ML and the Apple Neural Engine, proven right on any machine.",
)
COMMANDS: Mapping[str, Callable[..., int]] = {
    "demo": demo.demo,
    "train": train.train,
    "export": export.export,
    "run": run.run,
    "validate": validate.validate,
    "validate diff": validate.diff,
    "validate replay": validate.replay,
    "lift": lift.lift,
    "inspect": inspection.inspect,
    "repair": export.repair,
    "lint": lint.lint,
    "place": place.place,
    "estimate": estimate.estimate,
    "probe": probe.probe,
}

GUARDED = ("export", "validate", "lint")  # which execute modules of users


def _exiting(command: Callable[..., int]) -> Callable[..., None]:
    """The command as typer expects it: its return value becomes the exit code."""

    @functools.wraps(command)
    def exiting(*args: Any, **options: Any) -> None:
        try:
            code = command(*args, **options)
        except BrokenPipeError:
            # The reader went away, as `coreflow run ... | head` does; the interpreter would complain when it flushes.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        raise typer.Exit(code)

    return exiting


_WRONG_USE: Any = typer.BadParameter.mro()[1]  # click's UsageError, wherever typer has it from

for name, command in COMMANDS.items():
    app.command(name)(_exiting(command))


def _print_version(show_version: bool) -> None:
    if show_version:
        out().print(f"coreflow {version('coreflow')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; ``argv`` are the arguments of this process by default.

    What executes modules runs in a child process then, since a crash there would say nothing.
    """
    # Read once, when torch loads. Threads that wait for each other by spinning take a core from the one that is waited for, where other
    # processes keep the cores busy: 400 linear layers took 36 s so, and 6 to 9 s without, on two cores under a load of nine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what it warns of is about training, or is said by us
    # Read at the first large allocation: Linux then maps 2 MB at a time, not 4 kB, and a sum of 13 million float64 takes 30 ms, not 95.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    arguments = sys.argv[1:] if argv is None else list(argv)
    if argv is None and arguments[:1] and arguments[0] in GUARDED and "torch" not in sys.modules:
        return _exit_code(lambda: run_guarded(lambda: main(arguments)))
    return _exit_code(lambda: app(args=arguments, prog_name="coreflow", standalone_mode=False))


def _exit_code(run: Callable[[], Any]) -> int:
    """What ``run`` returns, or the code of its error, which is printed."""
    try:
        code = run()
    except CoreflowError as error:
        fail(str(error))
        return error.exit_code
    except _WRONG_USE as error:
        context = error.ctx
        if message := error.format_message():  # none where the help was printed
            fail(message)
            hint(f"{context.command_path if context else 'coreflow'} --help")
        return 2
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 0
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
