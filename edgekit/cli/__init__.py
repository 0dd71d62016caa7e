"""The command line: one file a command. Each parses, calls the library, and prints."""

import os
import sys
import tempfile
import traceback

import typer

import edgekit
from edgekit.cli import (
    bench,
    build,
    cache,
    compare,
    doctor,
    inspect,
    install,
    report,
    run,
    targets,
    tune,
    verify,
)
from edgekit.cli.output import print_error
from edgekit.errors import EdgekitError

__all__ = ["main"]

BUG = 70
INTERRUPTED = 130

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Builds multi-exit networks into segments that stop early on small devices.",
    epilog="Exit codes: 0 fine, 1 user or recipe, 2 usage, 3 verification refused, "
    "4 device or engine, 70 a bug.",
)
for command in (
    build,
    inspect,
    install,
    run,
    verify,
    bench,
    report,
    compare,
    tune,
    targets,
    cache,
    doctor,
):
    app.command()(getattr(command, command.__name__.rpartition(".")[2]))


def _version(show: bool) -> None:
    if show:
        typer.echo(edgekit.__version__)
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and stop."
    ),
) -> None:
    """Parse what stands before the command."""


def main() -> None:
    """The `edgekit` command. Errors of edgekit's become one line and their exit code."""
    try:
        app()
    except EdgekitError as error:
        print_error(str(error))
        sys.exit(error.exit_code)
    except SystemExit as end:
        # Typer turns Ctrl-C into this code without a word.
        if end.code == INTERRUPTED:
            print_error("interrupted")
        raise
    except BrokenPipeError:
        # Whoever read our output has gone; Python must not try to flush it again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        reason = str(error).partition("\n")[0]
        print_error(
            f"this is a bug in edgekit: {type(error).__name__}: {reason}; "
            f"please report it with {_write_report()}"
        )
        sys.exit(BUG)


def _write_report() -> str:
    """Put the traceback where it can be found, and say where."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="edgekit-bug-", suffix=".txt", delete=False
        ) as file:
            file.write(f"edgekit {edgekit.__version__}: {' '.join(sys.argv)}\n")
            traceback.print_exc(file=file)
            return file.name
    except OSError:
        traceback.print_exc()
        return "the lines above"
