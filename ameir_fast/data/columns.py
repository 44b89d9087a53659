"""What a prepared directory holds, checked when it is opened."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from ..errors import InputError
from ..schema import FeatureSchema, read_json
from . import files, order
from .encoder import names


class Columns:
    """The memory-mapped columns, splits and schemas of one directory; what its views share.

    ``default`` and ``full`` are the schemas of the default view and of every stored field; ``field``, ``bag``
    (ids, offsets) and ``event`` hold the columns by name. Raises ``InputError`` as ``Dataset.open`` says.
    """

    def __init__(self, directory: Path, verify: bool):
        self.directory = directory
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory of prepared data")
        path = directory / "dataset.json"
        if not path.is_file():
            raise InputError(f"{directory}: no prepared data (there is no dataset.json)")
        self.about = about = read_json(path)
        self.checksum = files.sha256(path)
        check_about(path, about)
        self.rows: int = about["rows"]
        self.splits: dict[str, tuple[int, int]] = {k: tuple(v) for k, v in about["splits"].items()}
        self.default = FeatureSchema.load(directory / "schema.json")
        self.full = _full_schema(directory, about, self.default)
        self.statistics = read_json(directory / "statistics.json")
        self._subsets: dict[tuple[str, int], np.ndarray] = {}
        self._user_items: tuple[np.ndarray, np.ndarray] | None = None
        self._popularity: np.ndarray | None = None
        self._filling = threading.Lock()  # of these, by one of the threads that may ask at the same time
        self._load()
        if verify:
            read = ("schema.json", "statistics.json", *(f"columns/{c}.npy" for c in self._loaded))
            for name in dict.fromkeys((*read, *about["checksums"])):  # vocabularies too, which are read when asked for
                files.checked(directory, name, about["checksums"])

    def _load(self) -> None:
        self._loaded: list[str] = []

        def column(name: str, dtype: type, length: int | None = None) -> np.ndarray:
            self._loaded.append(name)
            return files.read_column(self.directory, name, dtype, length)

        self.field, self.bag, self.event = {}, {}, {}
        for f in self.full.fields:
            name = f"field.{files.file_name(f.name)}"
            if f.kind == "categorical":
                self.field[f.name] = column(name, np.int32, self.rows)
            else:
                self.bag[f.name] = (
                    column(f"{name}.ids", np.int32),
                    column(f"{name}.offsets", np.int64, self.rows + 1),
                )
        self.label = column("label", np.float32, self.rows) if self.full.task == "ctr" else None
        self.items = column("items", np.int32, self.rows) if self.full.task == "retrieval" else None
        self.row_user = column("row_user", np.int32, self.rows)
        events = None
        for b in self.full.behavior:
            self.event[b.name] = column(f"events.{files.file_name(b.name)}", np.int32, events)
            events = self.event[b.name].shape[0]
        if self.full.behavior:
            self.begin = column("history_begin", np.int64, self.rows)
            self.end = column("history_end", np.int64, self.rows)
        else:
            # Never touched, so these pages of zeros are never filled.
            self.begin = self.end = np.zeros(self.rows, np.int64)

    def split(self, name: str) -> tuple[int, int]:
        if name not in self.splits:
            raise InputError(f"split {name!r} is not in {self.directory}; it has {', '.join(self.splits)}")
        return self.splits[name]

    def subset(self, split: str, limit: int) -> np.ndarray:
        if (split, limit) not in self._subsets:
            first, last = self.split(split)
            self._subsets[split, limit] = order.subset(last - first, limit, split)
        return self._subsets[split, limit]

    def tokens(self, vocabulary: str) -> list | None:
        name = f"vocabularies/{files.file_name(vocabulary)}.json"
        if vocabulary not in [v.name for v in self.full.vocabularies]:
            raise InputError(f"vocabulary {vocabulary!r} is not in {self.directory}")
        if name not in self.about["checksums"]:
            return None
        files.checked(self.directory, name, self.about["checksums"])
        return names(read_json(self.directory / name))

    @property
    def user_items(self) -> tuple[np.ndarray, np.ndarray]:
        with self._filling:
            if self._user_items is None:
                self._user_items = self._find_user_items()
        return self._user_items

    def _find_user_items(self) -> tuple[np.ndarray, np.ndarray]:
        vocabulary = self.full.item_vocabulary
        if vocabulary is None:
            raise InputError(f"{self.directory}: no behaviour field, so users have no items")
        events = [self.event[b.name] for b in self.full.behavior if b.vocabulary == vocabulary]
        own = [self.items] if self.items is not None else []
        own += [
            self.field[f.name]
            for f in self.full.fields
            if f.vocabulary == vocabulary and f.kind == "categorical"
        ]
        return order.user_items(
            self.row_user,
            slice(*self.split("train")),
            own,
            events,
            self.begin,
            self.end,
            self.full.size(vocabulary),
        )

    @property
    def popularity(self) -> np.ndarray:
        """How many training rows have each item as their own, int64 [V]; id 0 counts as none."""
        if self.items is None:
            raise InputError(f"{self.directory}: not data of the retrieval task, so items have no popularity")
        with self._filling:
            if self._popularity is None:
                size = self.full.size(self.full.item_vocabulary)
                self._popularity = np.bincount(self.items[slice(*self.split("train"))], minlength=size).astype(np.int64)
                self._popularity[0] = 0
        return self._popularity

    def seen(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The distinct items of the rows' whole histories: offsets int64 [B+1], ids int32, ascending within a row."""
        vocabulary = self.full.item_vocabulary
        events = [self.event[b.name] for b in self.full.behavior if b.vocabulary == vocabulary]
        return order.user_items(
            np.arange(len(rows)), slice(None), [], events, self.begin[rows], self.end[rows], self.full.size(vocabulary)
        )

    def repeat_share(self, wanted: np.ndarray | None) -> float:
        """Share of training rows (of those at the positions ``wanted``) whose item is in their own history."""
        if self.items is None:
            raise InputError(f"{self.directory}: not data of the retrieval task, so there is no item to repeat")
        first, last = self.split("train")
        rows = np.arange(first, last) if wanted is None else wanted + first
        offsets, seen = self.seen(rows)
        again = seen == np.repeat(self.items[rows], np.diff(offsets))
        return float(again.sum() / max(1, len(rows)))  # seen items are distinct: at most one of them is the row's


def check_about(path: Path, about: dict) -> None:
    """The parts of ``dataset.json`` that everything else relies on."""
    if not isinstance(about, dict) or about.get("version") != files.VERSION:
        version = about.get("version") if isinstance(about, dict) else None
        raise InputError(
            f"{path}: version {version!r} of prepared data is not supported (this is version "
            f"{files.VERSION}); prepare the data again"
        )
    for key, kind in (
        ("kind", str),
        ("rows", int),
        ("splits", dict),
        ("all_fields", list),
        ("vocabularies", list),
        ("checksums", dict),
    ):
        if not isinstance(about.get(key), kind):
            raise InputError(f"{path}: {key!r} is missing or malformed")
    at = 0
    for name, ends in about["splits"].items():
        if (
            not isinstance(ends, list)
            or [type(e) for e in ends] != [int, int]
            or ends[0] != at
            or ends[1] < at
        ):
            raise InputError(f"{path}: split {name!r} is {ends!r}, which does not go on from row {at}")
        at = ends[1]
    if at != about["rows"]:
        raise InputError(f"{path}: the splits end at row {at} of {about['rows']}")


def _full_schema(directory: Path, about: dict, default: FeatureSchema) -> FeatureSchema:
    """The schema of a view with every stored field; the default view must be one of its views."""
    data = default.to_dict()
    path = directory / "dataset.json"
    try:
        full = FeatureSchema.from_dict(
            {**data, "vocabularies": about["vocabularies"], "fields": about["all_fields"]}
        )
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    stored = {f.name: f for f in full.fields}
    sizes = {v.name: v.size for v in full.vocabularies}
    for f in default.fields:
        if stored.get(f.name) != f:
            raise InputError(f"{directory / 'schema.json'}: field {f.name!r} is not the one in {path}")
    for v in default.vocabularies:
        if sizes.get(v.name) != v.size:
            raise InputError(f"{directory / 'schema.json'}: vocabulary {v.name!r} is not the one in {path}")
    return full
