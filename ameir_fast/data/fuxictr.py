"""Data that FuxiCTR is configured for (csv or parquet, before it has made ids of it) in CTR form."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from ..errors import InputError
from .blocks import PACKED, Reading, each_once
from .build import Progress, build
from .delimited import Rows, read_delimited
from .fuxictr_config import Config, Feature, read_config
from .lists import is_list
from .parquet import parquet_height, read_parquet
from .plan import FieldPlan, HistoryPlan, TablePlan, VocabularyPlan, parts_given, split_plan
from .work import check_output

MAX_HISTORY = 50
#: Ranges that a number is cut into.
BINS = 10
_LABEL, _SPLIT = "\0label", "\0split"


def prepare_fuxictr(
    config_path: str | Path,
    output_dir: str | Path,
    *,
    dataset_id: str | None = None,
    root: str | Path = ".",
    history: Sequence[str] | None = None,
    max_history: int | None = None,
    bins: int = BINS,
    parts: Sequence[float] | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    on_note: Progress | None = None,
) -> dict:
    """Prepares the files that a ``dataset_config.yaml`` names and returns the statistics.

    Args:
        config_path: the file, or the folder that holds it.
        output_dir: appears whole or not at all.
        dataset_id: the entry of the file; needed where there are several.
        root: the folder that relative paths in it start from (FuxiCTR: where it is run).
        history: names of the sequence features that are the user's history, one per behaviour field. By default those
            that share the embedding of a categorical feature, which is then the target.
        max_history: newest elements used; by default the largest ``max_len`` of these features.
        bins: ranges that numeric features are cut into at quantiles of the training rows, to be categories; 0 leaves
            them out.
        parts: of ``train_data`` alone, shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.
        on_note: called with a line of text for what was left out, and where validation and test are the same rows.

    Raises:
        InputError: the configuration or a file is missing, malformed or not supported (named, with its line or row),
            PyYAML is not installed, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)
    config = read_config(Path(config_path), dataset_id)
    source = FuxiCTRSource(config, Path(root), _histories(config, history), bins)
    plan = source.plan(max_history, parts)
    for name, why in source.left_out.items():
        if on_note:
            on_note(f"left out: feature {name} ({why})")
    if source.validates_on_test and on_note:
        on_note(f"valid_data and test_data are both {config.data['test']}: models are chosen by the rows that they are tested on")
    return build(
        source, plan, output_dir, kind="fuxictr",
        options={"dataset_id": config.name, "history": [h.name for h in source.histories],
                 "max_history": plan.max_history, "bins": bins, "left_out": source.left_out, **parts_given(parts)},
        overwrite=overwrite, on_progress=on_progress,
    )


def _histories(config: Config, wanted: Sequence[str] | None) -> list[Feature]:
    """The sequence features that make the history."""
    sequences = {f.name: f for f in config.features if f.kind == "sequence"}
    if wanted is not None:
        for name in wanted:
            if name not in sequences:
                raise InputError(f"{config.name}: {name!r} is no active sequence feature; there are "
                                 f"{', '.join(sequences) or 'none'}")
        return [sequences[name] for name in wanted]
    categorical = {f.name for f in config.features if f.kind == "categorical"}
    found = [f for f in sequences.values() if f.share in categorical]
    targets = [f.share for f in found]
    if len(set(targets)) < len(targets):
        raise InputError(f"{config.name}: several sequences share one embedding ({', '.join(f.name for f in found)}); "
                         "say which of them are the history")
    return found


class FuxiCTRSource:
    """The rows of the training, validation and test files, one after another."""

    def __init__(self, config: Config, root: Path, histories: list[Feature], bins: int = BINS):
        self.config, self.histories, self.bins = config, histories, bins
        self.data = {split: _paths(root, path, config.data_format) for split, path in config.data.items()}
        #: As in some of the published configurations (TaobaoAd_x1).
        self.validates_on_test = len(self.data) > 1 and self.data["valid"] == self.data["test"]
        files = [path for split, paths in self.data.items() if split != "test" or not self.validates_on_test for path in paths]
        # The configuration decides what is read: where it changes, an interrupted preparation must not go on.
        self.files = (config.path, *each_once(files))
        self.dropped: dict[str, int] = {}
        self.left_out = dict(config.left_out)
        self._features = []
        for f in config.features:
            if f.kind == "numeric" and not bins:
                self.left_out[f.name] = "numeric, which is no category"
            else:
                self._features.append(f)
        self._read_rows = self._rows = 0
        self._reading: Reading | None = None

    @property
    def done(self) -> float:
        if self._reading is not None:
            return self._reading.share
        return self._read_rows / self._rows if self._rows else 0.0

    def plan(self, max_history: int | None, parts: Sequence[float] | None = None) -> TablePlan:
        """Fields, histories, vocabularies and split."""
        config, names = self.config, [h.name for h in self.histories]
        vocabularies = {}
        for f in self._features:
            owner = next(g for g in config.features if g.name == config.vocabulary(f))
            vocabularies[owner.name] = (
                VocabularyPlan(bins=self.bins) if owner.kind == "numeric" else VocabularyPlan(max(1, owner.min_count))
            )
        # A target only where each behaviour field has a field of its own to be compared with.
        fields = {f.name for f in self._features if f.kind == "categorical"}
        target = tuple(h.share for h in self.histories if h.share in fields)
        named = len(config.data) > 1
        return TablePlan(
            task="ctr",
            label=_LABEL,
            fields=tuple(
                FieldPlan(f.name, f.name, config.vocabulary(f),
                          "multi_categorical" if f.kind == "sequence" else "categorical")
                for f in self._features if f.name not in names
            ),
            history=tuple(HistoryPlan(h.name, h.name, config.vocabulary(h), ready=True) for h in self.histories),
            max_history=max_history or max((h.max_len for h in self.histories), default=0) or MAX_HISTORY,
            target=target if len(target) == len(names) else (),
            vocabularies=vocabularies,
            split=split_plan("column" if named else "order", parts, column=_SPLIT if named else None),
        )

    def chunks(self) -> Iterator[pl.DataFrame]:
        columns = list(dict.fromkeys([self.config.label, *(f.column for f in self._features)]))
        named = len(self.config.data) > 1
        paths = [path for paths in self.data.values() for path in paths]
        if self.config.data_format == "csv":
            self._reading = Reading(paths)
        else:
            self._read_rows, self._rows = 0, sum(map(parquet_height, paths))
        for part, paths in self.data.items():
            for rows in self._read(paths, columns):
                label = rows.number(self.config.label)
                rows.refuse((label != 0) & (label != 1), self.config.label,
                            lambda v: f"is {v}, a label that is neither 0 nor 1")
                frame = pl.DataFrame({_LABEL: label, **{f.name: self._column(rows, f) for f in self._features}})
                self._same_lengths(rows, frame)
                yield frame.with_columns(pl.lit(part).alias(_SPLIT)) if named else frame

    def _read(self, paths: Sequence[Path], columns: Sequence[str]) -> Iterator[Rows]:
        if self.config.data_format == "csv":
            for rows in read_delimited(paths, self.config.separator, quoted=True, reading=self._reading):
                rows.need(*columns)
                yield rows
        else:
            for path in paths:
                for rows in read_parquet(path, columns):
                    self._read_rows += rows.frame.height
                    # What a missing number becomes in many tools.
                    yield replace(rows, frame=rows.frame.with_columns(pl.col(pl.Float32, pl.Float64).fill_nan(None)))

    def _column(self, rows: Rows, feature: Feature) -> pl.Series:
        """Values as text (missing: null), lists of such for a sequence. What ``fill_na`` names is missing too."""
        fill = feature.fill_na
        if feature.kind == "sequence":
            return _sequence(rows, feature, "" if fill is None else str(fill), feature in self.histories)
        if feature.kind == "numeric":
            values = rows.number(feature.column, missing=True)
            return values if fill is None else values.fill_null(float(fill))
        if feature.dtype == "str":
            values = rows.frame[feature.column].cast(pl.String)
        elif feature.dtype == "int":
            values = rows.integer(feature.column, missing=True)
            # Without fill_na a missing whole number becomes a zero like any other.
            values = (values.fill_null(0) if fill is None else values).cast(pl.String)
        else:
            values = rows.number(feature.column, missing=True).cast(pl.String)
        return values if fill is None else values.set(values == str(fill), None)

    def _same_lengths(self, rows: Rows, frame: pl.DataFrame) -> None:
        for other in self.histories[1:]:
            first = self.histories[0]
            wrong = frame[other.name].list.len() != frame[first.name].list.len()
            for at in wrong.arg_true().head(1):
                raise InputError(f"{rows.where(at)}: feature {other.name!r} has {len(frame[other.name][at])} elements, "
                                 f"but {first.name!r} {len(frame[first.name][at])}; histories go element by element")


def _sequence(rows: Rows, feature: Feature, missing: str, history: bool) -> pl.Series:
    values = rows.frame[feature.column]
    if is_list(values):
        lists = values.cast(pl.List(pl.String))
    else:
        text = values.cast(pl.String)
        lists = text.set(text == "", None).str.split(feature.splitter)
    element = pl.element()
    empty = (element == "") | (element == missing)
    if history:  # what is missing keeps its place beside the other behaviour fields
        kept = pl.col("v").list.eval(pl.when(empty).then(None).otherwise(element))
    else:
        kept = pl.col("v").list.eval(element.filter(element.is_not_null() & ~empty))
        if feature.max_len:
            kept = kept.list.tail(feature.max_len) if feature.newest else kept.list.head(feature.max_len)
    return lists.alias("v").to_frame().select(kept.fill_null([]).alias(feature.name))[feature.name]


def _paths(root: Path, data: str, data_format: str) -> list[Path]:
    """A file, or the files of a folder or pattern, as FuxiCTR takes them; csv compressed too."""
    ends = [data_format + packed for packed in ("", *PACKED)] if data_format == "csv" else [data_format]
    if os.path.isfile(root / data) and data.endswith(tuple(ends)):  # False for a name that no file can have
        return [root / data]
    patterns = [data] if data.endswith(tuple(ends)) else [os.path.join(data, f"*.{end}") for end in ends]
    found = sorted(Path(path) for pattern in patterns for path in glob.glob(str(root / pattern)))
    if not found:
        raise InputError(f"{root / patterns[0]}: no such file (relative paths start from {root.resolve()})")
    return found
