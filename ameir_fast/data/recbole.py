"""Data in RecBole's atomic files as rows to predict or items to find."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from ..errors import InputError
from .atomic_files import AtomicFile, interactions, optional
from .blocks import Reading
from .build import Progress, build
from .delimited import Rows
from .plan import FieldPlan, HistoryPlan, TablePlan, VocabularyPlan, finite, parts_given, split_plan
from .source import with_attributes
from .work import check_output

MAX_HISTORY = 50
#: Ranges that a number is cut into.
BINS = 10
_LABEL, _TIME, _SPLIT = "\0label", "\0time", "\0split"
_LIST = "_list"  # RecBole's LIST_SUFFIX


@dataclass(frozen=True)
class Meaning:
    """What the columns are for, by their names without types; ``threshold``: a row is positive from there on."""

    label: str | None = None
    threshold: tuple[str, float] | None = None
    user: str = "user_id"
    item: str = "item_id"
    time: str = "timestamp"
    history: tuple[str, ...] | None = None
    target: tuple[str, ...] | None = None
    leave_out: tuple[str, ...] = ()


def prepare_recbole(
    input_path: str | Path,
    output_dir: str | Path,
    meaning: Meaning,
    *,
    retrieval: bool = False,
    split: str | None = None,
    parts: Sequence[float] | None = None,
    seed: int | None = None,
    max_history: int = MAX_HISTORY,
    bins: int = BINS,
    min_count: int = 1,
    user_field: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    on_note: Progress | None = None,
) -> dict:
    """Prepares atomic files and returns the statistics.

    Args:
        input_path: a folder with one ``.inter`` file (or ``.train.inter``, ``.valid.inter`` and ``.test.inter``) and,
            where there are any, one ``.user`` and one ``.item`` file.
        output_dir: appears whole or not at all.
        meaning: what the columns are for.
        retrieval: find the item of the next interaction, instead of predicting a label.
        split: ``"time"``, ``"random"`` or ``"leave_one_out"``; by default the last for retrieval, time where there is
            one, or the three files.
        parts: of a split by time or at random, shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        seed: of the random split; default 0. Others have none.
        max_history: newest interactions before the row's own, strictly earlier in time.
        bins: ranges that numbers are cut into at quantiles of the training rows, to be categories; 0 leaves them out.
        min_count: values seen less often in the training rows are "unknown", in all vocabularies but those of ranges
            (for retrieval: rows that ask for such an item are left out).
        user_field: whether the user's id is in the default view; it is stored either way.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.
        on_note: called with a line of text for what was left out.

    Raises:
        InputError: a file or column is missing or malformed (named, with its line), ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)
    for name, value in (("max_history", max_history), ("min_count", min_count)):
        if value < 1:
            raise InputError(f"{name} {value} is not at least 1")
    if meaning.threshold:
        meaning = replace(meaning, threshold=(meaning.threshold[0], finite("threshold", meaning.threshold[1])))
    source = RecBoleSource(Path(input_path), meaning, retrieval, bins)
    plan = source.plan(split, max_history, user_field, parts, seed, min_count)
    for name, why in source.left_out.items():
        if on_note:
            on_note(f"left out: column {name} ({why})")
    return build(
        source, plan, output_dir, kind="recbole",
        options={"label": meaning.label, "threshold": meaning.threshold and list(meaning.threshold),
                 "columns": {"user": meaning.user, "item": meaning.item, "time": source.time},
                 "retrieval": retrieval, "split": plan.split.by, "max_history": max_history, "bins": bins,
                 "user_field": user_field, "left_out": source.left_out, **parts_given(parts),
                 **({} if min_count == 1 else {"min_count": min_count}),
                 **({"seed": plan.split.seed} if plan.split.by == "random" else {})},
        overwrite=overwrite, on_progress=on_progress,
    )


class RecBoleSource:
    """One row an interaction, in the order of the files, with what is known of its user and item.

    ``left_out``: columns that are not read, and why.
    """

    def __init__(self, folder: Path, meaning: Meaning, retrieval: bool, bins: int = BINS):
        self.meaning, self.retrieval, self.bins = meaning, retrieval, bins
        if not folder.is_dir():
            raise InputError(f"{folder}: no such directory")
        self.parts, inter = interactions(folder)
        self.inter, self._inter = inter[0], inter
        self.user, self.item = (optional(folder, kind) for kind in ("user", "item"))
        self.files = tuple(f.path for f in (*inter, self.user, self.item) if f)
        self.dropped: dict[str, int] = {}
        self.without_attributes: dict[str, int] = {}
        self.left_out: dict[str, str] = {}
        self._reading: Reading | None = None
        self._range: tuple[float, float] | None = None  # of the values that the threshold is to part
        self._check()

    @property
    def done(self) -> float:
        return 0.0 if self._reading is None else self._reading.share

    def _check(self) -> None:
        """Settles what each column is for. Raises ``InputError`` naming file and column."""
        meaning, inter = self.meaning, self.inter
        inter.need(meaning.user, "the user", ["token"])
        inter.need(meaning.item, "the item", ["token"])
        for file, name, what in ((self.user, meaning.user, "the user"), (self.item, meaning.item, "the item")):
            if file:
                file.need(name, what, ["token"])
        self.answer = None
        if self.retrieval:
            if meaning.label or meaning.threshold:
                raise InputError("a label or a threshold belongs to the ctr task; retrieval takes every interaction")
        else:
            if (meaning.label is None) == (meaning.threshold is None):
                raise InputError("the ctr task needs a label column (--label) or a threshold on one (--threshold), and --retrieval neither")
            self.answer = meaning.label or meaning.threshold[0]
            inter.need(self.answer, "the label", ["float", "token"])
        self.time = meaning.time if meaning.time in inter.types else None
        if self.time:
            inter.need(self.time, "the time", ["float"])
        self.columns = self._columns()
        for name in meaning.leave_out:
            if name not in {n for f in (inter, self.user, self.item) if f for n in f.types}:
                raise InputError(f"{inter.path}: there is no column {name!r} to leave out")
        self._check_history()

    def _columns(self) -> dict[str, AtomicFile]:
        """The file of every column that can be a field or a history."""
        keys = {self.meaning.user, self.meaning.item}
        columns = {}
        for file in (self.inter, self.user, self.item):
            for name in file.types if file else ():
                if name in keys and file is not self.inter:
                    continue
                if name in columns:
                    raise InputError(f"{file.path}: column {name!r} is in {columns[name].path} too")
                columns[name] = file
        return columns

    def _check_history(self) -> None:
        meaning = self.meaning
        self.history = meaning.history
        if self.history is None:
            self.history = (meaning.item,) if self.time else ()
        kinds = []
        for name in self.history:
            if name not in self.columns or self.columns[name] is self.user:
                others = ", ".join(n for n, f in self.columns.items() if f is not self.user)
                raise InputError(f"{self.inter.path}: there is no column {name!r} of an interaction or item to make a "
                                 f"history of; there are {others}")
            kinds.append(self.columns[name].types[name])
            if kinds[-1] == "float_seq" or (kinds[-1] == "token_seq" and self.columns[name] is not self.inter):
                raise InputError(f"{self.columns[name].path}: column {name!r} is {kinds[-1]} and can make no history")
        self.ready = "token_seq" in kinds
        if self.history and not self.ready and not self.time:
            raise InputError(f"{self.inter.path}: histories need the time of an interaction, and there is no column "
                             f"{meaning.time!r}; it has {', '.join(self.inter.types)}")
        if self.retrieval and not self.history:
            raise InputError(f"{self.inter.path}: retrieval needs histories, thus a column {meaning.time!r}; it has "
                             f"{', '.join(self.inter.types)}")

    def plan(
        self, split: str | None, max_history: int, user_field: bool, parts: Sequence[float] | None = None,
        seed: int | None = None, min_count: int = 1,
    ) -> TablePlan:
        """Fields, histories and split; fills ``left_out``."""
        meaning = self.meaning
        if split is None:
            split = "column" if self.parts else "leave_one_out" if self.retrieval and self.time else (
                "time" if self.time else "random")
        if split == "column" and not self.parts:
            raise InputError(f"{self.inter.path}: is one file, which no split by files can part")
        fields = tuple(self._fields(user_field))
        target = meaning.target
        if target is None:
            target = () if self.retrieval or not self.history else (meaning.item,)
        history = tuple(HistoryPlan(f"history_{n}", n, self._vocabulary(n), self.ready) for n in self.history)
        learnt = [*(f.vocabulary for f in fields), *(h.vocabulary for h in history)]
        learnt += [meaning.item] if self.retrieval else []
        cut = {f.name: VocabularyPlan(bins=self.bins) for f in fields if self._is_cut(f.name)}
        return TablePlan(
            task="retrieval" if self.retrieval else "ctr",
            label=None if self.retrieval else _LABEL,
            user=meaning.user,
            time=_TIME if self.time else None,
            item=meaning.item if self.retrieval else None,
            item_vocabulary=meaning.item if self.retrieval else None,
            fields=fields,
            history=history,
            max_history=max_history if self.history else 0,
            min_history=1 if self.retrieval else 0,
            target=target,
            vocabularies={**dict.fromkeys(learnt, VocabularyPlan(min_count)), **cut},
            split=split_plan(split, parts, seed=seed, column=_SPLIT if split == "column" else None),
        )

    def _vocabulary(self, column: str) -> str:
        """A ready list ``item_id_list`` holds values of ``item_id``."""
        base = column.removesuffix(_LIST)
        return base if self.ready and base in self.columns else column

    def _is_cut(self, name: str) -> bool:
        """Whether a column is of numbers; those of a history are categories as they are."""
        return self.columns[name].types[name] == "float" and name not in self.history

    def _fields(self, user_field: bool) -> Iterator[FieldPlan]:
        meaning, ready = self.meaning, self.history if self.ready else ()
        for name, file in self.columns.items():
            kind = file.types[name]
            if name in (self.answer, self.time) or name in ready:
                continue
            if name in meaning.leave_out:
                self.left_out[name] = "as asked for"
            elif self.retrieval and name != meaning.user and file is not self.user:
                if name != meaning.item:
                    self.left_out[name] = "it describes the interaction or item to find"
            elif kind == "float_seq" or (self._is_cut(name) and not self.bins):
                self.left_out[name] = f"{kind}, which is no category"
            else:
                default = user_field if name == meaning.user else not self.retrieval
                yield FieldPlan(name, name, name, "multi_categorical" if kind == "token_seq" else "categorical",
                                default=default)

    def chunks(self) -> Iterator[pl.DataFrame]:
        meaning = self.meaning
        wanted = {f.column for f in self._fields(False)} | set(self.history) | {meaning.user, meaning.item}
        users, items, own = (
            [name for name, file in self.columns.items() if file is mine and name in wanted]
            for mine in (self.user, self.item, self.inter)
        )
        users = self._attributes(self.user, meaning.user, users)
        items = self._attributes(self.item, meaning.item, items)
        self._range = None
        dropped, self.without_attributes = {f"missing {what}": 0 for what in ("user", "time", "item")}, {}
        if not self.time:
            del dropped["missing time"]
        self._reading = Reading([f.path for f in self._inter])
        for part, file in zip(self.parts or [None], self._inter, strict=True):
            for rows in file.rows(self._reading):
                frame = file.values(rows, own).with_columns(**self._special(rows, part))
                for what, column in (("user", meaning.user), ("time", _TIME), ("item", meaning.item)):
                    if column in frame.columns:
                        there = frame.filter(pl.col(column).is_not_null())
                        dropped[f"missing {what}"] += frame.height - there.height
                        frame = there
                for what, attributes, column in (("item", items, meaning.item), ("user", users, meaning.user)):
                    if attributes is not None:
                        frame = with_attributes(frame, attributes, column, self.without_attributes, what)
                written = [n for n in self.history if self.columns[n].types[n] == "float"]
                yield frame.with_columns(pl.col(written).cast(pl.String)) if written else frame
        self.dropped = dropped
        if meaning.threshold and self._range:
            (name, threshold), (low, high) = meaning.threshold, self._range
            if not low < threshold <= high:
                raise InputError(f"{self.inter.path}: threshold {threshold:g} does not part the values {low:g} to "
                                 f"{high:g} of column {name!r}")

    def _attributes(self, file: AtomicFile | None, key: str, names: Sequence[str]) -> pl.DataFrame | None:
        if file is None or not names:
            return None
        rows = file.small()
        rows.present(key)
        rows.distinct(key)
        return file.values(rows, [key, *names])

    def _special(self, rows: Rows, part: str | None) -> dict[str, pl.Series | pl.Expr]:
        """Label, time and split."""
        found: dict[str, pl.Series | pl.Expr] = {}
        if not self.retrieval:
            value = rows.number(self.answer)
            if self.meaning.threshold:
                if len(value):
                    ends = value.min(), value.max(), *(self._range or ())
                    self._range = min(ends), max(ends)
                value = (value >= self.meaning.threshold[1]).cast(pl.Float64)
            rows.refuse((value != 0) & (value != 1), self.answer, lambda v: f"is {v}, a label that is neither 0 nor 1")
            found[_LABEL] = value
        if self.time:
            found[_TIME] = rows.number(self.time, missing=True)
        if part is not None:
            found[_SPLIT] = pl.lit(part)
        return found
