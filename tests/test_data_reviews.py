"""prepare_amazon and prepare_steam: the published forms, k-core, repeats, ties, splits, what is refused."""

from __future__ import annotations

import gzip
import json
import re
from datetime import date, timedelta

import numpy as np
import pytest
import zstandard

import ameir_fast as af
from ameir_fast import cli
from ameir_fast.data import Dataset, prepare_amazon, prepare_steam
from ameir_fast.data.amazon import AmazonReviews
from ameir_fast.data.core import first_of_each, k_core
from ameir_fast.data.steam import SteamReviews

from . import retrieval_oracle as oracle
from .retrieval_oracle import check, prepared, random_events

DAY = 86400
FIRST_DAY = 14_000  # 2008-05-01

# ---- the published forms: one event as (user, item, rating, day) written in each of them ------------


def user_id(user: str) -> str:
    return "A2SUAM1J3GNN" + user.upper()


def asin(item: str) -> str:
    return "B0000" + f"{int(item[1:]):05d}"


def json_2014(user, item, rating, day):
    when = date(1970, 1, 1) + timedelta(day)
    return json.dumps({
        "reviewerID": user, "asin": item, "reviewerName": 'J. "Mc" Donald', "helpful": [2, 3],
        "reviewText": "I bought this for my husband, who plays the piano.\nHe\u2019s \U0001f600", "overall": rating,
        "summary": "Heavenly Highway Hymns", "unixReviewTime": day * DAY, "reviewTime": when.strftime("%m %d, %Y")})


def python_2014(user, item, rating, day):
    return repr(json.loads(json_2014(user, item, rating, day)))


def json_2018(user, item, rating, day):
    return json.dumps({
        "overall": rating, "vote": "5", "verified": True, "reviewTime": "01 1, 2018", "reviewerID": user, "asin": item,
        "style": {"Format:": " Hardcover"}, "reviewerName": "Abbey", "reviewText": "Good.", "summary": "Nice",
        "unixReviewTime": day * DAY, "image": ["https://images-na.ssl-images-amazon.com/71eG75FTJJL._SY88.jpg"]})


def json_2023(user, item, rating, day):
    return json.dumps({
        "rating": rating, "title": "Such a lovely scent", "text": "This spray is nice", "images": [],
        "asin": "B00YQ6X8EO", "parent_asin": item, "user_id": user, "timestamp": day * DAY * 1000, "helpful_vote": 0,
        "verified_purchase": True})


FORMS = {
    "json 2014": ("", json_2014),
    "python 2014": ("", python_2014),
    "json 2018": ("", json_2018),
    "json 2023": ("", json_2023),
    "csv 2014": ("", lambda user, item, rating, day: f"{user},{item},{rating},{day * DAY}"),
    "csv 2018": ("", lambda user, item, rating, day: f"{item},{user},{rating},{day * DAY}"),
    "csv 2023": ("user_id,parent_asin,rating,timestamp\n",
                 lambda user, item, rating, day: f"{user},{item},{rating},{day * DAY * 1000}"),
    "csv 2023 with history": ("user_id,parent_asin,rating,timestamp,history\n",
                              lambda user, item, rating, day: f"{user},{item},{rating},{day * DAY * 1000},B1 B2"),
    "csv of Kaggle": ("UserId,ProductId,Rating,Timestamp\n",
                      lambda user, item, rating, day: f'"{user}","{item}",{rating},{day * DAY}'),
}


def amazon_events(seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [(user_id(u), asin(i), float(rng.integers(1, 6)), FIRST_DAY + t) for u, i, t in random_events(seed)]


def amazon_text(form: str, events: list[tuple]) -> str:
    header, line = FORMS[form]
    return header + "".join(line(*event) + "\n" for event in events)


def steam_line(user: str, item: str, hours: float | None, day: int, text: str = "nice", **more) -> str:
    """As UCSD's file has it: Python 2's repr of a dictionary."""
    when = (date(1970, 1, 1) + timedelta(day)).isoformat()
    fields = {"username": user, "hours": hours, "products": 41, "product_id": item, "page_order": 0, "date": when,
              "text": text, "early_access": False, "page": 1, **more}
    written = ", ".join(f"u{k!r}: " + ("u" if isinstance(v, str) else "") + (ascii(v) if isinstance(v, str) else repr(v))
                        for k, v in fields.items() if v is not None)
    return "{" + written + "}"


def steam_events(seed: int = 0) -> list[tuple]:
    rng = np.random.default_rng(seed)
    return [(f"Chaos {u} \u2019é\U0001f600", f"{725280 + int(i[1:])}",
             None if rng.random() < 0.1 else round(float(rng.random() * 20), 1), FIRST_DAY + t)
            for u, i, t in random_events(seed)]


def steam_text(events: list[tuple]) -> str:
    return "".join(steam_line(*event) + "\n" for event in events)


def distinct(events: list[tuple]) -> list[tuple]:
    return list(dict.fromkeys(events))


def first_only(events: list[tuple]) -> list[tuple]:
    """The earliest event of each user and item, in the order of the file."""
    best = {}
    for place, (user, item, time) in enumerate(events):
        best[user, item] = min(best.get((user, item), (time, place)), (time, place))
    keep = {place for _, place in best.values()}
    return [event for place, event in enumerate(events) if place in keep]


REPEATS = {"distinct": distinct, "first": first_only, "all": list}

# ---- Amazon ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_amazon_forms(tmp_path, form, split):
    events = amazon_events()
    (tmp_path / "file").write_text(amazon_text(form, events))
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", split=split)
    scale = DAY * 1000 if "2023" in form else DAY
    found = distinct([(u, i, day * scale) for u, i, _, day in events])
    left = oracle.k_core(found, 5)
    assert statistics["dropped"]["repeated"] == len(events) - len(found) > 0
    assert statistics["dropped"]["user or item with fewer than 5 events"] == len(found) - len(left) > 0
    check(tmp_path / "out", statistics, left, split)
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["kind"] == "amazon" and about["options"] == {
        "columns": None, "core": 5, "min_rating": None, "repeats": "distinct", "split": split, "ties": "apart", "max_history": 50,
        "all_items": False, "min_count": 1}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("core", [0, 1, 3, 6])
@pytest.mark.parametrize("repeats", REPEATS)
def test_cores_and_repeats(tmp_path, seed, core, repeats):
    events = amazon_events(seed)
    (tmp_path / "file").write_text(amazon_text("csv 2014", events))
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", core=core, repeats=repeats, max_history=4)
    left = oracle.k_core(REPEATS[repeats]([(u, i, day * DAY) for u, i, _, day in events]), core)
    check(tmp_path / "out", statistics, left, "leave_one_out", max_history=4)


@pytest.mark.parametrize("all_items", [False, True])
@pytest.mark.parametrize("core", [0, 4])
def test_the_order_of_the_file_parts_ties_where_asked(tmp_path, all_items, core):
    events = amazon_events(5)
    (tmp_path / "file").write_text(amazon_text("csv 2018", events))
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", ties="file", core=core, all_items=all_items)
    left = oracle.k_core(distinct([(u, i, day) for u, i, _, day in events]), core)
    ordered = [(u, i, place) for place, (u, i, _) in enumerate(sorted(left, key=lambda event: event[2]))]
    check(tmp_path / "out", statistics, ordered, "leave_one_out", all_items=all_items)
    assert statistics["dropped"]["history shorter than 1"] == statistics["users"]  # only each user's first


@pytest.mark.parametrize("all_items", [False, True])
@pytest.mark.parametrize("split", ["leave_one_out", "time"])
def test_rare_items_are_unknown(tmp_path, split, all_items):
    events = amazon_events(2)
    (tmp_path / "file").write_text(amazon_text("csv 2014", events))
    options = {"min_count": 12, "all_items": all_items}
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", core=0, repeats="all", split=split, **options)
    found = [(u, i, day * DAY) for u, i, _, day in events]
    check(tmp_path / "out", statistics, found, split, **options)
    assert statistics["vocabularies"]["item"] - 1 < statistics["items"]


def test_low_ratings_go_before_the_core_is_found(tmp_path):
    events = amazon_events(7)
    lines = [json.loads(json_2014(*event)) for event in events]
    for line in lines[:9]:
        del line["overall"]
    (tmp_path / "file").write_text("".join(json.dumps(line) + "\n" for line in lines))
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", min_rating=3, core=2)
    high = [(u, i, day * DAY) for k, (u, i, rating, day) in enumerate(events) if k >= 9 and rating >= 3]
    assert statistics["dropped"]["rating below 3"] == len(events) - len(high)
    check(tmp_path / "out", statistics, oracle.k_core(distinct(high), 2), "leave_one_out")
    options = json.loads((tmp_path / "out" / "dataset.json").read_text())["options"]
    assert options["min_rating"] == 3


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gz", "zst"])
def test_files_of_several_forms_are_one(tmp_path, pack):
    events = amazon_events(2)
    (tmp_path / "in").mkdir()
    for k, form in enumerate(("csv 2014", "json 2018", "csv 2018", "json 2014")):
        part = events[k * len(events) // 4 : (k + 1) * len(events) // 4]
        (tmp_path / "in" / f"{k}").write_bytes(pack(amazon_text(form, part).encode()))
    statistics = prepare_amazon(tmp_path / "in", tmp_path / "out")
    left = oracle.k_core(distinct([(u, i, day * DAY) for u, i, _, day in events]), 5)
    check(tmp_path / "out", statistics, left, "leave_one_out")


def test_columns_that_cannot_be_told_can_be_given(tmp_path):
    events = [(u, f"x{i}", t + 1) for u, i, t in random_events(3)]
    (tmp_path / "file").write_text("".join(f"4,{t},{i},{u}\n" for u, i, t in events))
    columns = ("rating", "timestamp", "item", "user")
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", columns=columns)
    check(tmp_path / "out", statistics, oracle.k_core(distinct(events), 5), "leave_one_out")


def test_rows_that_lack_something_are_counted(tmp_path):
    rows = "".join(f"A{u}23456789012,B00000000{(i + u) % 5},5.0,{1000 + 10 * i + u}\n" for u in range(4) for i in range(5))
    bad = "A123456789012,,5.0,1\nA123456789012,B000000001,5.0,\n,B000000001,,7\n,,,\n"
    (tmp_path / "file").write_text(rows + bad)
    statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", core=0)
    dropped = statistics["dropped"]
    assert (dropped["missing user"], dropped["missing item"], dropped["missing time"]) == (2, 1, 1)
    assert statistics["rows"] + statistics["dropped"]["history shorter than 1"] == 20


@pytest.mark.parametrize("size", [1, 100, 5000, 1 << 24])
@pytest.mark.parametrize("form", ["json 2014", "csv 2023", "csv 2018"])
def test_amazon_chunks_of_any_size_twice(tmp_path, form, size):
    events = amazon_events(1)[:60]
    (tmp_path / "file").write_text("\n" * ("json" in form) + amazon_text(form, events))
    source = AmazonReviews([tmp_path / "file"], size=size)
    scale = DAY * 1000 if "2023" in form else DAY
    for _ in range(2):
        rows = [row for frame in source.chunks() for row in frame.iter_rows()]
        assert rows == [(u, i, day * scale) for u, i, _, day in events]
        assert source.done == 1 and set(source.dropped.values()) == {0}


GOOD = json_2014("A2SUAM1J3GNN3B", "0000013714", 5.0, FIRST_DAY) + "\n"
CSV = "A2SUAM1J3GNN3B,0000013714,5.0,1252800000\n"
AMAZON_BAD = [
    ("", "the file is empty"),
    ("\n\n", "holds only blank lines"),
    (GOOD + "{\n", r"line 2 is not JSON \("),
    (GOOD + "\n[1, 2]\n", r"line 3 is \[1, 2\], not a review"),
    (GOOD + "[" * 9999 + "\n", "line 2 is not JSON"),
    (GOOD + '{"overall": ' + "9" * 5000 + "}\n", "line 2 is not JSON"),
    (GOOD + GOOD.replace("5.0", '"five"'), "line 2: column 'overall' is 'five', not a number"),
    (GOOD + GOOD.replace("5.0", "NaN"), "line 2: column 'overall' is 'nan', not a number"),
    (GOOD + GOOD.replace('"0000013714"', '["0000013714"]'), r"line 2 has the asin \['0000013714'\], neither"),
    (GOOD + GOOD.replace('"A2SUAM1J3GNN3B"', "true"), "line 2 has the reviewerID True, neither"),
    (GOOD + GOOD.replace(str(FIRST_DAY * DAY), "12.5"), "line 2: column 'unixReviewTime' is '12.5', not a whole number"),
    (GOOD + GOOD.replace(str(FIRST_DAY * DAY), "1209600000000"),
     "line 2: column 'unixReviewTime' is 1209600000000: seconds and milliseconds are mixed"),
    ('{"asin": "1", "overall": 5, "unixReviewTime": 1}\n', "line 1 has neither user_id nor reviewerID; it has 'asin"),
    (GOOD.encode() + b'{"asin": "\xff"}\n', "line 2 is not UTF-8"),
    (GOOD + '{"reviewText": "' + "x" * (10 << 20) + '"}\n', "line 2 has more than 1,048,576 bytes"),
    (gzip.compress(GOOD.encode() * 999)[:-30], "damaged or cut off"),
    (zstandard.ZstdCompressor().compress(GOOD.encode() * 999)[:-3], "damaged or cut off"),
    ("{'a': 1\n", "line 1 is no review: it ends too early"),
    ("{'reviewerID': __import__('os')}\n", "line 1 is no review: it has .__import__"),
    (CSV + "A2SUAM1J3GNN3B,0000013714,5.0\n", "line 2 has 3 columns, not 4"),
    (CSV + CSV.replace("5.0", "5,0"), "line 2 has 5 columns, not 4"),
    (CSV + CSV.replace("5.0", "good"), "line 2: column 'rating' is 'good', not a number"),
    (CSV + CSV.replace("1252800000", "1.5"), "line 2: column 'timestamp' is '1.5', not a whole number"),
    (CSV + CSV.replace("1252800000", "1252800000000"), "line 2: .* seconds and milliseconds are mixed"),
    (CSV.encode() + b"A\xff,1,1,1\n", "line 2 is not UTF-8"),
    (CSV + "A" * (10 << 20) + ",1,1,1\n", "line 2 has more than 1,048,576 bytes"),
    ("u1,i1,5.0,1252800000\n", "line 1 does not show which of 'u1' and 'i1' is the product: give --columns"),
    ("1,2,3\n", "line 1 has 3 columns, not 4"),
    ("user_id,parent_asin,timestamp\n", "line 1 names 'user_id, parent_asin, timestamp', not user_id, parent_asin, rat"),
    ("user_id,parent_asin,rating,timestamp\n", "there are no rows"),
    (CSV, "no event is left: .*fewer than 5"),
]


@pytest.mark.parametrize(("data", "message"), AMAZON_BAD, ids=[message for _, message in AMAZON_BAD])
def test_bad_amazon_files(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(af.InputError, match=f"^{re.escape(str(tmp_path))}/file: .*{message}"):
        prepare_amazon(tmp_path / "file", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---- Steam -----------------------------------------------------------------------------------------


def in_seconds(events: list[tuple]) -> list[tuple]:
    return distinct([(u, i, float(day * DAY)) for u, i, _, day in events])


@pytest.mark.parametrize("split", ["leave_one_out", "time"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["plain", "gz", "zst"])
def test_steam(tmp_path, split, pack):
    events = steam_events()
    (tmp_path / "file").write_bytes(pack(steam_text(events).encode()))
    statistics = prepare_steam(tmp_path / "file", tmp_path / "out", split=split)
    check(tmp_path / "out", statistics, oracle.k_core(in_seconds(events), 5), split)
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["kind"] == "steam"


def test_few_hours_go_before_the_core_is_found(tmp_path):
    events = steam_events(4)
    (tmp_path / "file").write_text(steam_text(events))
    statistics = prepare_steam(tmp_path / "file", tmp_path / "out", min_hours=2, core=3)
    played = [event for event in events if event[2] is not None and event[2] >= 2]
    assert statistics["dropped"]["fewer than 2 hours"] == len(events) - len(played) > 0
    check(tmp_path / "out", statistics, oracle.k_core(in_seconds(played), 3), "leave_one_out")


def test_reviews_of_one_day_keep_the_order_of_the_file(tmp_path):
    """In later histories; and with ties=file in each other's."""
    lines = [("ann", i, 1.0, day) for day, items in ((5, "30 10 20"), (7, "50 40"), (9, "60")) for i in items.split()]
    others = [(f"u{k}", i, 1.0, 10 + k) for k in range(9) for i in ("10", "20", "30", "40", "50", "60")]
    (tmp_path / "file").write_text(steam_text(lines + others))
    prepare_steam(tmp_path / "file", tmp_path / "apart", core=0, all_items=True)
    assert ("60", ("30", "10", "20", "50", "40")) in prepared(tmp_path / "apart")["test"]
    assert ("40", ("30", "10", "20")) in prepared(tmp_path / "apart")["valid"]
    prepare_steam(tmp_path / "file", tmp_path / "placed", core=0, all_items=True, ties="file")
    rows = prepared(tmp_path / "placed")
    assert ("40", ("30", "10", "20", "50")) in rows["valid"] and ("20", ("30", "10")) in rows["train"]


def test_steam_lines_that_lack_something_and_odd_names(tmp_path):
    good = [(f"u{k % 4}", str(k % 5), 1.0, FIRST_DAY + k) for k in range(40)]
    odd = [r"{u'username': u'\ud83d\ude00', u'product_id': u'1', u'date': u'2011-01-01'}",
           r"{u'username': u'\ud83d', u'product_id': 1, u'date': u'2011-01-02', u'user_id': u'765', u'found_funny': 2}"]
    bad = ["{u'product_id': u'1', u'date': u'2011-01-01'}", "{'username': '', 'product_id': '1', 'date': '2011-01-01'}",
           "{'username': 'a', 'date': '2011-01-01'}", "{'username': 'a', 'product_id': '1', 'date': None}"]
    (tmp_path / "file").write_text(steam_text(good) + "\n".join(["", *odd, *bad]))
    source = SteamReviews([tmp_path / "file"])
    rows = [row for frame in source.chunks() for row in frame.iter_rows()]
    assert [row[:2] for row in rows[-2:]] == [("\U0001f600", "1"), ("\\x3d\\xd8", "1")]
    assert len(rows) == 42 and source.done == 1
    assert source.dropped == {"missing user": 2, "missing item": 1, "missing time": 1}


STEAM = steam_line("Chaos Syren", "725280", 0.1, 17_517) + "\n"
STEAM_BAD = [
    ("", "the file is empty"),
    (STEAM + '{"username": true}\n', "line 2 is no review: it has 'true}' at character 14"),
    (STEAM + "\n{u'username': u'a'\n", "line 3 is no review: it ends too early"),
    (STEAM + "[1]\n", r"line 2 is \[1\], not a review"),
    (STEAM + "{'username': ['a']}\n", r"line 2 has the username \['a'\], neither"),
    (STEAM + "{'username': open('/etc/passwd').read()}\n", "line 2 is no review: it has .open"),
    (STEAM + "{'a': " + "[" * 9999 + "\n", "line 2 is no review: it is nested"),
    (STEAM + STEAM.replace("2017-12-17", "2017-13-17"), "line 2: column 'date' is '2017-13-17', not a day"),
    (STEAM + STEAM.replace("2017-12-17", "Posted: May 1"), "line 2: column 'date' is 'Posted: May 1', not a day"),
    (STEAM + STEAM.replace("0.1", "u'many'"), "line 2: column 'hours' is 'many', not a number"),
    (STEAM.encode() + b"{'a': '\xff'}\n", "line 2 is not UTF-8"),
    (STEAM + "{'text': '" + "x" * (10 << 20) + "'}\n", "line 2 has more than 1,048,576 bytes"),
    (gzip.compress(STEAM.encode() * 999)[:-30], "damaged or cut off"),
    (STEAM * 9, "no event is left: .*'repeated': 8.*fewer than 5"),
]


@pytest.mark.parametrize(("data", "message"), STEAM_BAD, ids=[message for _, message in STEAM_BAD])
def test_bad_steam_files(tmp_path, data, message):
    (tmp_path / "file").write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(af.InputError, match=f"^{re.escape(str(tmp_path))}/file: .*{message}"):
        prepare_steam(tmp_path / "file", tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


# ---- both ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("options", "message"), [
    ({"split": "random"}, "split 'random' is none of leave_one_out, time"),
    ({"repeats": "some"}, "repeats 'some' is none of distinct, first, all"),
    ({"ties": "none"}, "ties 'none' is none of apart, file"),
    ({"ties": "file", "split": "time"}, "ties 'file' would part what is of one time"),
    ({"core": -1}, "core -1 is negative"),
    ({"max_history": 0}, "max_history 0 is not at least 1"),
    ({"min_count": 0}, "min_count 0 is not at least 1"),
])
@pytest.mark.parametrize("prepare", [prepare_amazon, prepare_steam])
def test_options_that_do_not_fit(tmp_path, prepare, options, message):
    with pytest.raises(af.InputError, match=message):
        prepare(tmp_path / "none", tmp_path / "out", **options)


@pytest.mark.parametrize("options", [{"core": 0, "repeats": "all"}, {}])
def test_no_events(tmp_path, options):
    (tmp_path / "file").write_text("A2SUAM1J3GNN3B,0000013714,5.0,\n")
    with pytest.raises(af.InputError, match="file: no event is left: {'missing time': 1}"):
        prepare_amazon(tmp_path / "file", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("prepare", "option"), [(prepare_amazon, "min_rating"), (prepare_steam, "min_hours")])
def test_limits_that_are_no_finite_numbers(tmp_path, prepare, option, value):
    (tmp_path / "file").write_text("anything\n")
    with pytest.raises(af.InputError, match=f"{option} {value} is not a finite number"):
        prepare(tmp_path / "file", tmp_path / "out", **{option: value})


def test_columns_that_are_not_the_four():
    with pytest.raises(af.InputError, match="columns user,item are not user,item,rating,timestamp in some order"):
        prepare_amazon("none", "out", columns=("user", "item"))


def test_a_file_that_changes_between_the_two_readings(tmp_path, monkeypatch):
    events = amazon_events(1)
    (tmp_path / "file").write_text(amazon_text("csv 2014", events))
    twice = iter([events, events[:-3]])
    chunks = AmazonReviews.chunks

    def changing(self):
        (tmp_path / "file").write_text(amazon_text("csv 2014", next(twice)))
        return chunks(self)

    monkeypatch.setattr(AmazonReviews, "chunks", changing)
    with pytest.raises(af.InputError, match="changed while it was read"):
        prepare_amazon(tmp_path / "file", tmp_path / "out")


@pytest.mark.parametrize("seed", range(5))
def test_k_core_and_first_events_are_those_of_plain_python(seed):
    events = random_events(seed, users=60, items=60)
    user, item = (np.array([int(e[k][1:]) for e in events]) for k in (0, 1))
    time = np.array([e[2] for e in events])
    for k in (1, 2, 4, 5, 9):
        left = oracle.k_core(list(zip(user.tolist(), item.tolist(), range(len(events)), strict=True)), k)
        assert np.flatnonzero(k_core(user, item, k)).tolist() == [place for _, _, place in left]
    places = [e for e, kept in zip(events, first_of_each(user, item, time, False), strict=True) if kept]
    assert places == distinct(events)
    places = [e for e, kept in zip(events, first_of_each(user, item, time, True), strict=True) if kept]
    assert places == first_only(events)


def test_nothing_of_later_rows_reaches_the_training_part(tmp_path):
    """With a split by time: reviews after the last training day are others, of the same number a day."""
    events = [(user_id(u), asin(i), 5.0, FIRST_DAY + t) for u, i, t in random_events(8, days=300)]

    def train(events):
        (tmp_path / "file").write_text(amazon_text("csv 2014", events))
        statistics = prepare_amazon(tmp_path / "file", tmp_path / "out", split="time", core=0, repeats="all",
                                    overwrite=True)
        data = Dataset.open(tmp_path / "out")
        return (data.tokens("item"), prepared(tmp_path / "out")["train"]), statistics["splits"]["train"]["last_time"]

    before, last = train(events)
    changed = [e if e[3] * DAY <= last else (e[0], asin(("i999", "i1")[k % 2]), *e[2:]) for k, e in enumerate(events)]
    assert changed != events
    assert train(changed)[0] == before


def test_the_commands(tmp_path, capsys):
    """Options reach the reader; the result as JSON; a bad line ends with one line and code 2."""
    def call(*arguments) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(argument) for argument in arguments])
        return ended.value.code

    (tmp_path / "amazon").write_text(amazon_text("csv 2018", amazon_events()))
    (tmp_path / "steam").write_text(steam_text(steam_events()))
    (tmp_path / "pairs").write_text("".join(f"{u} {i}\n" for u, i, _ in sorted(random_events(1))))
    common = {"core": 2, "split": "leave_one_out", "max_history": 7, "all_items": True, "min_count": 2}
    reviews = {"repeats": "first", "ties": "file", **common}
    flags = ["--core", 2, "--max-history", 7, "--all-items", "--min-count", 2]
    more = ["--repeats", "first", "--ties", "file", *flags]
    for kind, given, options in (
        ("amazon", ["--min-rating", 2, "--columns", "item,user,rating,timestamp", *more],
         {"columns": ["item", "user", "rating", "timestamp"], "min_rating": 2, **reviews}),
        ("steam", ["--min-hours", 1, *more], {"min_hours": 1, **reviews}),
        ("pairs", ["--form", "pairs", "--split", "leave_one_out", *flags], {"form": "pairs", **common}),
    ):
        command = "sequences" if kind == "pairs" else kind
        place = ["--input", tmp_path / kind, "--output", tmp_path / f"{kind}.out"]
        assert call("prepare", command, *place, *given, "--json", tmp_path / "said") == 0
        said = json.loads((tmp_path / "said").read_text())
        about = json.loads((tmp_path / f"{kind}.out" / "dataset.json").read_text())
        assert said["statistics"]["rows"] == about["rows"] and about["options"] == options
        assert "items" in capsys.readouterr().out
        (tmp_path / kind).write_text("{'oops\n")
        assert call("prepare", command, "--input", tmp_path / kind, "--output", tmp_path / "new") == 2
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and str(tmp_path / kind) in err and "line" in err
        assert not (tmp_path / "new").exists()


def test_an_array_of_reviews_is_named(tmp_path):
    (tmp_path / "reviews.json").write_text(json.dumps([{"reviewerID": "u", "asin": "i"}] * 3))
    with pytest.raises(af.InputError, match=r"reviews.json: line 1 begins with \[: of a JSON file, one review a line"):
        prepare_amazon(tmp_path / "reviews.json", tmp_path / "out")
