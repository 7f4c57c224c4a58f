"""Which photos a run reads and where each result goes; decided, and refused, before any work is done."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from emask.errors import EmaskError, UsageError

# File name endings that are taken for photos when a folder is searched, and the format each stands for.
PHOTO_FORMATS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP",
}  # fmt: skip
PHOTO_SUFFIXES = frozenset(PHOTO_FORMATS)
# Those of pictures that nothing here reads: where a folder has some, it is said, so that nobody takes them for done.
OTHER_SUFFIXES = frozenset({".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif"})
STANDARD = "-"


@dataclass(frozen=True)
class Job:
    """One photo to work on.

    Attributes:
        source: the file, or None for standard input.
        output: the file to write, or None for standard output.
        explicit: the output file was named by the user, so that its ending must fit the photo's format.
        among: the output folder holds photos of the run as well: what is there already may be an original.
    """

    source: Path | None
    output: Path | None
    explicit: bool = False
    among: bool = False

    @property
    def source_name(self) -> str:
        """For messages and reports."""
        return STANDARD if self.source is None else str(self.source)

    @property
    def output_name(self) -> str:
        """For messages and reports."""
        return STANDARD if self.output is None else str(self.output)


def is_there(path: Path, unclear: type[EmaskError] = UsageError) -> bool:
    """Whether a path leads to a file or folder.

    Raises:
        unclear: it cannot be told, where `Path.exists` ends in a traceback: a folder on the way that may not be
            searched, a name that is too long.
    """
    try:
        path.stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return False
        raise unclear(f"{path}: {error.strerror or error}", "check the name, and who may open its folder") from None
    return True


def plan(
    inputs: Sequence[str],
    output: str | None,
    default_folder: str,
    *,
    keep: Iterable[Path] = (),
    leave_out: Collection[str] = (),
    tell: Callable[[str], None] = lambda line: None,
) -> list[Job]:
    """Pair every photo with its output.

    Folders are searched recursively; hidden files, the output folder itself, folders of earlier results and links to
    folders are left out. Results keep their path relative to the folder named on the command line. A photo named twice
    is one job, the first.

    Args:
        inputs: files, folders, or "-" alone for standard input.
        output: a folder, a file (for one input file), "-" for standard output, or None for the default: a folder
            `default_folder` beside the one input folder, otherwise in the working directory.
        default_folder: name of the default output folder.
        keep: further files that must never be written over (the target, the key).
        leave_out: names of folders of earlier results; one that is itself among the inputs is searched.
        tell: is handed a line each about links to folders, folders of earlier results and pictures of other formats
            that were left out, if there are any.

    Raises:
        UsageError: missing inputs, folders without photos or that cannot be read, two photos with one output, an output
            that is an input, or that is called like a picture and can be none.
    """
    hint = "name files, folders, or - for standard input"
    if not inputs:
        raise UsageError("no photos named", hint)
    if "" in inputs:  # Path("") is the working directory
        raise UsageError("the name of a photo is empty", hint)
    if output == "":
        raise UsageError("the name of the output is empty", "name a folder, or a file for a single photo, with -o")
    if output is not None:
        _refuse_endings(output, OTHER_SUFFIXES)
    if STANDARD in inputs:
        if len(inputs) > 1:
            raise UsageError("- stands for one photo on standard input and cannot be mixed with files")
        if output in (None, STANDARD):
            return [Job(None, None)]
        assert output is not None
        if _is_folder_name(output):
            raise UsageError(f"{output} is a folder", "name an output file for a photo from standard input")
        jobs = [Job(None, Path(output), explicit=True)]
        _refuse_collisions(jobs, keep)
        return jobs
    paths = [Path(name) for name in inputs]
    for path in paths:
        if not is_there(path):
            raise UsageError(f"no such file or folder: {path}")
    if output == STANDARD:
        if len(paths) != 1 or paths[0].is_dir():
            raise UsageError("only one photo can be written to standard output", "name one file with -o -")
        return [Job(paths[0], None)]
    if output is not None and len(paths) == 1 and not paths[0].is_dir() and _is_file_name(output):
        jobs = [Job(paths[0], Path(output), explicit=True)]
    else:
        folder = Path(output) if output is not None else _default_folder(paths, default_folder)
        if os.path.exists(folder) and not folder.is_dir():
            raise UsageError(f"output {folder} is a file", "name a folder with -o")
        if output is not None:
            _refuse_endings(output, PHOTO_SUFFIXES)
        jobs = _jobs(paths, folder, leave_out, tell)
    _refuse_collisions(jobs, keep)
    return jobs


def _is_folder_name(output: str) -> bool:
    return output.endswith(("/", os.sep)) or os.path.isdir(Path(output))


def _is_file_name(output: str) -> bool:
    if _is_folder_name(output):
        return False
    return os.path.isfile(output) or Path(output).suffix.lower() in PHOTO_SUFFIXES


def _refuse_endings(output: str, suffixes: Collection[str]) -> None:
    """Refuse a picture's name, which would become that of a new folder, or of a file of another format."""
    if Path(output).suffix.lower() in suffixes and not _is_folder_name(output):
        raise UsageError(
            f"results keep their format, and there is no folder {output}",
            f"name a folder, or for a single photo a file ending in {', '.join(sorted(PHOTO_SUFFIXES))}",
        )


def _default_folder(paths: list[Path], name: str) -> Path:
    if len(paths) == 1 and paths[0].is_dir() and paths[0].name not in ("", ".", ".."):
        return paths[0].parent / name
    return Path(name)


@dataclass
class _Search:
    """How folders are searched, and what was left out of them, each once and in order.

    Attributes:
        output: the output folder, which is no input.
        results: names of folders of earlier results.
        named: the inputs, whatever they are called.
    """

    output: Path
    results: Collection[str]
    named: set[Path]
    links: dict[str, None] = field(default_factory=dict)
    earlier: dict[str, None] = field(default_factory=dict)
    others: dict[Path, None] = field(default_factory=dict)

    def enters(self, folder: Path) -> bool:
        """Whether a folder below an input is searched."""
        place = real_path(folder)
        if folder.name.startswith(".") or place == self.output:
            return False
        if folder.is_symlink():
            self.links[str(folder)] = None
            return False
        if folder.name in self.results and place not in self.named:
            self.earlier[str(folder)] = None
            return False
        return True

    def notes(self) -> Iterator[str]:
        """A line about each kind of what was left out."""
        if self.links:
            yield f"links to folders are not followed: {', '.join(self.links)}"
        if self.earlier:
            yield f"folders of earlier results are left out unless named: {', '.join(self.earlier)}"
        if self.others:
            counts = Counter(path.suffix.lower() for path in self.others)
            told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(counts.items()))
            yield f"pictures that are not PNG, JPEG or WebP are left out: {told}"


def _jobs(
    paths: list[Path], folder: Path, leave_out: Collection[str], tell: Callable[[str], None]
) -> list[Job]:
    jobs: dict[Path, Job] = {}
    own = real_path(folder)
    search = _Search(own, leave_out, {real_path(path) for path in paths if path.is_dir()})
    holders = {real_path(path if path.is_dir() else path.parent) for path in paths}
    mark = _marks(own)
    among = any(mark & _marks(above) for above in holders.union(*(holder.parents for holder in holders)))
    for path in paths:
        if path.is_dir():
            if real_path(path) == own:
                raise UsageError(f"the output folder {folder} is an input folder", "name another folder with -o")
            for found in _photos(path, search):
                jobs.setdefault(found.absolute(), Job(found, folder / found.relative_to(path), among=among))
        else:
            jobs.setdefault(path.absolute(), Job(path, folder / path.name, among=among))
    for line in search.notes():
        tell(line)
    if not jobs:
        endings = ", ".join(sorted(PHOTO_SUFFIXES))
        raise UsageError(f"no photos in {', '.join(map(str, paths))}", f"looked for files ending in {endings}")
    return list(jobs.values())


def _photos(folder: Path, search: _Search) -> list[Path]:
    """The photos below a folder."""

    def refuse(error: OSError) -> None:  # os.walk would go on without the folder, its photos silently left out
        name, reason = error.filename, error.strerror or error
        raise UsageError(f"cannot read the folder {name}: {reason}", "make it readable, or name photos and folders")

    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        here = Path(root)
        folders[:] = [name for name in sorted(folders) if search.enters(here / name)]
        for path in (here / name for name in sorted(files) if not name.startswith(".")):
            if path.suffix.lower() in PHOTO_SUFFIXES:
                found.append(path)
            elif path.suffix.lower() in OTHER_SUFFIXES:
                search.others[path.absolute()] = None
    return found


def _refuse_collisions(jobs: list[Job], keep: Iterable[Path]) -> None:
    originals = {mark for job in jobs for mark in (_marks(job.source) if job.source else _standard_input())}
    originals |= {mark for path in keep for mark in _marks(path)}
    outputs: dict[str, Job] = {}
    folded: dict[str, Job] = {}
    for job in jobs:
        assert job.output is not None
        if _marks(job.output) & originals:
            raise UsageError(
                f"{job.output} would overwrite an original", "name another folder with -o; originals are never replaced"
            )
        real = os.path.realpath(job.output)
        other, hint = outputs.setdefault(real, job), "work on one folder at a time, each with its own -o"
        if other is job:
            other, hint = folded.setdefault(real.lower(), job), "A.jpg is a.jpg there: rename one of them"
            if other is job or not _ignores_case(job.output.parent):
                continue
        raise UsageError(f"{other.source_name} and {job.source_name} would both be written to {job.output}", hint)


def _ignores_case(folder: Path) -> bool:
    """Whether A.jpg is a.jpg in a folder, there or to be made. It is tried, because no system tells it of a folder."""
    place = real_path(folder)
    nearest = next(path for path in (place, *place.parents) if os.path.isdir(path))
    try:
        with tempfile.NamedTemporaryFile(prefix=".emask-A-", dir=nearest) as probe:
            name = Path(probe.name)
            return os.path.exists(name.with_name(name.name.lower()))
    except OSError:
        return True  # not to be told: rather refused than one written over the other


def real_path(path: Path) -> Path:
    """A path with links resolved; `Path.resolve` raises for a link to itself before Python 3.13."""
    return Path(os.path.realpath(path))


def _marks(path: Path) -> set[str | tuple[int, int]]:
    """What tells a file: its path with links resolved and, so that hard links are seen, its device and inode."""
    marks: set[str | tuple[int, int]] = {os.path.realpath(path)}
    try:
        status = path.stat()
        marks.add((status.st_dev, status.st_ino))
    except OSError:
        pass  # not there yet
    return marks


def _standard_input() -> set[str | tuple[int, int]]:
    """What tells the file that standard input was redirected from, if it was."""
    try:
        status = os.fstat(0)
    except OSError:  # closed
        return set()
    return {(status.st_dev, status.st_ino)} if stat.S_ISREG(status.st_mode) else set()


def make_folder(path: Path, option: str = "-o") -> None:
    """An output folder, made unless it is there.

    Args:
        option: of the command line, which names it.

    Raises:
        EmaskError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".emask-probe"
        probe.touch()
        probe.unlink(missing_ok=True)  # another process of a training run may have been faster
    except OSError as error:
        hint = f"name another folder with {option}"
        raise EmaskError(f"cannot write to {path}: {error.strerror or error}", hint) from None
