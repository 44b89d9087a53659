"""What a run directory holds, read without assuming that the run is finished."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError
from ..schema import read_json

#: Files of a run directory that the report reads; one of them must exist for the directory to count as a run.
FILES = ("config.json", "architecture.json", "metrics.json", "rankings.json", "history.jsonl")


@dataclass(frozen=True)
class Run:
    """Parsed files of a run directory; what does not exist yet is None (or empty)."""

    directory: Path
    config: dict | None = None
    architecture: dict | None = None
    metrics: dict | None = None
    rankings: dict | None = None
    model: dict | None = None
    history: list[dict] = field(default_factory=list)
    broken_lines: int = 0

    @property
    def schema(self) -> dict | None:
        """The schema the found model was built for, as its JSON form."""
        return (self.model or {}).get("schema")

    @property
    def finished(self) -> bool:
        """Whether the run has come to its final table."""
        return bool(self.metrics and self.metrics.get("variants"))


def read_run(directory: str | Path) -> Run:
    """Read a run directory, finished or not.

    Raises:
        InputError: the directory does not exist, holds no file of a run, or one of its files is not a JSON
        object.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise InputError(f"{directory}: no such run directory")
    if not any((directory / name).exists() for name in FILES):
        raise InputError(f"{directory} is not a run directory: it holds none of {', '.join(FILES)}")
    model = _object(directory / "model" / "model.json")
    architecture = _object(directory / "architecture.json")
    history, broken = read_history(directory / "history.jsonl")
    return Run(
        directory=directory,
        config=_object(directory / "config.json"),
        architecture=architecture or (model or {}).get("architecture"),
        metrics=_object(directory / "metrics.json"),
        rankings=_object(directory / "rankings.json"),
        model=model,
        history=history,
        broken_lines=broken,
    )


def read_history(path: Path) -> tuple[list[dict], int]:
    """The records of ``history.jsonl`` and the number of lines that are not JSON objects.

    A run that was killed while it appended leaves half a line behind, which must not hide all the others. One
    that was killed between a line and its checkpoint writes the line again when it goes on: the later one counts.
    """
    if not path.exists():
        return [], 0
    records, broken = [], 0
    for line in path.read_bytes().splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError:  # includes bytes that are not UTF-8
            broken += 1
            continue
        if isinstance(record, dict) and isinstance(record.get("stage"), str):
            records.append(record)
        else:
            broken += 1
    latest = {(r.get("repeat"), r["stage"], r.get("step", number)): r for number, r in enumerate(records)}
    return list(latest.values()), broken


def _object(path: Path) -> dict | None:
    if not path.exists():
        return None
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: not a JSON object")
    return value
