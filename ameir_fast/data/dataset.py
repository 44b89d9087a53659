"""Dataset: rows of a prepared directory as batches, read in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import hostops
from ..batch import Batch
from ..errors import InputError
from ..schema import FeatureSchema, read_json
from . import files, order


class Dataset:
    """A prepared directory (format: docs/data.md), or a view of it with fewer or more fields.

    Columns are memory-mapped, so opening costs no memory and views share everything. Attributes: ``schema``
    (``FeatureSchema`` of this view), ``kind`` (what it was prepared from), ``task``, ``directory``,
    ``splits`` (``{"train": (first, last+1), …}``), ``statistics`` (content of ``statistics.json``),
    ``field_names`` (all stored fields, a view can be made of any of them), ``checksum`` (names the content).
    """

    def __init__(self, columns: _Columns, schema: FeatureSchema):
        self._columns = columns
        self.schema = schema

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> Dataset:
        """The default view of a prepared directory.

        Raises ``InputError`` naming the file when one is missing, damaged, of another version, or (with
        ``verify``, which reads every file once) of another content than the one prepared.
        """
        columns = _Columns(Path(directory), verify)
        return cls(columns, columns.default)

    # ---- what it is ---------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        return self._columns.about["kind"]

    @property
    def task(self) -> str:
        return self.schema.task

    @property
    def directory(self) -> Path:
        return self._columns.directory

    @property
    def checksum(self) -> str:
        return self._columns.checksum

    @property
    def splits(self) -> dict[str, tuple[int, int]]:
        return dict(self._columns.splits)

    @property
    def statistics(self) -> dict:
        return self._columns.statistics

    @property
    def field_names(self) -> tuple[str, ...]:
        return tuple(f.name for f in self._columns.full.fields)

    def __len__(self) -> int:
        return self._columns.rows

    def __repr__(self) -> str:
        return (
            f"Dataset({str(self.directory)!r}, {self.kind}, {len(self)} rows, "
            f"{self.schema.num_fields} fields, {self.schema.num_behavior} behaviour fields)"
        )

    def size(self, split: str) -> int:
        """Number of rows of a split; ``InputError`` when there is no such split."""
        first, last = self._columns.split(split)
        return last - first

    def tokens(self, vocabulary: str) -> list | None:
        """Values of the ids of a vocabulary, ``None`` for id 0; ``None`` when the data came as ids."""
        return self._columns.tokens(vocabulary)

    def select(self, fields: list[str] | None = None, behavior: bool = True) -> Dataset:
        """A view with ``fields`` in that order (``None``: those of this view), with or without the history.

        Any stored field may be named (``field_names``). Without the history there is no target either. Raises
        ``InputError`` for a field that is not stored.
        """
        names = [f.name for f in self.schema.fields] if fields is None else list(fields)
        return Dataset(self._columns, self._columns.full.select(names, behavior))

    # ---- rows ---------------------------------------------------------------------------------

    def batch(self, split: str, rows: np.ndarray) -> Batch:
        """The rows at positions ``rows`` (integers [B], 0 is the split's first) as a batch on the CPU.

        The history is the newest ``schema.max_history`` events, oldest first. Raises ``InputError`` for a
        position outside the split, or when ``rows`` is not a list of integers.
        """
        first, last = self._columns.split(split)
        rows = np.asarray(rows)
        if rows.ndim != 1 or (rows.size and not np.issubdtype(rows.dtype, np.integer)):
            raise InputError(f"rows is {rows.dtype} of shape {rows.shape}, not integers [B]")
        rows = rows.astype(np.int64)
        wrong = (rows < 0) | (rows >= last - first)
        if wrong.any():
            raise InputError(f"row {rows[wrong][0]} is outside 0..{last - first - 1} of the {split} split")
        return self._assemble(rows + first)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        seed: int | None = None,
        epoch: int = 0,
        limit: int | None = None,
        device: str | torch.device | None = None,
        start_batch: int = 0,
        negatives: int = 0,
    ) -> Iterator[Batch]:
        """The rows of a split, ``batch_size`` a time; the last batch holds what is left.

        Args:
            seed: ``None`` for the stored order; otherwise a permutation that is a function of (seed, epoch)
                alone.
            limit: only that many rows, a fixed pseudo-random subset that is a function of (split, limit): the
                same every time, and part of the one for a larger limit.
            device: where the tensors go; the CPU by default.
            start_batch: the first batch to give; those before it are not assembled.
            negatives: retrieval task: that many items a row in ``Batch.negatives``, none of them among the
                items of the row's user in the training rows; a function of (seed, epoch, batch).
        """
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is not at least 1")
        if negatives and self.task != "retrieval":
            raise InputError("negatives belong to the retrieval task")
        first, _ = self._columns.split(split)
        wanted = self._positions(split, limit)
        count = self.size(split) if wanted is None else wanted.shape[0]
        shuffled = None if seed is None else order.permutation(count, int(seed), int(epoch))
        for number in range(start_batch, -(-count // batch_size)):
            start, stop = number * batch_size, min(count, (number + 1) * batch_size)
            rows = np.arange(start, stop) if shuffled is None else shuffled[start:stop].astype(np.int64)
            rows = rows if wanted is None else wanted[rows]
            batch = self._assemble(rows + first, negatives, order.mixed(int(seed or 0), int(epoch), number))
            yield batch if device is None else batch.to(device)

    def labels(self, split: str, limit: int | None = None) -> np.ndarray:
        """Labels, float32, in the order of ``batches(split, …, seed=None, limit=limit)``."""
        if self.task != "ctr":
            raise InputError("data of the retrieval task has no labels")
        first, last = self._columns.split(split)
        wanted = self._positions(split, limit)
        return np.array(
            self._columns.label[first:last] if wanted is None else self._columns.label[wanted + first]
        )

    def user_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Each user's items in the training rows, histories included: what a negative must not be.

        Returns ``offsets`` int64 [U+1] and ``items`` int32, ascending and distinct within a user, without id
        0. Users are those of the rows, numbered from 0.
        """
        return self._columns.user_items

    # ---- inside -------------------------------------------------------------------------------

    def _positions(self, split: str, limit: int | None) -> np.ndarray | None:
        if limit is None or limit >= self.size(split):
            return None
        if limit < 1:
            raise InputError(f"limit {limit} is not at least 1")
        return self._columns.subset(split, limit)

    def _assemble(self, rows: np.ndarray, negatives: int = 0, seed: int = 0) -> Batch:
        columns, schema = self._columns, self.schema
        single = [None if f.kind == "multi_categorical" else columns.field[f.name] for f in schema.fields]
        bags = [columns.bag[f.name] for f in schema.fields if f.kind == "multi_categorical"]
        events = [columns.event[b.name] for b in schema.behavior]
        fields, bag_ids, bag_offsets, history, history_offsets = hostops.assemble(
            rows, single, bags, events, columns.begin, columns.end, schema.max_history
        )
        items = drawn = label = None
        if schema.task == "retrieval":
            items = columns.items[rows]
            if negatives:
                drawn = hostops.sample_negatives(
                    columns.row_user[rows].astype(np.int64),
                    *columns.user_items,
                    schema.size(schema.item_vocabulary),
                    negatives,
                    seed,
                    items,
                )
        else:
            label = columns.label[rows]
        tensor = torch.from_numpy
        return Batch(
            fields=tensor(fields),
            history=tensor(history) if events else None,
            history_offsets=tensor(history_offsets) if events else None,
            label=None if label is None else tensor(label),
            bag_ids=tensor(bag_ids) if bags else None,
            bag_offsets=tensor(bag_offsets) if bags else None,
            items=None if items is None else tensor(items),
            negatives=None if drawn is None else tensor(drawn),
        )


class _Columns:
    """What the views of one directory share."""

    def __init__(self, directory: Path, verify: bool):
        self.directory = directory
        if not directory.is_dir():
            raise InputError(f"{directory}: no such directory of prepared data")
        path = directory / "dataset.json"
        self.about = about = read_json(path)
        self.checksum = files.sha256(path)
        _check_about(path, about)
        self.rows: int = about["rows"]
        self.splits: dict[str, tuple[int, int]] = {k: tuple(v) for k, v in about["splits"].items()}
        self.default = FeatureSchema.load(directory / "schema.json")
        self.full = _full_schema(directory, about, self.default)
        self.statistics = read_json(directory / "statistics.json")
        self._subsets: dict[tuple[str, int], np.ndarray] = {}
        self._user_items: tuple[np.ndarray, np.ndarray] | None = None
        self._load()
        if verify:
            for name in ("schema.json", "statistics.json", *(f"columns/{c}.npy" for c in self._loaded)):
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
        return read_json(self.directory / name)

    @property
    def user_items(self) -> tuple[np.ndarray, np.ndarray]:
        if self._user_items is None:
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
            self._user_items = order.user_items(
                self.row_user,
                slice(*self.split("train")),
                own,
                events,
                self.begin,
                self.end,
                self.full.size(vocabulary),
            )
        return self._user_items


def _check_about(path: Path, about: dict) -> None:
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
