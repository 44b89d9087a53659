"""Writing files and directories so that a reader never sees half of one.

Every writer of the package goes through here: the content is written to a temporary file beside its
destination, flushed to the disk, and moved over the destination by one rename. A crash, a kill or a full
disk leaves the old content (or nothing), never a part, and the temporary file is removed whenever the
process still can.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from .errors import InputError

#: Temporary names start with this, so that a cleaner can tell what a killed process left behind.
TEMPORARY_PREFIX = ".ameir-fast-"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> Path:
    """Write ``data`` to ``path`` atomically and return the path.

    Raises:
        OSError: the directory is missing or the disk is full; ``path`` is then what it was before the call.
    """
    with open_atomic(path) as file:
        file.write(data)
    return Path(path)


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write ``text`` as UTF-8 with ``\\n`` line ends; otherwise like :func:`write_bytes`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(
    path: str | os.PathLike[str], value: Any, *, sort_keys: bool = False, indent: int | None = 2
) -> Path:
    """Write ``value`` as JSON (UTF-8, newline at the end); otherwise like :func:`write_bytes`.

    NaN and infinities are refused, since other readers of JSON cannot take them.

    Raises:
        ValueError: ``value`` holds a NaN or an infinity.
        TypeError: ``value`` holds something JSON has no form for.
    """
    text = json.dumps(value, sort_keys=sort_keys, indent=indent, ensure_ascii=False, allow_nan=False)
    return write_text(path, text + "\n")


@contextmanager
def open_atomic(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file that becomes ``path`` when the block ends without an exception, and disappears otherwise.

    For content too large to hold in memory at once (``np.save`` into it, for example). A link is followed,
    and a device or pipe (``/dev/stdout``) is written directly, since a rename would put a file in its place.

    Raises:
        IsADirectoryError: ``path`` is a directory.
        OSError: the directory is missing or the disk is full; ``path`` is then what it was before.
    """
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if path.exists() and not path.is_file():
        with open(path, "wb") as file:
            yield file
        return
    temporary = temporary_beside(path)
    try:
        # O_EXCL: a name that exists already would be someone else's file. Mode 0o666 leaves the last word
        # to the umask, as open() does; tempfile.mkstemp would make run directories unreadable for
        # colleagues.
        descriptor = os.open(
            temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def replace_dir(
    temporary: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    overwrite: bool = False,
    aside: Path | None = None,
) -> Path:
    """Move the finished directory ``temporary`` to ``destination`` (same file system) and return the
    destination.

    ``destination`` may be absent or an empty directory. With ``overwrite`` it may also be a filled
    directory: the old one is first renamed to ``aside`` (default: a temporary name beside it) and removed once
    the new one stands, and put back if the move fails.

    Raises:
        InputError: ``destination`` is in use and ``overwrite`` is off, or it is not a directory.
        OSError: the rename failed; the old directory is then back in its place.
    """
    temporary, destination = Path(temporary), Path(destination)
    check_output_dir(destination, overwrite=overwrite)
    sync_tree(temporary)
    aside = aside or temporary_beside(destination)
    replaced = False
    if destination.exists():
        if any(destination.iterdir()):
            os.rename(destination, aside)
            replaced = True
        else:
            destination.rmdir()
    try:
        os.rename(temporary, destination)
    except OSError:
        if replaced:
            os.rename(aside, destination)
        raise
    sync_directory(destination.parent)
    if replaced:
        shutil.rmtree(aside)
    return destination


@contextmanager
def new_dir(destination: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A fresh directory beside ``destination`` that takes its place when the block ends well, and is
    removed otherwise.

    Raises:
        InputError: as :func:`replace_dir`, and before any work is done.
    """
    destination = Path(destination)
    check_output_dir(destination, overwrite=overwrite)
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(destination)
    temporary.mkdir()
    try:
        yield temporary
        replace_dir(temporary, destination, overwrite=overwrite)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_output_dir(destination: str | os.PathLike[str], overwrite: bool = False) -> None:
    """Raise InputError when ``destination`` cannot take a new directory's content: it is a file, or filled
    and not to be overwritten."""
    destination = Path(destination)
    if destination.is_symlink() or (destination.exists() and not destination.is_dir()):
        raise InputError(f"{destination} exists and is not a directory")
    if destination.is_dir() and not overwrite and any(destination.iterdir()):
        raise InputError(
            f"output directory {destination} is in use (not empty): choose another one, or --overwrite replaces it"
        )


def temporary_beside(path: Path) -> Path:
    """A fresh name in the directory of ``path``: a rename is atomic only within one file system."""
    return path.parent / f"{TEMPORARY_PREFIX}{path.name[:100]}.{os.getpid()}.{secrets.token_hex(4)}"


def sync_tree(directory: Path) -> None:
    """fsync every file and directory under ``directory``."""
    for root, _, files in os.walk(directory):
        for name in files:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_directory(Path(root))


def sync_directory(directory: Path) -> None:
    """fsync a directory, so that a rename in it survives a power cut. Systems and file systems without that
    skip it."""
    if os.name == "nt":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
