"""Dataset: rows of a prepared directory as batches, read in place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from .. import hostops
from ..batch import Batch
from ..errors import InputError
from ..negatives import item_starts, sample_negatives
from ..schema import FeatureSchema
from . import order
from .columns import Columns
from .feed import feed
from .shuffle import Shuffle


class Dataset:
    """A prepared directory (format: docs/data.md), or a view of it with fewer or more fields.

    Columns are memory-mapped, so opening costs no memory and views share everything. Attributes: ``schema``
    (``FeatureSchema`` of this view), ``kind`` (what it was prepared from), ``task``, ``directory``,
    ``splits`` (``{"train": (first, last+1), …}``), ``statistics`` (content of ``statistics.json``),
    ``field_names`` (all stored fields, a view can be made of any of them), ``checksum`` (names the content).
    """

    def __init__(self, columns: Columns, schema: FeatureSchema):
        self._columns = columns
        self.schema = schema
        multi = [f.kind == "multi_categorical" for f in schema.fields]
        single = [None if m else columns.field[f.name] for f, m in zip(schema.fields, multi, strict=True)]
        bags = [columns.bag[f.name] for f, m in zip(schema.fields, multi, strict=True) if m]
        events = [columns.event[b.name] for b in schema.behavior]
        self._storage = hostops.Storage(single, bags, events, columns.begin, columns.end)
        # What a batch reads in the order of its rows; bags and events lie elsewhere.
        own = [*single, *([columns.begin, columns.end] if events else []), columns.label]
        own += [] if columns.items is None else [columns.items, columns.row_user]
        self._read_by_row = [column for column in own if column is not None]

    @classmethod
    def open(cls, directory: str | Path, verify: bool = True) -> Dataset:
        """The default view of a prepared directory.

        Raises ``InputError`` naming the file when one is missing, damaged, of another version, or (with
        ``verify``, which reads every file once) of another content than the one prepared.
        """
        columns = Columns(Path(directory), verify)
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
    def vocabularies_from(self) -> tuple[str, ...]:
        """Checksums of the data whose ids mean what they mean here: this and what it was prepared like; none where all
        columns held ids already.
        """
        about = self._columns.about
        learnt = any(name.startswith("vocabularies/") for name in about["checksums"])
        return (self.checksum, *([about["like"]] if about.get("like") else [])) if learnt else ()

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
        prefetch: int = 0,
        pin_memory: bool = False,
        seen: bool = False,
    ) -> Iterator[Batch]:
        """The rows of a split, ``batch_size`` a time; the last batch holds what is left.

        Args:
            seed: ``None`` for the stored order; otherwise a permutation that is a function of (seed, epoch)
                alone. Beyond 1,048,576 rows it is one of blocks of rows and of the rows of 128 to 256 blocks at a time
                (``shuffle.py`` says what that is worth).
            limit: only that many rows, a fixed pseudo-random subset that is a function of (split, limit): the
                same every time, and part of the one for a larger limit.
            device: where the tensors go; the CPU by default.
            start_batch: the first batch to give; those before it cost nothing, however many there are.
            negatives: retrieval task: that many items a row in ``Batch.negatives``, none of them among the
                items of the row's user in the training rows; a function of (seed, epoch, batch).
            prefetch: that many batches are made ahead, in a thread that ends with the iterator.
            pin_memory: make them in page-locked memory and copy them to ``device`` while training goes on;
                ``InputError`` where torch sees no GPU.
            seen: retrieval task: the items of each row's whole history in ``Batch.seen``.
        """
        if batch_size < 1:
            raise InputError(f"batch_size {batch_size} is not at least 1")
        for name, value in (("start_batch", start_batch), ("prefetch", prefetch)):
            if value < 0:
                raise InputError(f"{name} {value} is negative")
        if (negatives or seen) and self.task != "retrieval":
            raise InputError(f"{'negatives' if negatives else 'seen items'} belong to the retrieval task")
        made = self._made(split, batch_size, seed, epoch, limit, start_batch, negatives, seen)
        yield from feed(made, device, prefetch, pin_memory)

    def _made(self, split, batch_size, seed, epoch, limit, start_batch, negatives, seen) -> Iterator[Batch]:
        first, _ = self._columns.split(split)
        wanted = self._positions(split, limit)
        count = self.size(split) if wanted is None else wanted.shape[0]

        def soon(start: np.ndarray, stop: np.ndarray) -> None:
            hostops.read_ahead(self._read_by_row, start + first, stop + first)

        shuffled = None
        if seed is not None:
            shuffled = Shuffle(count, int(seed), int(epoch), soon if wanted is None else None)
        for number in range(start_batch, -(-count // batch_size)):
            start, stop = number * batch_size, min(count, (number + 1) * batch_size)
            rows = np.arange(start, stop) if shuffled is None else shuffled.rows(start, stop)
            rows = rows if wanted is None else wanted[rows]
            yield self._assemble(rows + first, negatives, order.mixed(int(seed or 0), int(epoch), number), seen)

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

    # ---- evaluating retrieval -----------------------------------------------------------------

    def popularity(self) -> np.ndarray:
        """How many training rows have each item as the one to predict: int64 [V] by id, 0 for id 0."""
        return self._columns.popularity

    def candidates(
        self, split: str, batch_size: int, n: int, *, popular: bool = False, seed: int = 0, limit: int | None = None
    ) -> Iterator[torch.Tensor]:
        """Sampled items to rank each row's own item against: int32 [B, n] for each batch that ``batches(split,
        batch_size, limit=limit)`` gives.

        They are drawn independently, uniformly or (``popular``) in proportion to :meth:`popularity`, and are neither
        the row's own item nor any of its whole history, of which a batch may show only the newest events. A row's
        are a function of (seed, popular, row). 0 stands for no item, where a history leaves none. Raises
        ``InputError`` for data of another task.
        """
        if self.task != "retrieval":
            raise InputError("candidates belong to the retrieval task")
        columns = self._columns
        first, last = columns.split(split)
        wanted = self._positions(split, limit)
        wanted = np.arange(last - first) if wanted is None else wanted
        size = self.schema.size(self.schema.item_vocabulary)
        starts = item_starts(self.popularity()) if popular else None
        for at in range(0, len(wanted), batch_size):
            rows = wanted[at : at + batch_size] + first
            drawn = sample_negatives(
                np.arange(len(rows)),
                *columns.seen(rows),
                size,
                n,
                order.mixed("candidates", int(seed), bool(popular)),
                columns.items[rows],
                rows=rows,
                starts=starts,
                may_be_none=True,
            )
            yield torch.from_numpy(drawn)

    def repeat_share(self) -> float:
        """Share of training rows whose item is in their own history, over a fixed subset of 4096.

        Raises ``InputError`` for data of another task."""
        return self._columns.repeat_share(self._positions("train", 4096))

    # ---- inside -------------------------------------------------------------------------------

    def _positions(self, split: str, limit: int | None) -> np.ndarray | None:
        if limit is None or limit >= self.size(split):
            return None
        if limit < 1:
            raise InputError(f"limit {limit} is not at least 1")
        return self._columns.subset(split, limit)

    def _assemble(self, rows: np.ndarray, negatives: int = 0, seed: int = 0, seen: bool = False) -> Batch:
        columns, schema = self._columns, self.schema
        fields, bag_ids, bag_offsets, history, history_offsets = self._storage.assemble(rows, schema.max_history)
        items = drawn = label = None
        seen_offsets, seen_items = columns.seen(rows) if seen else (None, None)
        if schema.task == "retrieval":
            items = columns.items[rows]
            if negatives:
                drawn = sample_negatives(
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
            history=tensor(history) if schema.behavior else None,
            history_offsets=tensor(history_offsets) if schema.behavior else None,
            label=None if label is None else tensor(label),
            bag_ids=tensor(bag_ids) if schema.multi_fields else None,
            bag_offsets=tensor(bag_offsets) if schema.multi_fields else None,
            items=None if items is None else tensor(items),
            negatives=None if drawn is None else tensor(drawn),
            seen=tensor(seen_items) if seen else None,
            seen_offsets=tensor(seen_offsets) if seen else None,
        )
