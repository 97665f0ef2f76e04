"""``coreflow``: one file per command, imported when it runs. Exit codes are listed in docs/commands.md."""

import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Annotated, Any

import typer

from coreflow.cli import demo, export, run, train, validate
from coreflow.cli.console import fail, out
from coreflow.models.errors import CoreflowError

app = typer.Typer(
    name="coreflow", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="PyTorch models to Core ML and the Apple Neural Engine, proven right on any machine.",
)
COMMANDS: tuple[Callable[..., Any], ...] = (demo.demo, train.train, export.export, run.run, validate.validate)
for command in COMMANDS:
    app.command()(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        out().print(f"coreflow {version('coreflow')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)] = False,
) -> None:
    pass


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    import click

    try:
        result = app(args=None if argv is None else list(argv), standalone_mode=False)
    except CoreflowError as error:
        fail(str(error))
        return error.exit_code
    except click.ClickException as error:
        error.show(file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        fail("interrupted")
        return 130
    except BrokenPipeError:
        # The reader went away, as `coreflow run ... | head` does.
        sys.stderr.close()
        return 0
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    raise SystemExit(main())
