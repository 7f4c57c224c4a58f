"""What the commands print, and where.

Standard output carries the product only: the report, the JSON document, or the picture itself. Errors, hints and
progress go to standard error, progress only when that is a terminal.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

import typer

from emask.errors import EmaskError
from emask.results import JSON_VERSION, FaceErasure, FaceProtection, FileResult, RunResult, VerifyResult

if TYPE_CHECKING:
    from tqdm import tqdm

# What a batch has told of so far, for the document of a run that is stopped.
_finished: list[FileResult] = []


def report_error(error: EmaskError) -> None:
    """`error: ...` and, where there is one, `hint: ...` on standard error."""
    print(f"error: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def note(line: str) -> None:
    """What the user should know though nothing is wrong, on standard error."""
    print(f"note: {line}", file=sys.stderr)


def leave_output() -> None:
    """Write what standard output still holds, or drop it where that fails and would fail once more at exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stopped(error: BaseException, words: Sequence[str]) -> EmaskError:
    """What is told of what stops a run: an interruption, memory that ran out, or an OSError.

    Args:
        words: the command line, or as much of it as is known; an interruption's hint depends on it.
    """
    if isinstance(error, MemoryError):
        return EmaskError("out of memory", "close other programs, or ask for less at a time")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return EmaskError(f"{where}{error.strerror or error}")
    hint = "run again with --resume to go on" if _can_go_on(words) else ""
    told = EmaskError("interrupted; finished files are whole", hint)
    told.exit_code = 130
    return told


def _can_go_on(words: Sequence[str]) -> bool:
    """Whether a command line takes --resume."""
    command, *rest = words or [""]
    if command == "train":  # a recognizer is trained in one go
        return not {"recognizer", "refiner"}.intersection(word.rpartition("=")[2] for word in rest)
    if command == "bench":  # it keeps what is done in --output; the commands below it keep nothing
        return bool(rest) and rest[0].startswith("-") and any(word.startswith(("-o", "--output")) for word in rest)
    return command in ("protect", "erase")


@contextmanager
def reporting(command: str, as_json: bool) -> Iterator[None]:
    """Turn an EmaskError into its report and exit code; with `--json` the document tells of what stops a run too."""
    _finished.clear()
    try:
        yield
    except EmaskError as error:
        report_error(error)
        if as_json:
            _show_stopped(command, error)
        raise typer.Exit(error.exit_code) from None
    except (KeyboardInterrupt, MemoryError, OSError) as error:  # the line about them is `main`'s
        if as_json and not isinstance(error, BrokenPipeError):
            with suppress(OSError):  # it may be standard output itself that failed
                _show_stopped(command, stopped(error, [command]))
        raise


def _show_stopped(command: str, error: EmaskError) -> None:
    files = RunResult(command, tuple(_finished), "", 0.0).to_dict()["files"]
    summary = {"exit_code": error.exit_code, "error": {"message": error.message, "hint": error.hint}}
    show_json({"version": JSON_VERSION, "command": command, "files": files, "summary": summary})


def show_json(document: dict[str, Any]) -> None:
    """One document on standard output; what cannot be encoded there as JSON's own \\u escapes."""
    unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(document, indent=2, ensure_ascii=not unicode))


class Report:
    """Shows the results of a batch as they come.

    Args:
        total: number of photos.
        as_json: collect for one document instead of printing lines.
        to_stderr: lines go to standard error, because standard output carries a picture.
    """

    def __init__(self, total: int, *, as_json: bool, to_stderr: bool) -> None:
        self._as_json = as_json
        self._stream: TextIO = sys.stderr if to_stderr else sys.stdout
        self._bar: tqdm[Any] | None = None
        if total > 1 and not as_json and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit="photo", file=sys.stderr, leave=False)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, file: FileResult) -> None:
        """Show one result: what failed or shows no face on standard error, the rest as a line with its faces."""
        _finished.append(file)
        if file.status in ("failed", "no-face"):
            self._say(f"{'error' if file.status == 'failed' else 'no face'}: {_told(file)}", sys.stderr)
            if file.hint and file.status == "failed":
                self._say(f"hint: {file.hint}", sys.stderr)
        elif not self._as_json:
            for line in file_lines(file):
                self._say(line, self._stream)
        if self._bar is not None:
            self._bar.update()

    def finish(self, run: RunResult) -> None:
        """Show the summary, or the whole document."""
        if self._as_json:
            show_json(run.to_dict())
        else:
            self._say(summary_line(run), self._stream)

    def _say(self, text: str, stream: TextIO) -> None:
        if self._bar is not None:
            self._bar.write(text, file=stream)
        else:
            print(text, file=stream)


def _told(file: FileResult) -> str:
    """The message, with the file's name in front where it does not say it."""
    name = "standard input" if file.source == "-" else file.source
    return file.message if name in file.message else f"{name}: {file.message}"


def file_lines(file: FileResult) -> list[str]:
    """One line for the file and one for each of its faces."""
    if file.status == "skipped":
        return [f"{file.source}: skipped, {file.output} is there already"]
    lines = [f"{file.source} -> {file.output}"]
    for number, face in enumerate(file.faces, 1):
        left, top, right, bottom = face.box
        lines.append(f"  face {number} ({max(right - left, bottom - top)} px): {_numbers(face)}: {face.verdict}")
    return lines


def _numbers(face: FaceProtection | FaceErasure) -> str:
    if isinstance(face, FaceProtection):
        return (
            f"target {face.target_before:.2f} -> {_cosine(face.target_after)}, owner {_cosine(face.source_after)}"
            f" (threshold {face.threshold:.2f}), {face.psnr:.1f} dB"
        )
    text = f"protected to restored {_cosine(face.protected_restored)}"
    if face.reference_before is not None:
        text += f", reference {face.reference_before:.2f} -> {_cosine(face.reference_after)}"
    return f"{text} (threshold {face.threshold:.2f})"


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def summary_line(run: RunResult) -> str:
    """Counts, engine and speed in one line."""
    verb = {"protect": "protected", "erase": "restored"}[run.command]
    parts = [f"{run.count('done')} {verb}"]
    for status, words in (("no-face", "without a face"), ("skipped", "skipped"), ("failed", "failed")):
        if run.count(status):  # type: ignore[arg-type]
            parts.append(f"{run.count(status)} {words}")  # type: ignore[arg-type]
    return f"{', '.join(parts)}; {run.engine}; {run.seconds_per_photo:.2f} s per photo"


def verify_lines(result: VerifyResult) -> list[str]:
    """One line per recognizer, then the notes."""
    lines = []
    for comparison in result.comparisons:
        marks = ", ".join(f"{value:.3f} at FAR {far}" for far, value in comparison.thresholds.items())
        matched = [far for far, match in comparison.matches.items() if match]
        strictest = f"match at FAR {min(matched, key=float)}" if matched else "no match at any of these"
        lines.append(f"{comparison.recognizer}: cosine {comparison.cosine:.3f}: {comparison.verdict}")
        if marks:
            lines.append(f"  thresholds {marks}; {strictest}")
    return lines + [f"note: {note}" for note in result.notes]
