"""Text files as a source whose columns are made cell by cell: of a block's distinct cells, each is looked at once."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import polars as pl

from ..errors import InputError
from . import cells
from .blocks import BLOCK, Block, Reading
from .coding import CodedRows
from .delimited import Rows, named_blocks, no_rows, parse
from .inputs import Form

#: So many blocks are coded together and make a piece: the larger, the fewer values come again in the next one.
TOGETHER = 4
#: Of so many files each may be small; then pieces of their own would be too many.
MANY = 16
_SMALL = 1 << 20
_THREADS = min(4, os.cpu_count() or 1)  # each holds some hundred MB

Item, Made = TypeVar("Item"), TypeVar("Made")


class Derived(NamedTuple):
    """The column ``name``, made of the file's column ``of`` (by our name): each value of its own cell alone.

    ``make`` gets rows with that column, the texts of some cells or Int32; and the lines where they stand, for errors.
    """

    name: str
    of: str
    make: Callable[[Rows], pl.Series]


class TextSource:
    """A source (see ``Source``) over text files of known forms. ``whole``: see ``read_delimited``.

    Columns are made one after another for some blocks at a time: of several wrong cells the one that is named is the
    first of its column, not always the first of the file.
    """

    def __init__(self, forms: dict[Path, Form], whole: Sequence[str], columns: Sequence[Derived]):
        self.files, self.dropped = tuple(forms), {}
        self._forms, self._whole, self._columns = forms, whole, columns
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame | CodedRows]:
        self._reading = Reading(self.files)
        self._native = cells.available()
        with ThreadPoolExecutor(_THREADS) as pool:
            for path, form in self._forms.items():
                some = False
                blocks = named_blocks([path], form.separator, form.header, quoted=_quoted(form), reading=self._reading,
                                      size=BLOCK)
                for chunk in _in_order(pool, partial(self._chunk, form), _grouped(blocks)):
                    some = some or chunk.height > 0
                    yield chunk
                if not some:
                    raise no_rows([path])

    def _chunk(self, form: Form, group: tuple[list[Block], list[str]]) -> pl.DataFrame | CodedRows:
        blocks, names = group
        for column in form.names.values():
            if column not in names:
                raise InputError(f"{blocks[0].path}: its header does not name the column {column!r}; it has {', '.join(names)}")
        return self._coded(form, blocks, names) or pl.concat(self._frame(form, block, names) for block in blocks)

    def _coded(self, form: Form, blocks: list[Block], names: list[str]) -> CodedRows | None:
        if not self._native or (_quoted(form) and any(b'"' in block.data for block in blocks)):
            return None
        if len(self.files) > MANY and _size(blocks) < _SMALL:
            return None
        wanted = list(dict.fromkeys(column.of for column in self._columns))
        found = cells.code_cells(blocks, form.separator.encode(), len(names), [names.index(form.names[n]) for n in wanted])
        if found is None:
            return None
        path, line = blocks[0].path, blocks[0].line
        coded = {}
        for name, of, make in self._columns:
            column, first = found[wanted.index(of)]
            coded[name] = column.mapped(make(Rows(path, pl.DataFrame({of: column.values}), line + first)))
        return CodedRows(coded, len(found[0][0].codes))

    def _frame(self, form: Form, block: Block, names: list[str]) -> pl.DataFrame:
        whole = [form.names[name] for name in self._whole if name in form.names]
        rows = parse(block, form.separator.encode(), names, _quoted(form), whole)
        rows = replace(rows, frame=rows.frame.select(pl.col(column).alias(name) for name, column in form.names.items()))
        return pl.DataFrame({column.name: column.make(rows) for column in self._columns})


def _size(blocks: Sequence[Block]) -> int:
    return sum(len(block.data) for block in blocks)


def _quoted(form: Form) -> bool:
    return form.separator == ","


def _grouped(blocks: Iterator[tuple[Block, list[str]]]) -> Iterator[tuple[list[Block], list[str]]]:
    """Blocks of one file a few at a time, all that came before an error too."""
    group: list[Block] = []
    names: list[str] = []
    try:
        for block, names in blocks:
            group.append(block)
            if len(group) == TOGETHER or _size(group) >= TOGETHER * BLOCK:
                yield group, names
                group = []
    except InputError:
        if group:
            yield group, names
        raise
    if group:
        yield group, names


def _in_order(pool: Executor, work: Callable[[Item], Made], items: Iterator[Item]) -> Iterator[Made]:
    """``work`` of every item, a few at a time. The error of an item comes before those of later ones."""
    pending: deque[Future] = deque()
    failed: InputError | None = None
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                break
            except InputError as error:
                failed = error
                break
            pending.append(pool.submit(work, item))
            del item  # not to hold a block longer than its work
            if len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
        if failed is not None:
            raise failed
    finally:
        for future in pending:
            future.cancel()
