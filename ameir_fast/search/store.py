"""The run directory: results that survive a kill at any moment, and a lock against a second run."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from ..atomic import write_json
from ..errors import InputError
from ..schema import read_json
from ..storage import read_tensors, save_tensors

try:
    import fcntl
except ImportError:  # Windows has no flock; runs there are not guarded against each other
    fcntl = None

CHECKPOINT = "checkpoint"
VERSION = 1  # of the JSON files in it


class RunDirectory:
    """``config.json``, ``history.jsonl`` and ``checkpoint/`` of one run; the other files come at its end.

    Opening raises ``InputError`` when the directory is used by a live process, holds a run that was not to
    be resumed or overwritten, or was made with other settings or data than those given.
    """

    def __init__(self, path: str | Path, identity: dict, resume: bool = False, overwrite: bool = False):
        self.path = Path(path)
        self._logging = threading.Lock()  # trainings side by side write into one history
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path}: exists and is not a directory")
        config = self.path / "config.json"
        used = config.exists()
        if not used and self.path.is_dir() and any(not p.name.startswith(".") for p in self.path.iterdir()):
            raise InputError(f"{self.path}: not empty and not a run directory")
        if used and not (resume or overwrite):
            raise InputError(f"{self.path}: output directory in use; --resume continues its run, "
                             "--overwrite starts over")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            if used and resume:
                self._compare(read_json(config), identity)
                self._cut_torn_line()
            elif used:
                self.clear()
            if not (used and resume):
                write_json(config, identity)
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        self._lock_file = open(self.path / ".lock", "a")  # noqa: SIM115 - held until close()
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock_file.close()
            raise InputError(f"{self.path}: output directory in use by another process") from None

    def _compare(self, found: dict, identity: dict) -> None:
        version = found.get("version") if isinstance(found, dict) else None
        if version != identity["version"]:
            raise InputError(f"{self.path}: a run of version {version!r} is not supported "
                             f"(this is version {identity['version']})")
        for key in identity.keys() | found.keys():
            mine, theirs = found.get(key), identity.get(key)
            if mine == theirs:
                continue
            if isinstance(mine, dict) and isinstance(theirs, dict):
                name = next(k for k in mine.keys() | theirs.keys() if mine.get(k) != theirs.get(k))
                raise InputError(f"{self.path}: its run has {key} {name} = {mine.get(name)!r}, "
                                 f"not {theirs.get(name)!r}; resume with the same settings")
            raise InputError(f"{self.path}: its run has {key} = {mine!r}, not {theirs!r}; "
                             "resume with the same settings")

    def clear(self) -> None:
        """Leaves the directory as it was before anything began in it."""
        # config.json goes last: until then a kill leaves what still counts as a run directory.
        for entry in sorted(self.path.iterdir(), key=lambda entry: entry.name == "config.json"):
            if entry.name != ".lock":
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _cut_torn_line(self) -> None:
        """A kill can leave half a line at the end of the history."""
        history = self.path / "history.jsonl"
        if history.exists():
            data = history.read_bytes()
            if data and not data.endswith(b"\n"):
                with open(history, "r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)

    def close(self) -> None:
        self._lock_file.close()

    def __enter__(self) -> RunDirectory:
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def log(self, **record) -> None:
        """One line of ``history.jsonl``."""
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record})
        with self._logging, open(self.path / "history.jsonl", "a", encoding="utf-8") as file:
            file.write(line + "\n")

    def scope(self, *names: object) -> Scope:
        return Scope(self, tuple(str(n) for n in names))


class Scope:
    """One place of the run (a repeat, a stage): its checkpoints and its history lines."""

    def __init__(self, run: RunDirectory, names: tuple[str, ...]):
        self.run, self.names = run, names

    def scope(self, *names: object) -> Scope:
        return Scope(self.run, self.names + tuple(str(n) for n in names))

    @property
    def stage(self) -> str:
        """``behavior.train`` for the scope (repeat, behavior, train)."""
        return ".".join(self.names[1:])

    def _path(self, name: str, ending: str) -> Path:
        return self.run.path / CHECKPOINT / Path(*self.names) / f"{name}.{ending}"

    def log(self, **record) -> None:
        repeat = int(self.names[0]) if self.names and self.names[0].isdigit() else 0
        self.run.log(repeat=repeat, stage=self.stage, **record)

    def result(self, name: str, compute: Callable[[], object]) -> object:
        """The stored JSON result of that name, or ``compute()``'s, stored."""
        found = self.load(name)
        if found is None:
            self.save(name, compute())
            found = self.load(name)
        return found

    def load(self, name: str):
        path = self._path(name, "json")
        if not path.exists():
            return None
        found = read_json(path)
        version = found.get("version") if isinstance(found, dict) else None
        if version != VERSION or "result" not in found:
            raise InputError(f"{path}: a checkpoint of version {version!r} is not supported "
                             f"(this is version {VERSION})")
        return found["result"]

    def save(self, name: str, value) -> None:
        path = self._path(name, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"version": VERSION, "result": value}, indent=None)

    def load_tensors(self, name: str) -> tuple[dict[str, Tensor], dict] | None:
        path = self._path(name, "safetensors")
        return read_tensors(path) if path.exists() else None

    def forget_tensors(self, name: str) -> None:
        """Removes what ``save_tensors`` stored, if anything: once a result is stored nobody reads how it came about, and
        hundreds of finalists would fill the disk."""
        self._path(name, "safetensors").unlink(missing_ok=True)

    def save_tensors(self, name: str, tensors: dict[str, Tensor], about: dict) -> None:
        path = self._path(name, "safetensors")
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, tensors, about)
