"""Alimama: every impression with its behaviours against plain Python that reads the same files, leaks, bad files."""

from __future__ import annotations

import csv
import errno
import gzip
import os
import random
from collections import Counter
from pathlib import Path

import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, events, files, prepare_alimama, prepare_alimama_dmr
from ameir_fast.data.alimama import LAST_DAY
from tests import data_helpers as helpers
from tests.shared import shared

USERS = (
    "cms_segid",
    "cms_group_id",
    "final_gender_code",
    "age_level",
    "pvalue_level",
    "shopping_level",
    "occupation",
    "new_user_class_level",
)
DEFAULT = ("cate_id", "brand", "user", *USERS, "pid")
FIRST_DAY = LAST_DAY - 7 * 86400


def write(folder: Path, *, impressions: int = 400, behaviors: int = 3000, seed: int = 0) -> Path:
    """The four files in their published form: nothing sorted, equal times, what is missing written in both ways."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    people, ads = rng.sample(range(1, 1_141_730), 30), rng.sample(range(1, 846_812), 60)
    time = lambda days: FIRST_DAY + rng.randrange(days * 86400) // 600 * 600
    rows = [
        (
            rng.choice(people[:25]),
            time(8),
            rng.choice(ads),
            f"43054{rng.choice('89')}_1007",
            c := rng.randint(0, 1),
            1 - c,
        )
        for _ in range(impressions)
    ]
    helpers.write_lines(
        folder / "raw_sample.csv", "user,time_stamp,adgroup_id,pid,nonclk,clk", [",".join(map(str, r)) for r in rows]
    )
    helpers.write_lines(
        folder / "ad_feature.csv",
        "adgroup_id,cate_id,campaign_id,customer,brand,price",
        [
            f"{a},{6000 + k % 9},{k},{k // 3},{rng.choice(['NULL', str(90000 + k % 11)])},{rng.choice(['170.0', '0.01', '99999999.0'])}"
            for k, a in enumerate(ads[:-2])
        ],
    )  # nothing is known of two
    helpers.write_lines(
        folder / "user_profile.csv",
        "userid,cms_segid,cms_group_id,final_gender_code,age_level,pvalue_level,shopping_level,occupation,new_user_class_level ",
        [
            f"{u},{k % 7},{k % 13},{1 + k % 2},{k % 7},{rng.choice(['', '1', '2'])},{1 + k % 3},{k % 2},{rng.choice(['', '4'])}"
            for k, u in enumerate(people[:-1])
        ],
    )
    log = [
        (
            rng.choice(people),
            time(8) - rng.choice([0, 0, 10 * 86400]),
            rng.choice(["pv", "pv", "pv", "cart", "fav", "buy"]),
            6000 + rng.randrange(12),
            90000 + rng.randrange(14),
        )
        for _ in range(behaviors)
    ]
    log += [(people[0], -5, "pv", 6000, 90000), (people[29], LAST_DAY, "pv", 6000, 90000)]
    helpers.write_lines(
        folder / "behavior_log.csv", "user,time_stamp,btag,cate,brand", [",".join(map(str, r)) for r in log]
    )
    return folder


def table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return [{k.strip(): v for k, v in row.items()} for row in csv.DictReader(file)]


def expected(folder: Path, kinds=("pv",), since: int = 1, test_from: int | None = LAST_DAY) -> list[dict]:
    """Rows as they must be stored, values in place of ids, ``None`` for what is unknown."""
    ads = {r["adgroup_id"]: r for r in table(folder / "ad_feature.csv")}
    people = {r["userid"]: r for r in table(folder / "user_profile.csv")}
    log = [r for r in table(folder / "behavior_log.csv") if r["btag"] in kinds and int(r["time_stamp"]) >= since]
    log.sort(key=lambda r: int(r["time_stamp"]))  # stable
    rows = []
    for r in sorted(table(folder / "raw_sample.csv"), key=lambda r: int(r["time_stamp"])):
        row = {
            **dict.fromkeys((*USERS, "cate_id", "brand", "campaign_id", "customer")),
            **people.get(r["user"], {}),
            **ads.get(r["adgroup_id"], {}),
            **r,
        }
        rows.append({k: None if v in ("", "NULL") else v for k, v in row.items()})
    times = [int(r["time_stamp"]) for r in rows]
    test = next((k for k, t in enumerate(times) if test_from is not None and t >= test_from), len(rows))
    valid = round(test * 8 / 9)
    if test_from is None:
        valid, test = round(0.8 * len(rows)), round(0.9 * len(rows))
        test = nearer(times, test)
    valid = nearer(times[:test] if test_from is not None else times, valid)
    for k, row in enumerate(rows):
        row["split"] = "train" if k < valid else "valid" if k < test else "test"
        row["history"] = [
            (e["cate"], e["brand"])
            for e in log
            if e["user"] == row["user"] and int(e["time_stamp"]) < int(row["time_stamp"])
        ]
    return rows


def nearer(times: list[int], at: int) -> int:
    low = high = at
    while 0 < low < len(times) and times[low - 1] == times[at]:
        low -= 1
    while high < len(times) and times[high] == times[at]:
        high += 1
    return at if low == at else low if at - low <= high - at else high


def known(rows: list[dict], folder: Path, kinds=("pv",), since: int = 1) -> dict[str, Counter]:
    """How often training has each value: its rows, and for categories and brands also the events before the last
    training row of their user, each once."""
    training = [r for r in rows if r["split"] == "train"]
    found = {
        name: Counter(r[name] for r in training if r[name] is not None)
        for name in (*DEFAULT, "adgroup_id", "campaign_id", "customer")
    }
    last: dict[str, int] = {}
    for r in training:
        last[r["user"]] = max(last.get(r["user"], 0), int(r["time_stamp"]))
    for e in table(folder / "behavior_log.csv"):
        if e["btag"] in kinds and since <= int(e["time_stamp"]) < last.get(e["user"], 0):
            found["cate_id"][e["cate"]] += 1
            found["brand"][e["brand"]] += 1
    return found


def compare(data: Dataset, rows: list[dict], counts: dict[str, Counter], limit: int = 50, least: int = 1) -> None:
    vocabulary = {f.name: f.vocabulary for f in data.schema.fields}
    tokens = {v: [None if t is None else str(t) for t in data.tokens(v)] for v in set(vocabulary.values())}
    for name in vocabulary:
        assert set(tokens[vocabulary[name]][1:]) == {v for v, n in counts[name].items() if n >= least}, name
    keep = lambda name, value: value if counts[name][value] >= least else None
    for split in ("train", "valid", "test"):
        part = [r for r in rows if r["split"] == split]
        batch = helpers.whole(data, split)
        assert len(batch) == len(part)
        for k, (row, found) in enumerate(zip(part, helpers.histories(batch), strict=True)):
            assert int(batch.label[k]) == int(row["clk"])
            for i, name in enumerate(vocabulary):
                assert tokens[vocabulary[name]][batch.fields[k, i]] == keep(name, row[name]), name
            wanted = [(keep("cate_id", c), keep("brand", b)) for c, b in row["history"][-limit:]]
            assert [(tokens["cate"][c], tokens["brand"][b]) for c, b in found] == wanted


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("alimama") / "raw")


@pytest.mark.parametrize("parts", [1, 3, events.PARTS])
def test_every_impression(folder, tmp_path, monkeypatch, parts):
    monkeypatch.setattr(events, "PARTS", parts)
    statistics = prepare_alimama(folder, tmp_path / "out")
    data = Dataset.open(tmp_path / "out")
    assert tuple(f.name for f in data.schema.fields) == DEFAULT and len(DEFAULT) == 12
    assert data.schema.target == ("cate_id", "brand") and data.schema.max_history == 50
    assert [(b.name, b.vocabulary) for b in data.schema.behavior] == [
        ("history_cate", "cate"),
        ("history_brand", "brand"),
    ]
    assert data.field_names == (*DEFAULT, "adgroup_id", "campaign_id", "customer", "price")
    rows = expected(folder)
    compare(data, rows, known(rows, folder))
    log = table(folder / "behavior_log.csv")
    people = {r["user"] for r in rows}
    timed = [e for e in log if e["btag"] == "pv" and int(e["time_stamp"]) > 0]
    assert statistics["dropped"] == {
        "behaviour other than pv": sum(e["btag"] != "pv" for e in log),
        "behaviour without a time": 1,
        "event of a user without a row": sum(e["user"] not in people for e in timed),
    }
    ads, profiles = ({r[key] for r in table(folder / name)} for name, key in (("ad_feature.csv", "adgroup_id"),
                                                                             ("user_profile.csv", "userid")))
    unknown = sum(r["adgroup_id"] not in ads for r in rows)
    assert unknown > 0 and statistics["without_attributes"] == {
        "ad": unknown, "user": sum(r["user"] not in profiles for r in rows)}
    lengths = [len(r["history"]) for r in rows]
    assert statistics["history"]["mean"] == pytest.approx(sum(lengths) / len(lengths))
    assert statistics["history"]["max"] == max(lengths) > 50
    assert statistics["splits"]["test"]["first_time"] >= LAST_DAY > statistics["splits"]["valid"]["last_time"]


def test_options(folder, tmp_path):
    since = FIRST_DAY - 3 * 86400
    prepare_alimama(
        folder,
        tmp_path / "out",
        behaviors=("buy", "pv", "cart"),
        since=since,
        test_from=None,
        max_history=7,
        all_fields=True,
        min_count=3,
    )
    data = Dataset.open(tmp_path / "out").select([*DEFAULT, "adgroup_id", "campaign_id", "customer"])
    assert len(Dataset.open(tmp_path / "out").schema.fields) == 16
    rows = expected(folder, ("pv", "cart", "buy"), since, None)
    compare(data, rows, known(rows, folder, ("pv", "cart", "buy"), since), 7, 3)


def test_prices(folder, tmp_path):
    prepare_alimama(folder, tmp_path / "out", all_fields=True)
    data = Dataset.open(tmp_path / "out")
    place = [f.name for f in data.schema.fields].index("price")
    prices = {r["adgroup_id"]: r["price"] for r in table(folder / "ad_feature.csv")}
    step = {"0.01": 0, "170.0": 22, "99999999.0": 80, None: None}
    wanted = [step[prices.get(r["adgroup_id"])] for r in expected(folder) if r["split"] == "train"]
    tokens = data.tokens("price")
    assert [tokens[i] for i in helpers.whole(data, "train").fields[:, place].tolist()] == wanted


def test_later_behaviours_change_nothing_of_training(folder, tmp_path):
    """Other events from the last training row of their user on."""
    prepare_alimama(folder, tmp_path / "before")
    before = Dataset.open(tmp_path / "before")
    last: dict[str, int] = {}
    for r in expected(folder):
        if r["split"] == "train":
            last[r["user"]] = max(last.get(r["user"], 0), int(r["time_stamp"]))
    changed = tmp_path / "raw"
    changed.mkdir()
    for path in folder.iterdir():
        (changed / path.name).write_bytes(path.read_bytes())
    lines = [
        ",".join(
            [
                e["user"],
                e["time_stamp"],
                e["btag"],
                *((e["cate"], e["brand"]) if int(e["time_stamp"]) < last.get(e["user"], 0) else ("77", "88")),
            ]
        )
        for e in table(folder / "behavior_log.csv")
    ]
    helpers.write_lines(changed / "behavior_log.csv", "user,time_stamp,btag,cate,brand", lines)
    prepare_alimama(changed, tmp_path / "after")
    after = Dataset.open(tmp_path / "after")
    assert before.schema == after.schema
    a, b = helpers.whole(before, "train"), helpers.whole(after, "train")
    for part in ("fields", "history", "history_offsets", "label"):
        assert getattr(a, part).equal(getattr(b, part))
    assert not helpers.whole(before, "test").history.equal(helpers.whole(after, "test").history)


def test_block_by_block_and_packed(folder, tmp_path, monkeypatch):
    """The same bytes whatever the size of blocks and pieces, and from compressed files."""
    prepare_alimama(folder, tmp_path / "whole")
    packed = tmp_path / "raw"
    packed.mkdir()
    for path in folder.iterdir():
        (packed / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    monkeypatch.setattr("ameir_fast.data.pieces.ROWS", 37)
    prepare_alimama(packed, tmp_path / "parts")
    for path in (tmp_path / "whole").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "parts" / path.relative_to(tmp_path / "whole")).read_bytes(), path.name


@pytest.mark.parametrize(
    ("name", "line", "new", "message"),
    [
        ("raw_sample.csv", 4, "1,2,3", "raw_sample.csv: line 4 has 3 columns, not 6"),
        (
            "raw_sample.csv",
            4,
            "u7,1494137644,1,430548_1007,1,0",
            "raw_sample.csv: line 4: column 'user' is 'u7', not a whole number",
        ),
        (
            "raw_sample.csv",
            4,
            "7,1494137644,1,430548_1007,1,2",
            "raw_sample.csv: line 4: column 'clk' is 2, a label that is",
        ),
        ("raw_sample.csv", 4, "7,1494137644,1,430548_1007,1,", "raw_sample.csv: line 4: column 'clk' is missing"),
        ("raw_sample.csv", 4, "7,1494137644,1,430548_1007,1,1", "raw_sample.csv: line 4: column 'nonclk' is 1, which contr"),
        ("raw_sample.csv", 4, "7,1494137644,1,430548_1007,0,0", "raw_sample.csv: line 4: column 'nonclk' is 0, which contr"),
        ("raw_sample.csv", 4, "7,1494137644,1,430548_1007,,0", "raw_sample.csv: line 4: column 'nonclk' is missing"),
        ("raw_sample.csv", 4, b"7,1494137644,1,43\xff548_1007,1,0", "raw_sample.csv: line 4 is not UTF-8"),
        ("raw_sample.csv", 4, "user,time_stamp,adgroup_id,pid,nonclk,clk", "raw_sample.csv: line 4 repeats the header"),
        (
            "raw_sample.csv",
            1,
            "user,time_stamp,adgroup_id,pid,nonclk,click",
            "raw_sample.csv: column 'clk' is missing; it has",
        ),
        (
            "raw_sample.csv",
            1,
            "user,user,adgroup_id,pid,nonclk,clk",
            "raw_sample.csv: line 1 names the column 'user' twice",
        ),
        ("ad_feature.csv", 3, "7,x,1,1,1,1", "ad_feature.csv: line 3: column 'cate_id' is 'x', not a whole number"),
        ("ad_feature.csv", 3, "7,1,1,1,1,cheap", "ad_feature.csv: line 3: column 'price' is 'cheap', not a number"),
        ("ad_feature.csv", 3, "7,1,1,1,1,-1", "ad_feature.csv: line 3: column 'price' is -1, less than nothing"),
        ("user_profile.csv", 3, "1,2,3,4,5,6,7,8", "user_profile.csv: line 3 has 8 columns, not 9"),
        (
            "behavior_log.csv",
            9,
            "7,1494137644,ipv,1,1",
            "behavior_log.csv: line 9: column 'btag' is 'ipv', none of pv, cart, fav, buy",
        ),
        (
            "behavior_log.csv",
            9,
            "7,noon,pv,1,1",
            "behavior_log.csv: line 9: column 'time_stamp' is 'noon', not a whole number",
        ),
    ],
)
def test_bad_files(tmp_path, name, line, new, message):
    folder = write(tmp_path / "raw")
    lines = (folder / name).read_bytes().split(b"\n")
    lines[line - 1] = new if isinstance(new, bytes) else new.encode()
    (folder / name).write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as caught:
        prepare_alimama(folder, tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_repeated_missing_empty_and_cut_off_files(tmp_path):
    folder = write(tmp_path / "raw")
    ads = (folder / "ad_feature.csv").read_text().splitlines()
    helpers.write_lines(folder / "ad_feature.csv", ads[0], [*ads[1:], ads[1]])
    with pytest.raises(
        InputError, match=f"ad_feature.csv: line {len(ads) + 1}: column 'adgroup_id' has .* a second time"
    ):
        prepare_alimama(folder, tmp_path / "out")
    write(folder)
    (folder / "behavior_log.csv").write_bytes(gzip.compress((folder / "behavior_log.csv").read_bytes())[:-9])
    with pytest.raises(InputError, match="behavior_log.csv: damaged or cut off"):
        prepare_alimama(folder, tmp_path / "out")
    (folder / "behavior_log.csv").write_bytes(b"")
    with pytest.raises(InputError, match="behavior_log.csv: the file is empty"):
        prepare_alimama(folder, tmp_path / "out")
    (folder / "behavior_log.csv").unlink()
    with pytest.raises(InputError, match="raw: holds no behavior_log.csv"):
        prepare_alimama(folder, tmp_path / "out")
    (tmp_path / "raw" / "dmr.txt").write_text("1,2\n")
    for path, what in ((folder / "dmr.txt", "is no folder"), (folder / "none", "no such folder")):
        with pytest.raises(InputError, match=f"{path}: {what} with raw_sample.csv, .*files of 267 columns .*--form dmr"):
            prepare_alimama(path, tmp_path / "out")
    with pytest.raises(InputError, match="behaviours pv, click are not some of pv, cart, fav, buy"):
        prepare_alimama(folder, tmp_path / "out", behaviors=("pv", "click"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["raw"]


def test_no_event_of_a_known_user(tmp_path):
    folder = write(tmp_path / "raw")
    helpers.write_lines(folder / "behavior_log.csv", "user,time_stamp,btag,cate,brand", ["0,1494137644,pv,1,1"])
    with pytest.raises(InputError, match="behavior_log.csv: no event is left: {.event of a user without a row.: 1}"):
        prepare_alimama(folder, tmp_path / "out")


@pytest.mark.parametrize("stage", ["collect", "_sort"])
def test_a_preparation_that_was_interrupted_in_the_log_goes_on(folder, tmp_path, monkeypatch, stage):
    prepare_alimama(folder, tmp_path / "clean")

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"ameir_fast.data.{'build' if stage == 'collect' else 'events'}.{stage}", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare_alimama(folder, tmp_path / "out")
    # The impressions have been read, and are not read again.
    monkeypatch.setattr("ameir_fast.data.alimama.AlimamaSource.chunks", interrupted)
    statistics = prepare_alimama(folder, tmp_path / "out")
    assert statistics == Dataset.open(tmp_path / "clean").statistics
    assert Dataset.open(tmp_path / "out").checksum == Dataset.open(tmp_path / "clean").checksum
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "out"]


def test_a_full_disk_leaves_nothing(folder, tmp_path, monkeypatch):
    """In every place where the log's events are written."""
    original, seen = files.write, []
    monkeypatch.setattr(files, "write", lambda file, data: (seen.append(len(data)), original(file, data))[1])
    prepare_alimama(folder, tmp_path / "out")
    writes = len(seen)
    for allowed in [*range(0, writes, max(1, writes // 12)), writes - 1]:
        left = [allowed]

        def full(file, data, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            original(file, data)

        monkeypatch.setattr(files, "write", full)
        with pytest.raises(OSError) as caught:
            prepare_alimama(folder, tmp_path / "full" / "out")
        assert caught.value.errno == errno.ENOSPC and str(tmp_path / "full" / "out") in str(caught.value.filename)
        assert list((tmp_path / "full").iterdir()) == []


# ---- 267 columns -----------------------------------------------------------------------------------


def dmr_line(rng: random.Random, who: int) -> str:
    length = rng.choice([0, 1, 3, 50])
    pad = ["0"] * (50 - length)
    values = [
        pad + [str(low + rng.randrange(many)) for _ in range(length)] for low, many in ((1, 4), (6000, 9), (0, 6))
    ]
    mask = pad + ["1"] * length
    user = [str(who), "0", "3", "2", "2", rng.choice("012"), "3", "0", rng.choice("04")]
    ad = [str(rng.randint(1, 30)), str(6000 + rng.randrange(9)), "5", "6", rng.choice(["0", "3", "NULL", ""]), "0.99"]
    return ",".join([*values[0], *values[1], *values[2], *mask, *mask, *user, *ad, rng.choice("01"), rng.choice("01")])


def dmr_rows(lines: list[str]) -> list[dict]:
    names = (*("user",), *USERS, "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price", "pid", "clk")
    rows = []
    for line in lines:
        cells = line.split(",")
        row = {k: None if v in ("", "NULL") else v for k, v in zip(names, cells[250:], strict=True)}
        for name in ("cate_id", "brand", "final_gender_code", "pvalue_level", "shopping_level", "new_user_class_level"):
            row[name] = None if row[name] == "0" else row[name]
        none = lambda v: None if v == "0" else v
        row["history"] = [
            (none(c), none(b))
            for c, b, m in zip(cells[50:100], cells[100:150], cells[150:200], strict=True)
            if m == "1"
        ]
        rows.append(row)
    return rows


def dmr_known(rows: list[dict]) -> dict[str, Counter]:
    training = [r for r in rows if r["split"] == "train"]
    found = {name: Counter(r[name] for r in training if r[name] is not None) for name in DEFAULT}
    for r in training:
        for c, b in r["history"]:
            found["cate_id"].update([c] if c else [])
            found["brand"].update([b] if b else [])
    return found


def compare_dmr(data: Dataset, rows: list[dict]) -> None:
    """Every row has a user of its own, by whom its split is told; a later row is never stored earlier within one."""
    by_user = {r["user"]: r for r in rows}
    assert len(by_user) == len(rows)
    place = [f.name for f in data.schema.fields].index("user")
    users = data.tokens("user")
    trained = [str(users[u]) for u in helpers.whole(data, "train").fields[:, place].tolist()]
    assert trained == [r["user"] for r in rows if r["user"] in set(trained)]
    for r in rows:
        r["split"] = "train" if r["user"] in set(trained) else None
    counts = dmr_known(rows)
    vocabulary = {f.name: f.vocabulary for f in data.schema.fields}
    tokens = {v: [None if t is None else str(t) for t in data.tokens(v)] for v in set(vocabulary.values())}
    for name in vocabulary:
        assert set(tokens[vocabulary[name]][1:]) == set(counts[name]), name
    batch = helpers.whole(data, "train")
    for k, (user, found) in enumerate(zip(trained, helpers.histories(batch), strict=True)):
        row = by_user[user]
        assert int(batch.label[k]) == int(row["clk"])
        assert [tokens[v][i] for v, i in zip(vocabulary.values(), batch.fields[k].tolist(), strict=True)] == [
            row[name] for name in vocabulary
        ]
        assert [(tokens["cate"][c], tokens["brand"][b]) for c, b in found] == row["history"]


def test_dmr_with_a_test_file(tmp_path):
    rng = random.Random(4)
    train, test = [dmr_line(rng, u) for u in range(300)], [dmr_line(rng, 400 + u) for u in range(40)]
    (tmp_path / "train.csv").write_text("\n".join(train) + "\n")
    (tmp_path / "test.csv.gz").write_bytes(gzip.compress(("\n".join(test) + "\n").encode()))
    prepare_alimama_dmr([tmp_path / "train.csv"], tmp_path / "out", test_paths=[tmp_path / "test.csv.gz"], seed=3)
    data = Dataset.open(tmp_path / "out")
    assert data.size("test") == 40 and 300 / 18 < data.size("valid") < 300 / 5
    compare_dmr(data, dmr_rows(train))
    wanted = dmr_rows(test)
    assert helpers.whole(data, "test").label.tolist() == [float(r["clk"]) for r in wanted]
    assert [len(h) for h in helpers.histories(helpers.whole(data, "test"))] == [len(r["history"]) for r in wanted]
    prepare_alimama_dmr([tmp_path / "train.csv"], tmp_path / "other", test_paths=[tmp_path / "test.csv.gz"], seed=4)
    assert not helpers.whole(data, "train").fields.equal(
        helpers.whole(Dataset.open(tmp_path / "other"), "train").fields
    )


def test_the_published_sample(tmp_path):
    """As the test file, so that every line is found in its order."""
    sample = shared("alimama/dmr_sample_500.txt.gz")
    statistics = prepare_alimama_dmr([sample], tmp_path / "alone")
    assert statistics["rows"] == 500 and statistics["label_rate"] == pytest.approx(210 / 500)
    assert [statistics["splits"][s]["rows"] for s in ("train", "valid", "test")] == [400, 50, 50]
    (tmp_path / "copy.gz").write_bytes(sample.read_bytes())
    prepare_alimama_dmr([sample], tmp_path / "out", test_paths=[tmp_path / "copy.gz"], all_fields=True)
    data = Dataset.open(tmp_path / "out")
    batch, vocabulary = helpers.whole(data, "test"), {f.name: f.vocabulary for f in data.schema.fields}
    tokens = {v: [None if t is None else str(t) for t in data.tokens(v)] for v in set(vocabulary.values())}
    keep = lambda v, value: value if value in tokens[v] else None
    rows = dmr_rows(gzip.decompress(sample.read_bytes()).decode().splitlines())
    known = 0
    for k, (row, found) in enumerate(zip(rows, helpers.histories(batch), strict=True)):
        assert int(batch.label[k]) == int(row["clk"])
        for i, (name, v) in enumerate(vocabulary.items()):
            assert tokens[v][batch.fields[k, i]] == keep(v, row[name]), name
        assert [(tokens["cate"][c], tokens["brand"][b]) for c, b in found] == [
            (keep("cate", c), keep("brand", b)) for c, b in row["history"]
        ]
        known += sum(c is not None for c, _ in found)
    assert known > 20_000


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (266, "2", "line 3: column 'clk' is 2, a label that is neither 0 nor 1"),
        (266, "", "line 3: column 'clk' is missing"),
        (60, "x", "line 3: column 'cate 10' is 'x', not a whole number"),
        (5, "pv", "line 3: column 'btag 5' is 'pv', not a whole number"),
        (249, "1.5", "line 3: column 'match mask 49' is '1.5', not a whole number"),
        (150, "7", "line 3: column 'mask 0' is 7, neither 0 nor 1"),
        (250, "", "line 3: column 'user' is missing"),
        (250, "1,2", "line 3 has 268 columns, not 267"),
    ],
)
def test_bad_dmr_lines(tmp_path, place, value, message):
    rng = random.Random(4)
    lines = [dmr_line(rng, u).split(",") for u in range(30)]
    lines[2][place] = value
    (tmp_path / "sample.txt").write_text("".join(",".join(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=f"sample.txt: {message}"):
        prepare_alimama_dmr([tmp_path / "sample.txt"], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["sample.txt"]


def test_dmr_folders_and_files_that_are_given_twice(tmp_path):
    rng = random.Random(4)
    (tmp_path / "in").mkdir()
    for name in ("a.csv", "b.csv"):
        (tmp_path / "in" / name).write_text("".join(dmr_line(rng, u) + "\n" for u in range(50)))
    assert prepare_alimama_dmr([tmp_path / "in"], tmp_path / "out")["rows"] == 100
    (tmp_path / "link").symlink_to(tmp_path / "in" / "b.csv")
    for test in (tmp_path / "in" / "b.csv", tmp_path / "link"):
        with pytest.raises(InputError, match=f"{test}: is given twice"):
            prepare_alimama_dmr([tmp_path / "in"], tmp_path / "new", test_paths=[test])


@pytest.mark.parametrize(("name", "shown"), [("ad_feature.csv", "adgroup_id"), ("user_profile.csv", "userid")])
@pytest.mark.parametrize("form", ["0{}", " {}", "{}"])
def test_one_id_in_two_ways_of_writing_is_refused(tmp_path, name, shown, form):
    folder = write(tmp_path / "raw", impressions=40, behaviors=100)
    lines = (folder / name).read_text().splitlines()
    first, rest = lines[1].split(",", 1)
    helpers.write_lines(folder / name, lines[0], [*lines[1:], f"{form.format(first)},{rest}"])
    with pytest.raises(InputError, match=f"{name}: line {len(lines) + 1}: column '{shown}' has {first} a second time"):
        prepare_alimama(folder, tmp_path / "out")


@pytest.mark.parametrize(("options", "message"), [
    ({"test_from": 0}, r"raw_sample.csv and others: the train split is empty: 40 rows, split by time: 40 from 0 on are"),
    ({"since": 2**40}, rf"behavior_log.csv: no event is left: .*'behaviour before {2**40}': "),
])
def test_where_nothing_is_left_the_reason_is_named(tmp_path, options, message):
    folder = write(tmp_path / "raw", impressions=40, behaviors=100)
    with pytest.raises(InputError, match=message):
        prepare_alimama(folder, tmp_path / "out", **options)
