"""Vocabularies of a prepared directory, to prepare other rows like it."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..schema import read_json
from . import files
from .columns import check_about
from .encoder import Encoder
from .plan import TablePlan


class Like:
    """What rows prepared like those of ``directory`` share with it; ``sizes`` are those of its vocabularies.

    Raises ``InputError`` naming the file when one is missing or was changed, or when ``plan`` makes another schema
    than that of ``directory``.
    """

    def __init__(self, directory: Path, plan: TablePlan):
        path = directory / "dataset.json"
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory of prepared data")
        if not path.is_file():
            raise InputError(f"{directory}: no prepared data (there is no dataset.json)")
        self.directory, self.checksum = directory, files.sha256(path)
        about = read_json(path)
        check_about(path, about)
        self._checksums = about["checksums"]
        self.sizes = {v["name"]: v["size"] for v in about["vocabularies"]}
        files.checked(directory, "schema.json", self._checksums)
        wanted = plan.vocabulary_names
        if set(wanted) != set(self.sizes):
            raise InputError(
                f"{directory}: has the vocabularies {', '.join(self.sizes)}, but these rows need {', '.join(wanted)}"
            )
        full, default = (schema.to_dict() for schema in plan.schemas(self.sizes))
        stored = read_json(directory / "schema.json")
        for what, mine, theirs in (
            ("fields", full["fields"], about["all_fields"]),
            ("vocabularies", full["vocabularies"], about["vocabularies"]),
            *((key, default[key], stored.get(key)) for key in default),
        ):
            if mine != theirs:
                raise InputError(f"{directory}: its schema has {what} {theirs}, but these rows have {mine}")

    def encoder(self, name: str) -> Encoder:
        file = f"vocabularies/{files.file_name(name)}.json"
        if file not in self._checksums:
            return Encoder(self.sizes[name])
        files.checked(self.directory, file, self._checksums)
        return Encoder.from_json(read_json(self.directory / file), self.sizes[name])
