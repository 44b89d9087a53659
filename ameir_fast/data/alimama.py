"""Taobao's display-advertising data (Ali_Display_Ad_Click) in CTR form; docs/data.md says what each field is and why.

Format: tianchi.aliyun.com/dataset/56. What is used of it: Feng et al., Deep Session Interest Network, IJCAI 2019, and
its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from ..errors import InputError
from .blocks import Reading
from .build import Progress, build
from .delimited import Rows, read_delimited, read_small, shown
from .plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan, parts_given, split_plan
from .source import with_attributes
from .work import check_output

MAX_HISTORY = 50
#: 2017-05-13 00:00 in Beijing, in seconds since 1970: the last of the eight days of impressions.
LAST_DAY = 1494604800
BEHAVIORS = ("pv", "cart", "fav", "buy")

OF_USERS = ("cms_segid", "cms_group_id", "final_gender_code", "age_level", "pvalue_level", "shopping_level",
            "occupation", "new_user_class_level")
#: The default view; the first two are the target.
DEFAULT_FIELDS = ("cate_id", "brand", "user", *OF_USERS, "pid")
_OF_ADS = ("cate_id", "campaign_id", "customer", "brand", "price")


def prepare_alimama(
    input_path: str | Path,
    output_dir: str | Path,
    *,
    behaviors: Sequence[str] = ("pv",),
    since: int | None = None,
    test_from: int | None = LAST_DAY,
    parts: Sequence[float] | None = None,
    max_history: int = MAX_HISTORY,
    all_fields: bool = False,
    min_count: int = 1,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares the four csv files in ``input_path`` and returns the statistics.

    Args:
        input_path: the folder with ``raw_sample.csv``, ``ad_feature.csv``, ``user_profile.csv`` and
            ``behavior_log.csv``, which may be compressed (``.gz`` or ``.zst`` after these names).
        output_dir: appears whole or not at all.
        behaviors: which of ``BEHAVIORS`` make histories.
        since: seconds since 1970; earlier behaviours are left out.
        test_from: seconds since 1970; impressions from here on are for test, and the earlier ones are parted by time
            in the proportion of the first two ``parts``. ``None``: all are parted by time.
        parts: shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        max_history: newest behaviours before the impression, strictly earlier in time.
        all_fields: whether ad, campaign, advertiser and price are in the default view; they are stored either way.
        min_count: occurrences in training that a value needs for an id of its own.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file or column is missing or malformed (named, with its line), ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    behaviors = tuple(behaviors)
    if not behaviors or not set(behaviors) <= set(BEHAVIORS):
        raise InputError(f"behaviours {', '.join(behaviors) or 'none'} are not some of {', '.join(BEHAVIORS)}")
    split = split_plan("time", parts, test_from=test_from)
    check_output(output_dir, overwrite)
    history = (HistoryPlan("history_cate", "history_cate", "cate", logged=True),
               HistoryPlan("history_brand", "history_brand", "brand", logged=True))
    names = (*DEFAULT_FIELDS, "adgroup_id", "campaign_id", "customer", "price")
    return build(
        AlimamaSource(Path(input_path), behaviors, since),
        make_plan(names, history, max_history, all_fields, min_count, split, "time"),
        output_dir,
        kind="alimama",
        options={"behaviors": [b for b in BEHAVIORS if b in behaviors], "since": since, "test_from": test_from,
                 "max_history": max_history, "all_fields": all_fields, "min_count": min_count, **parts_given(parts)},
        overwrite=overwrite,
        on_progress=on_progress,
    )


def make_plan(
    names: Sequence[str], history: tuple[HistoryPlan, ...], max_history: int, all_fields: bool, min_count: int,
    split: SplitPlan, time: str | None,
) -> TablePlan:
    """Fields ``names``, those beyond ``DEFAULT_FIELDS`` in the default view only with ``all_fields``."""
    if max_history < 1 or min_count < 1:
        raise InputError(f"max_history {max_history} and min_count {min_count} must be at least 1")
    shared = {"cate_id": "cate"}
    fields = tuple(
        FieldPlan(name, name, shared.get(name, name), default=all_fields or name in DEFAULT_FIELDS) for name in names
    )
    return TablePlan(
        task="ctr", label="label", user="user", time=time, fields=fields, history=history, max_history=max_history,
        target=("cate_id", "brand"), split=split,
        vocabularies={f.vocabulary: VocabularyPlan(min_count) for f in fields},
    )


class AlimamaSource:
    """One row an impression, with what is known of its ad and its user; ``events`` are the behaviours that count."""

    def __init__(self, folder: Path, behaviors: Sequence[str], since: int | None):
        names = ("raw_sample.csv", "ad_feature.csv", "user_profile.csv", "behavior_log.csv")
        if not folder.is_dir():
            what = "is no folder" if folder.exists() else "no such folder"
            raise InputError(f"{folder}: {what} with {', '.join(names)}; files of 267 columns are read with --form dmr")
        self.sample, self.ads, self.users, self.log = self.files = tuple(_file(folder, name) for name in names)
        self.behaviors, self.since = tuple(behaviors), since
        self.dropped: dict[str, int] = {}
        self.dropped_events: dict[str, int] = {}
        self.without_attributes: dict[str, int] = {}
        self._reading: Reading | None = None

    @property
    def done(self) -> float:
        return 0.0 if self._reading is None else self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        ads, users = _ads(self.ads), _users(self.users)
        self._reading, self.without_attributes = Reading([self.sample]), {}
        whole = ("user", "time_stamp", "adgroup_id", "nonclk", "clk")
        for rows in read_delimited([self.sample], ",", whole=whole, reading=self._reading):
            rows.need("user", "time_stamp", "adgroup_id", "pid", "clk")
            click = rows.integer("clk")
            rows.refuse(~click.is_in([0, 1]), "clk", lambda v: f"is {v}, a label that is neither 0 nor 1")
            if "nonclk" in rows.frame.columns:
                rows.refuse(rows.integer("nonclk") != 1 - click, "nonclk", lambda v: f"is {v}, which contradicts clk")
            frame = pl.DataFrame({
                "user": rows.integer("user"),
                "time": rows.integer("time_stamp"),
                "adgroup_id": rows.integer("adgroup_id"),
                "pid": rows.frame["pid"],
                "label": click,
            })
            frame = with_attributes(frame, ads, "adgroup_id", self.without_attributes, "ad")
            yield with_attributes(frame, users, "user", self.without_attributes, "user")

    def events(self) -> Iterator[pl.DataFrame]:
        """``user``, ``time``, ``history_cate`` and ``history_brand``, in the order of the log."""
        others = f"behaviour other than {', '.join(self.behaviors)}"
        early = "behaviour without a time" if self.since is None else f"behaviour before {self.since}"
        dropped = {others: 0, early: 0}
        since = 1 if self.since is None else self.since
        self._reading = Reading([self.log])
        whole = ("user", "time_stamp", "cate", "brand")
        for rows in read_delimited([self.log], ",", whole=whole, reading=self._reading):
            rows.need("user", "time_stamp", "btag", "cate", "brand")
            kind = rows.frame["btag"]
            rows.refuse(~kind.is_in(BEHAVIORS), "btag",
                        lambda v: f"is {shown(v)}, none of {', '.join(BEHAVIORS)}")
            frame = pl.DataFrame({
                "user": rows.integer("user"),
                "time": rows.integer("time_stamp"),
                "history_cate": _ids(rows, "cate"),
                "history_brand": _ids(rows, "brand"),
            })
            wanted = frame.filter(kind.is_in(self.behaviors))
            dropped[others] += frame.height - wanted.height
            late = wanted.filter(pl.col("time") >= since)
            dropped[early] += wanted.height - late.height
            yield late
        self.dropped_events = dropped


def _ids(rows: Rows, column: str) -> pl.Series:
    """Int64; a missing value is an empty cell or ``NULL``."""
    if rows.frame[column].dtype == pl.String:
        rows = replace(rows, frame=rows.frame.select(pl.col(column).replace("NULL", None)))
    return rows.integer(column, missing=True)


def _by_number(rows: Rows, key: str) -> Rows:
    """The same with ``key`` as Int64. ``7`` and ``07`` are one number, which must not come twice: each row joined with
    it would then become two."""
    rows = replace(rows, frame=rows.frame.with_columns(rows.integer(key)))
    rows.distinct(key)
    return rows


def _ads(path: Path) -> pl.DataFrame:
    """``adgroup_id`` and what is known of it; the price in ten steps for each factor of ten."""
    rows = read_small(path, ",")
    rows.need("adgroup_id", *_OF_ADS)
    rows = _by_number(rows, "adgroup_id")
    price = rows.number("price", missing=True)
    rows.refuse((price < 0).fill_null(False), "price", lambda v: f"is {v}, less than nothing")
    columns = {name: _ids(rows, name) for name in _OF_ADS if name != "price"}
    steps = ((price + 1).log10() * 10).floor().cast(pl.Int64)
    return pl.DataFrame({"adgroup_id": rows.frame["adgroup_id"], **columns, "price": steps})


def _users(path: Path) -> pl.DataFrame:
    rows = read_small(path, ",")
    rows = replace(rows, frame=rows.frame.rename(str.strip))  # the last published name ends with a blank
    rows.need("userid", *OF_USERS)
    rows = _by_number(rows, "userid")
    return pl.DataFrame({"user": rows.frame["userid"], **{name: _ids(rows, name) for name in OF_USERS}})


def _file(folder: Path, name: str) -> Path:
    found = [path for path in (folder / f"{name}{end}" for end in ("", ".gz", ".zst")) if path.is_file()]
    if len(found) != 1:
        raise InputError(f"{folder}: holds {'no' if not found else 'more than one'} {name}")
    return found[0]
