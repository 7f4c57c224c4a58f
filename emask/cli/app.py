"""The `emask` command: its subcommands, and the last stop of every error."""

from __future__ import annotations

import io
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from emask import __version__
from emask.cli import console
from emask.errors import EmaskError, UsageError

# In the order of the help page. Each module has a function of its name, or a Typer app where there are sub-commands.
COMMANDS = ("protect", "erase", "verify", "train", "export", "bench", "models")
# Those whose sub-commands stand in a module beside their own.
GROUPS = {"bench": "bench_group"}


def _version(show: bool) -> None:
    if show:
        typer.echo(f"emask {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Put an erasable mask on the faces in photos, and take it off again.

    To people a protected photo shows the same face; to a face recognizer it shows the target. Whoever holds the
    restorer takes the mask off from the image alone.

    Exit codes: 0 done, 1 some failed, 2 usage, 3 no face found, 5 unusable model file, 130 interrupted.
    """


def build() -> typer.Typer:
    """The Typer app with all its commands."""
    app = typer.Typer(
        name="emask",
        callback=_root,
        no_args_is_help=True,
        rich_markup_mode="markdown",  # Rich's own takes "[default: 200]" in a help text for a style, and drops it
        pretty_exceptions_enable=False,
        pretty_exceptions_show_locals=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name in COMMANDS:
        if find_spec(f"emask.cli.{name}") is None:  # a slim package may leave out training and benchmarks
            continue
        entry = getattr(import_module(f"emask.cli.{GROUPS.get(name, name)}"), name)
        if isinstance(entry, typer.Typer):
            app.add_typer(entry, name=name)
        else:
            app.command(name, no_args_is_help=True)(entry)
    return app


def main(arguments: list[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; `sys.argv[1:]` when omitted.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as `>&-` and `2>&-` do
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a file's name need not be text, and must not end a batch
            stream.reconfigure(errors="backslashreplace")
    try:
        code = build()(args=arguments, prog_name="emask", standalone_mode=False)
        sys.stdout.flush()  # a full disk is to be noticed here, not at exit
        if code == 130:  # Typer has turned Ctrl-C into an exit
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except EmaskError as error:
        console.report_error(error)
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort, MemoryError, OSError) as error:
        told = console.stopped(error, words)
        if not isinstance(error, BrokenPipeError):  # with which whoever read the output has gone
            console.report_error(told)
        console.leave_output()
        return told.exit_code
    except Exception as error:
        if not hasattr(error, "format_message"):  # what tells Typer's errors of usage from a bug, in all its versions
            raise
        context = getattr(error, "ctx", None)
        if error.format_message():  # empty when the help page was shown instead
            console.report_error(UsageError(error.format_message(), f"see {_command_path(context)} --help"))
        return int(getattr(error, "exit_code", 2))


def _command_path(context: typer.Context | None) -> str:
    return context.command_path if context is not None else "emask"
