"""`emask bench` as a group: the benchmark itself, and commands for what it writes and whom it is judged by."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from emask.cli.bench import bench as run
from emask.cli.group import CommandGroup

bench = typer.Typer(cls=CommandGroup, invoke_without_command=True, no_args_is_help=True)
bench.callback()(run)

Document = Annotated[Path, typer.Argument(metavar="BENCH.JSON", help="A bench.json of `emask bench -o FOLDER`.")]


@bench.command("report", no_args_is_help=True)
def report(
    document: Document,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page. [default: report.html beside the JSON]")
    ] = None,
) -> None:
    """Make one HTML page of a run: what was run, every table, plots."""
    from emask.bench.report import write_page

    typer.echo(write_page(document, output))


@bench.command("compare", no_args_is_help=True)
def compare(
    old: Annotated[Path, typer.Argument(metavar="OLD", help="A bench.json of `emask bench -o FOLDER`.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Another one: same photos, targets and judges.")],
    rows: Annotated[int, typer.Option(min=0, help="Rows to list of those that lost most.")] = 10,
) -> None:
    """Count the figures in which one run is better or worse than another, and list those that lost most."""
    from emask.bench.compare import between

    typer.echo(between(old, new, rows))


@bench.command("paper")
def paper(
    document: Annotated[
        Path | None,
        typer.Argument(metavar="[BENCH.JSON]", help="A run to put beside the paper's figures.", show_default=False),
    ] = None,
) -> None:
    """Check the figures that the paper prints against each other, and put a run beside them."""
    from emask.bench.paper import render
    from emask.bench.report import read

    typer.echo(render(None if document is None else read(document)), nl=False)
