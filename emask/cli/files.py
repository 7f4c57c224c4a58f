"""What protect and erase share: standard streams, and running a batch while reporting it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from emask.cli.console import Report, leave_output
from emask.errors import ImageError, UsageError
from emask.paths import STANDARD, Job, is_there, real_path
from emask.results import RunResult

if TYPE_CHECKING:
    from emask.pipeline.batch import Work, Writing


def refuse_json_on_stdout(jobs: Sequence[Job], as_json: bool) -> None:
    """A picture and a document cannot share standard output.

    Raises:
        UsageError: when both would be written there.
    """
    if as_json and any(job.output is None for job in jobs):
        raise UsageError("--json and a picture cannot both go to standard output", "name an output file with -o")


def check_writable(jobs: Sequence[Job]) -> None:
    """See before the work whether results can be written at all.

    Raises:
        ImageError: the output folder, or the nearest one above it that exists, takes no files; a name is too long.
    """
    for folder in {job.output.parent for job in jobs if job.output is not None}:
        nearest = next(path for path in (folder, *real_path(folder).parents) if os.path.exists(path))
        if not nearest.is_dir():
            raise UsageError(f"output folder {folder}: {nearest} is a file", "choose another folder with -o")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise ImageError(f"cannot write into {nearest}: permission denied", "choose another folder with -o")
    for job in jobs:
        if job.output is not None:
            is_there(job.output, ImageError)


def refuse_originals(jobs: Sequence[Job]) -> None:
    """Replace nothing in a folder that holds photos of the run: the others in it are most likely originals as well.

    Raises:
        UsageError: something would be replaced.
    """
    for job in jobs:
        if job.among and job.output is not None and os.path.lexists(job.output):
            raise UsageError(
                f"{job.output} is there already, and may be an original: the output folder holds photos of this run",
                "name another folder with -o, or go on with a run into this one: --resume",
            )


def open_streams(
    jobs: Sequence[Job], output: str | None
) -> tuple[Callable[[], bytes], Callable[[bytes], None]]:
    """Functions that read the photo on standard input and write the one to standard output.

    Raises:
        UsageError: when a photo is awaited from a terminal, or bytes would be written to one without `-o -`.
    """
    if any(job.source is None for job in jobs) and (sys.stdin is None or sys.stdin.isatty()):
        raise UsageError("- reads a photo from standard input, which is a terminal or closed", "pipe a photo in")
    if any(job.output is None for job in jobs) and output != STANDARD and sys.stdout.isatty():
        raise UsageError("a picture is not written to a terminal", "name an output file with -o, or insist with -o -")

    def read() -> bytes:
        return sys.stdin.buffer.read()

    def write(data: bytes) -> None:
        try:
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        except BrokenPipeError:  # nobody is there to be told
            raise
        except OSError as error:
            leave_output()
            raise ImageError(f"cannot write to standard output: {error.strerror or error}") from None

    return read, write


def execute(
    command: str,
    jobs: Sequence[Job],
    work: Work,
    writing: Writing,
    engine: str,
    details: dict[str, Any],
    *,
    as_json: bool,
) -> int:
    """Run a batch, show each result as it comes and the summary at the end; the exit code."""
    from emask.pipeline.batch import run_batch, timed

    with Report(len(jobs), as_json=as_json, to_stderr=any(job.output is None for job in jobs)) as report:
        files, seconds = timed(run_batch(jobs, work, writing), report.add)
    run = RunResult(command, files, engine, seconds, details)
    report.finish(run)
    return run.exit_code
