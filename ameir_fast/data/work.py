"""Work of several stages on one output directory, which goes on where it was killed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..atomic import TEMPORARY_PREFIX, check_output_dir, replace_dir, write_json
from ..errors import InputError
from ..schema import read_json

try:
    import fcntl
except ImportError:  # Windows has no flock; two processes are not kept from preparing one output there
    fcntl = None

_IDENTITY, _REPLACED = "identity.json", "replaced"
_BOOT = Path("/proc/sys/kernel/random/boot_id")


class Work:
    """A hidden directory beside ``output``, with a directory and, once it is finished, a JSON file for each stage."""

    def __init__(self, directory: Path, output: Path, overwrite: bool):
        self.directory, self.output, self.overwrite = directory, output, overwrite

    def stage(self, name: str, run: Callable[[Path], dict]) -> dict:
        """What ``run`` returned (as JSON), now or in an earlier attempt. It gets an empty directory to fill."""
        done = self._done(name)
        if not done.exists():
            path = self.path(name)
            if path.exists():
                shutil.rmtree(path)
            path.mkdir()
            result = run(path)
            write_json(done, result, indent=None)
        return read_json(done)

    def path(self, name: str) -> Path:
        """The directory of a stage."""
        return self.directory / name

    def finished(self, name: str) -> bool:
        return self._done(name).exists()

    def move(self, name: str, others: Sequence[str]) -> None:
        """The directory of stage ``name`` becomes the output; those of ``others`` are removed first.

        Raises ``InputError`` where something else has come there meanwhile.
        """
        _check_free(self.output, self.overwrite)
        for other in others:
            shutil.rmtree(self.path(other), ignore_errors=True)
        replace_dir(self.path(name), self.output, overwrite=self.overwrite, aside=self.directory / _REPLACED)

    def _done(self, name: str) -> Path:
        return self.directory / f"{name}.json"


def check_output(output: str | os.PathLike[str], overwrite: bool = False, last: str = "write") -> None:
    """Raises ``InputError`` when ``output`` is in use, like ``check_output_dir``, or holds something else than prepared data,
    which ``overwrite`` does not replace.

    Before that it removes what a kill in the last moments left beside it: the output is there already then, and the
    error is all that the same command comes to. ``last`` as for ``open_work``.
    """
    output = Path(output)
    directory = _beside(output)
    if directory.is_dir() and (lock := _locked(directory)) is not None:
        try:
            _put_back(directory, output)
            if not (directory / _IDENTITY).exists() or (
                (directory / f"{last}.json").exists() and not (directory / last).exists()
            ):
                shutil.rmtree(directory)
        finally:
            os.close(lock)
    _check_free(output, overwrite)


def _check_free(output: Path, overwrite: bool) -> None:
    if output.is_dir() and any(output.iterdir()) and not (output / "dataset.json").is_file():
        raise InputError(f"output directory {output} is in use (not empty) and holds no prepared data, which is all that --overwrite "
                         "replaces: choose another one")
    check_output_dir(output, overwrite)


def _beside(output: Path) -> Path:
    return output.parent / f"{TEMPORARY_PREFIX}{output.name[:100]}.prepare"


@contextmanager
def open_work(output: Path, identity: dict | None, last: str, overwrite: bool) -> Iterator[Work]:
    """The work on ``output``: begun anew, or what an earlier attempt of the same ``identity`` left.

    Gone when the block ends, except by Ctrl-C or a kill; and then too where ``identity`` is ``None``, since nothing
    could tell whether the next attempt is the same. ``last`` is the stage whose directory becomes the output.

    Raises ``InputError`` when the output is in use, or another process is preparing it.
    """
    directory = _beside(output)
    check_output(output, overwrite, last)
    output.parent.mkdir(parents=True, exist_ok=True)
    lock = _made(directory, output)
    keep = False
    try:
        _same_or_cleared(directory, identity)
        yield Work(directory, output, overwrite)
    except Exception:
        _put_back(directory, output)
        raise
    except BaseException:
        _put_back(directory, output)
        keep = identity is not None
        raise
    finally:
        if not keep:
            # The identity first: what is left if this is interrupted is then taken for rubbish.
            (directory / _IDENTITY).unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def identity_of(files: Sequence[Path], **what: object) -> dict | None:
    """What must be the same for work to go on: ``what``, and files by name, size and time of their last change."""
    if not files:
        return None
    stats = [(os.path.abspath(f), os.stat(f)) for f in files]
    # Nothing is flushed to the disk between stages, so work doesn't outlive a crash of the system.
    boot = _BOOT.read_text().strip() if _BOOT.exists() else None
    found = {**what, "files": [[name, s.st_size, s.st_mtime_ns] for name, s in stats], "boot": boot}
    return json.loads(json.dumps(found, default=str))


def _same_or_cleared(directory: Path, identity: dict | None) -> None:
    path = directory / _IDENTITY
    if identity is not None and path.exists() and read_json(path) == identity:
        return
    for entry in directory.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    write_json(path, identity)


def _put_back(directory: Path, output: Path) -> None:
    """Undoes half of an exchange of directories."""
    if (directory / _REPLACED).exists() and not output.exists():
        os.rename(directory / _REPLACED, output)


def _made(directory: Path, output: Path) -> int:
    while True:
        directory.mkdir(exist_ok=True)
        lock = _locked(directory)
        if lock is None:
            raise InputError(f"output directory {output} is being prepared by another process")
        try:
            if os.path.samestat(os.stat(directory), os.fstat(lock)):
                return lock
        except FileNotFoundError:
            pass
        os.close(lock)  # it was removed by the process that held it before


def _locked(directory: Path) -> int | None:
    """A descriptor that holds the lock on the directory, or ``None`` when another process has it."""
    if fcntl is None:
        return os.open(os.devnull, os.O_RDONLY)
    lock = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock
