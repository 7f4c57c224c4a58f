"""`emask bench` as a group: the benchmark itself, and commands for what it writes and whom it is judged by."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from emask.cli import options
from emask.cli.bench import bench as run
from emask.cli.console import reporting, show_json
from emask.cli.group import CommandGroup
from emask.results import JSON_VERSION

bench = typer.Typer(cls=CommandGroup, invoke_without_command=True, no_args_is_help=True)
bench.callback()(run)

if TYPE_CHECKING:
    from tqdm import tqdm

Document = Annotated[Path, typer.Argument(metavar="BENCH.JSON", help="A bench.json of `emask bench -o FOLDER`.")]


@bench.command("report", no_args_is_help=True)
def report(
    document: Document,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The page. [default: report.html beside the JSON]")
    ] = None,
) -> None:
    """Make one HTML page of a run: every table, plots, what was run."""
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
    from emask.bench.paper import beside

    typer.echo(beside(document), nl=False)


@bench.command("robustify", no_args_is_help=True)
def robustify(
    recognizers: Annotated[Path, typer.Option(help="Folder of recognizers with recognizers.json; it is not changed.")],
    data: Annotated[
        Path, typer.Option(help="Folder of photos with lfw_pairs.txt: people of its last folds measure, others tune.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for NAME-robust.onnx and their recognizers.json.")
    ],
    recognizer: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="One of them; repeatable. [default: those of fold B]")
    ] = None,
    minutes: Annotated[
        float, typer.Option(min=0.0, help="Time to fine-tune each of them; measuring comes on top.")
    ] = 30.0,
    faces: Annotated[int, typer.Option(min=2, help="Photos that are attacked to measure it, one a person.")] = 100,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    device: options.DeviceChoice = options.Device.auto,
    as_json: options.Json = False,
) -> None:
    """Fine-tune recognizers adversarially, to bench masks against: robust copies with cards, measured before and after.

    Then: `emask bench --recognizers OUT --black-box NAME-robust ...`
    """
    from emask.bench.on_photos import prepare

    prepare()
    with reporting("bench robustify", as_json):
        from platformdirs import user_cache_path

        from emask.bench import robustify as work

        bars = _Bars()
        box = work.WhiteBox(faces=faces, seed=seed)
        try:
            cards = work.robustify(
                recognizers, recognizer, data, output, user_cache_path("emask") / "training", minutes=minutes, box=box,
                seed=seed, device=device.value, progress=bars.progress,
            )  # fmt: skip
        finally:
            bars.close()
        if as_json:
            summary = {"folder": str(output), "exit_code": 0}
            show_json({"version": JSON_VERSION, "command": "bench robustify", "recognizers": cards, "summary": summary})
            return
        typer.echo(work.render(cards))
        named = " ".join(f"--black-box {card['name']}" for card in cards)
        typer.echo(f"done: {output}. Next: emask bench --data {data} --recognizers {output} {named}")


class _Bars:
    """A bar for each piece of work on standard error, where that is a terminal, with lines above it."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._what = ""

    def progress(self, what: str, share: float, line: str) -> None:
        """The share of a piece of work that is done."""
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self.close()
            shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
            self._what, self._bar = what, tqdm(total=100, desc=what, bar_format=shape, disable=None)
        if line and not self._bar.disable:
            self._bar.write(line, file=sys.stderr)
        self._bar.update(min(100.0, 100 * share) - self._bar.n)

    def close(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()
