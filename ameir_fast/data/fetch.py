"""MovieLens-100K out of the recbole wheel, which pip downloads."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from ..atomic import new_dir, temporary_beside, write_bytes
from ..errors import InputError
from .files import sha256

REQUIREMENT = "recbole==1.2.1"
#: Where the data lies in the wheel.
PREFIX = "recbole/dataset_example/ml-100k/"
WHEEL_HASH = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
MEMBER_HASHES = {
    "ml-100k.inter": "4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff",
    "ml-100k.item": "51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532",
    "ml-100k.user": "4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972",
}


def fetch_movielens(directory: str | Path, *, on_progress: Callable[[str], None] | None = None) -> Path:
    """The three files of MovieLens-100K in ``directory``, downloaded unless they are there already; returns
    it.

    pip downloads one wheel, with whatever index this environment is set to, without installing it or what it
    depends on. Hashes of the wheel and of each file are checked. ``directory`` appears whole or not at all.

    Raises ``InputError`` when pip is missing, the download fails, or a hash is not the known one.
    """
    directory = Path(directory)
    if directory.is_dir() and all(
        (directory / name).is_file() and sha256(directory / name) == digest
        for name, digest in MEMBER_HASHES.items()
    ):
        return directory
    if on_progress:
        on_progress(f"downloading MovieLens-100K (in the wheel of {REQUIREMENT}, 2 MB)")
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = temporary_beside(directory)
    scratch.mkdir()
    try:
        wheel = _download(scratch)
        if sha256(wheel) != WHEEL_HASH:
            raise InputError(
                f"{wheel.name}: its sha256 is {sha256(wheel)}, not {WHEEL_HASH}; the download is damaged "
                "or not the known file"
            )
        with zipfile.ZipFile(wheel) as opened:
            contents = check_members(wheel, opened)
        # What is there failed the check above, so it is replaced.
        with new_dir(directory, overwrite=True) as fresh:
            for name, (data, _) in contents.items():
                write_bytes(fresh / name, data)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return directory


def _download(directory: Path) -> Path:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--no-input",
        "--disable-pip-version-check",
        "--quiet",
        "--retries",
        "2",
        "--dest",
        str(directory),
        REQUIREMENT,
    ]
    # On Ctrl-C subprocess.run ends pip before it lets the KeyboardInterrupt through.
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = sorted(directory.glob("*.whl"))
    if done.returncode or len(found) != 1:
        raise InputError(
            f"pip could not download {REQUIREMENT} ({_reason(done)}); with the wheel or its ml-100k "
            "directory at hand, pass it as the input"
        )
    return found[0]


def _reason(done: subprocess.CompletedProcess) -> str:
    """What pip complained of, in one line."""
    # Its last line says then that there is no such version, which is only the consequence.
    if "connection broken" in done.stderr:
        return "the package index cannot be reached"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines or [f"exit code {done.returncode}"])[-1]


def check_members(source: Path, wheel: zipfile.ZipFile) -> dict[str, tuple[bytes, str]]:
    """Content and hash of the three files in a wheel of recbole; ``InputError`` when one is missing or not
    the known one.
    """
    contents = {}
    for name, known in MEMBER_HASHES.items():
        try:
            data = wheel.read(PREFIX + name)
        except KeyError:
            raise InputError(f"{source}: {PREFIX}{name} is not in it") from None
        digest = hashlib.sha256(data).hexdigest()
        if digest != known:
            raise InputError(f"{source}: {name} has the sha256 {digest}, not {known}")
        contents[name] = data, digest
    return contents
