"""prepare_sequences: pairs, lines, windows; real files against plain Python; what is refused."""

from __future__ import annotations

import ast
import gzip
import json
import os
import re
from collections import Counter, defaultdict

import pytest
import zstandard

import ameir_fast as af
from ameir_fast.data import Dataset, prepare_sequences
from ameir_fast.data.inputs import text_files
from ameir_fast.data.sequences import Lines, Pairs, told_form
from ameir_fast.data.windows import Windows

from .retrieval_oracle import check, k_core, prepared, random_events
from .shared import shared

PAIRS = [("7", i, k) for k, i in enumerate("abcabd")] + [("3", i, 9 + k) for k, i in enumerate("bcb")] + [
    ("9", i, 20 + k) for k, i in enumerate("ca")] + [("1", i, 30 + k) for k, i in enumerate("abzz")] + [("2", "q", 40)]


def pairs_text(separator: str = " ") -> str:
    return "".join(f"{user}{separator}{item}\n" for user, item, _ in PAIRS)


def lines_text() -> str:
    users = list(dict.fromkeys(user for user, _, _ in PAIRS))
    return "".join(" ".join([u, *(item for user, item, _ in PAIRS if user == u)]) + "\n" for u in users)


def read_pairs(path) -> list[tuple[str, str, int]]:
    with gzip.open(path, "rt") as file:
        return [(*line.split(), k) for k, line in enumerate(file)]


def read_lines(path) -> list[tuple[str, str, int]]:
    events = []
    with gzip.open(path, "rt") as file:
        for line in file:
            user, *items = line.split()
            events += [(user, item, len(events) + k) for k, item in enumerate(items)]
    return events


# ---- real files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("all_items", [False, True])
def test_beauty(tmp_path, all_items):
    path = shared("beauty/beauty.txt.gz")
    events = read_pairs(path)
    lengths = Counter(user for user, _, _ in events)
    assert (len(events), len(lengths), len({item for _, item, _ in events})) == (353_962, 40_226, 54_542)
    assert (min(lengths.values()), max(lengths.values())) == (5, 293)
    statistics = prepare_sequences(path, tmp_path / "out", all_items=all_items)
    check(tmp_path / "out", statistics, events, "leave_one_out", all_items=all_items)
    assert statistics["vocabularies"]["item"] == (54_543 if all_items else 49_439)
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["kind"] == "sequences"
    assert about["options"] == {
        "form": "pairs", "core": 0, "split": "leave_one_out", "max_history": 50, "all_items": all_items, "min_count": 1}


def test_beauty_5core(tmp_path):
    path = shared("beauty/beauty_5core.txt.gz")
    events = read_lines(path)
    assert (len(events), len({u for u, _, _ in events}), len({i for _, i, _ in events})) == (198_502, 22_363, 12_101)
    statistics = prepare_sequences(path, tmp_path / "out", max_history=20)
    check(tmp_path / "out", statistics, events, "leave_one_out", max_history=20)


def runs(items: list[int]) -> set[tuple[int, ...]]:
    return {tuple(items[k : k + 6]) for k in range(len(items) - 5)}


@pytest.mark.parametrize("ties", ["apart", "file"])
def test_steam_windows(tmp_path, ties):
    path = shared("steam/steam_windows13.txt.gz")
    with gzip.open(path, "rt") as file:
        windows = [ast.literal_eval(line) for line in file]
    assert len(windows) == 15_809
    statistics = prepare_sequences(path, tmp_path / "out", ties=ties)
    dropped = statistics["dropped"]
    assert statistics["rows"] + sum(dropped.values()) == len(windows)
    found = prepared(tmp_path / "out")

    # The parts follow one another in time, and no part shares a run of six items with another.
    splits = statistics["splits"]
    assert splits["train"]["last_time"] < splits["valid"]["first_time"] <= splits["valid"]["last_time"] < splits[
        "test"]["first_time"]
    source = Windows([path], ties)
    parts = source.parts()
    kept = [row for frame in source.chunks() for row in frame.iter_rows()]
    whole = {}
    for items, times in windows:
        before = [i for i, t in zip(items[:-1], times[:-1], strict=True) if ties == "file" or t < times[-1]]
        whole.setdefault((items[-1], times[-1], tuple(before)), []).append(items)
    runs_of = defaultdict(set)
    for part, (item, time, history) in zip(parts, kept, strict=True):
        for items in whole[item, time, tuple(history)]:
            for run in runs(items):
                runs_of[run].add(int(part))
    assert all(len(of) == 1 for of in runs_of.values())
    assert dropped["overlaps a window of a later part"] == len(windows) - len(kept) == 5

    # The rows are those of the windows.
    train = [(row[0], row[2]) for part, row in zip(parts, kept, strict=True) if part == 0]
    known = {i for item, history in train for i in (item, *history)}
    empty = sum(not row[2] for row in kept)
    assert dropped["history shorter than 1"] == empty == (0 if ties == "file" else 394)
    for number, part in enumerate(("train", "valid", "test")):
        rows = sorted((row for p, row in zip(parts, kept, strict=True) if p == number), key=lambda row: row[1])
        assert found[part] == [(item, tuple(i if i in known else None for i in history))
                               for item, _, history in rows if history and item in known]


# ---- by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "text"), [
    ("pairs", pairs_text()), ("pairs", pairs_text("\t")), ("pairs", "\n" + pairs_text().replace("\n", "\r\n")),
    ("lines", lines_text()), ("lines", lines_text().replace(" ", "\t", 5) + "\n"), ("lines", " " + lines_text()),
], ids=["pairs", "tabs", "crlf", "lines", "mixed", "blanks"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["plain", "gz", "zst"])
def test_forms_and_packing(tmp_path, form, text, pack):
    (tmp_path / "file").write_bytes(pack(text.encode()))
    said = []
    statistics = prepare_sequences(tmp_path / "file", tmp_path / "out", max_history=3, on_progress=said.append)
    assert f"as {form}" in said[0]
    check(tmp_path / "out", statistics, PAIRS, "leave_one_out", max_history=3)


def test_a_user_of_one_item_has_no_row_and_two_files_are_one(tmp_path):
    events = pairs_text().splitlines(keepends=True)
    for name, part in (("a", events[:8]), ("b", events[8:])):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("".join(part))
    statistics = prepare_sequences(tmp_path / "in", tmp_path / "out")
    check(tmp_path / "out", statistics, PAIRS, "leave_one_out")
    assert statistics["users"] == 5 and statistics["dropped"]["history shorter than 1"] == 5
    assert all("q" != item for rows in prepared(tmp_path / "out").values() for item, _ in rows)


@pytest.mark.parametrize("form", ["pairs", "lines"])
@pytest.mark.parametrize(("core", "min_count"), [(1, 3), (7, 1), (9, 1), (8, 20)])
def test_the_core_and_rare_items(tmp_path, form, core, min_count):
    events = sorted(((u, i) for u, i, _ in random_events(3)), key=lambda event: event[0])
    if form == "pairs":
        text = "".join(f"{u} {i}\n" for u, i in events)
    else:
        text = "".join(" ".join([u, *(i for v, i in events if v == u)]) + "\n" for u in dict.fromkeys(u for u, _ in events))
    (tmp_path / "file").write_text(text)
    events = [(u, i, k) for k, (u, i) in enumerate(events)]
    left = k_core(events, core)
    assert (len(left) < len(events)) == (core > 1)
    statistics = prepare_sequences(tmp_path / "file", tmp_path / "out", form=form, core=core, min_count=min_count)
    check(tmp_path / "out", statistics, left, "leave_one_out", min_count=min_count)
    why = f"user or item with fewer than {core} events"
    assert statistics["dropped"].get(why, 0) == len(events) - len(left)


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize(("source", "text"), [(Pairs, pairs_text()), (Lines, lines_text())], ids=["pairs", "lines"])
def test_chunks_of_any_size_twice(tmp_path, source, text, size):
    (tmp_path / "file").write_text(text)
    reader = source([tmp_path / "file"], size=size)
    for _ in range(2):
        frames = list(reader.chunks())
        assert len({tuple(frame.schema.items()) for frame in frames}) == 1
        assert [(u, i) for frame in frames for u, i in frame.select("user", "item").iter_rows()] == [
            (u, i) for u, i, _ in PAIRS]
        assert [t for frame in frames for t in frame["time"]] == list(range(len(PAIRS)))
        assert reader.done == 1


def test_items_of_the_last_time_are_apart_unless_asked(tmp_path):
    windows = [([k, 50 + k, k, 70, 80, 90 + k % 3], [k, k, k + 1, k + 1, k + 2, k + 2]) for k in range(30)]
    (tmp_path / "windows").write_text("".join(f"{w}\n" for w in windows))
    for ties, length in (("apart", 4), ("file", 5)):
        prepare_sequences(tmp_path / "windows", tmp_path / "out", form="windows", ties=ties, overwrite=True)
        rows = [row for part in prepared(tmp_path / "out").values() for row in part]
        assert {len(history) for _, history in rows} == {length}


@pytest.mark.parametrize("size", [1, 200, 1 << 20])
def test_groups_are_linked_by_others(tmp_path, size):
    """Of three windows over two parts the first and the last share nothing, but each a run with the one between."""
    long = list(range(1, 18))
    chain = [(long[k : k + 9], [0.0] * 8 + [time]) for k, time in ((0, 40.25), (3, 50.25), (6, 95.25))]
    assert not runs(chain[0][0]) & runs(chain[2][0])
    others = [(list(range(100 + 9 * k, 109 + 9 * k)), [0] * 8 + [k]) for k in range(100)]
    (tmp_path / "file").write_text("".join(f"{w}\n" for w in [*chain, *others]))
    source = Windows([tmp_path / "file"], size=size)
    parts = source.parts()
    rows = [row for frame in source.chunks() for row in frame.iter_rows()]
    assert source.dropped == {"overlaps a window of a later part": 2}
    assert rows[0][0] == long[14] and parts[0] == 2  # what is left of the chain
    assert len(rows) == len(parts) == 101


def test_a_short_window_leaves_no_other_out(tmp_path):
    """It goes where a later part has a window that holds it whole, and links nothing."""
    long = [([*range(9 * k, 9 * k + 8), 0, 1], [*[0] * 9, k]) for k in range(100)]  # all hold 0, 1
    short = [([0, 1], [0, 30.5]), ([0, 1], [0, 40.5]), ([1, 0], [0, 50.5]), ([0, 1], [0, 99.5])]
    for windows, left_out in (([*long, *short], 2), (long, 0), (short, 2)):
        (tmp_path / "file").write_text("".join(f"{w}\n" for w in windows))
        source = Windows([tmp_path / "file"], shares=(0.5, 0.25, 0.25))
        source.parts()
        assert source.dropped == {"overlaps a window of a later part": left_out}
        assert source._keep.tolist() == [w not in short[:2] or not left_out for w in windows]


# ---- what is refused -------------------------------------------------------------------------------

LONG = "1 " + "2 " * (5 << 20) + "\n"
WINDOW = "([1, 2, 3], [5.0, 6.0, 7.0])\n"
BAD = [
    ("auto", "", "file: the file is empty"),
    ("auto", "\n \n", "file: holds only blank lines"),
    ("auto", "only\n", "its first line is no 'user item'"),
    ("auto", "1 2\n1 3\n1 2 3\n", "line 3 has 3 columns, not 2"),
    ("pairs", "1 2\n1\n", "line 2 has 1 columns, not 2"),
    ("pairs", "1 2\n1 \n", "line 2: column 'item' is missing"),
    ("pairs", "1 2\n 3\n", "line 2: column 'user' is missing"),
    ("pairs", b"1 2\n1 \xff\n", "line 2 is not UTF-8"),
    ("pairs", "1 2\n" + LONG, "line 2 has more than 1,048,576 bytes"),
    ("pairs", gzip.compress(pairs_text().encode() * 999, mtime=0)[:-20], "damaged or cut off"),
    ("lines", "1 2 3\n2\n", "line 2 has the user '2' and no item"),
    ("lines", "1 2 3\n2 3 4\n1 5 6\n", "line 3 has the user '1' a second time"),
    ("lines", "\n  \n", "there are no events"),
    ("pairs", "\n \n", "holds only blank lines"),
    ("windows", "\n \n", "holds only blank lines"),
    ("lines", b"1 2 3\n\n1 \xff 4\n", "line 3 is not UTF-8"),
    ("lines", "1 2 3\n" + LONG, "line 2 has more than 1,048,576 bytes"),
    ("lines", gzip.compress(lines_text().encode() * 999, mtime=0)[:-20], "damaged or cut off"),
    ("windows", WINDOW + "\n([1, 2], [5.0])\n", "line 3 is no window: it has 2 items and 1 times"),
    ("windows", WINDOW + "([1, 2, 3], [5.0, 7.0, 6.0])\n", r"line 2 .* has the time 6.0 after 7.0: they must ascend"),
    ("windows", WINDOW + "([1], [5.0])\n", "line 2 .* has 1 items; at least 2 are needed"),
    ("windows", WINDOW + "([1, 'a'], [5.0, 6.0])\n", "line 2 .* has the item 'a', not a number"),
    ("windows", WINDOW + "([1, -2], [5.0, 6.0])\n", "line 2 .* has the item -2, not a number"),
    ("windows", WINDOW + "([1, 2], [5.0, True])\n", "line 2 .* has the time True, not a number"),
    ("windows", WINDOW + "([1, 2], [5.0, 1e999])\n", "line 2 .* has the time inf, not a number"),
    ("windows", WINDOW + "[1, 2]\n", r"line 2 .* is not of the form \(\[items\], \[times\]\)"),
    ("windows", WINDOW + "([1, 2], [5.0, 6.0)\n", r"line 2 is no window: it has '\)' at character 19"),
    ("windows", WINDOW + "(__import__('os').getcwd(), [1])\n", "line 2 is no window: it has .__import__"),
    ("windows", WINDOW + "(" + "[" * 999 + "\n", "line 2 is no window: it is nested more than 32 deep"),
    ("windows", WINDOW + "([1, 2], [5.0,\n", "line 2 is no window: it ends too early"),
    ("windows", b"([1, 2], [5.0, 6.0])\n\xff\n", "line 2 is not UTF-8"),
    ("windows", WINDOW + "(" + LONG, "line 2 has more than 1,048,576 bytes"),
    ("windows", gzip.compress(WINDOW.encode() * 9999, mtime=0)[:-20], "damaged or cut off"),
]


@pytest.mark.parametrize(("form", "data", "message"), BAD, ids=[f"{form}: {message}" for form, _, message in BAD])
def test_bad_files(tmp_path, form, data, message):
    path = tmp_path / "file"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(af.InputError, match=f"^{re.escape(str(tmp_path))}/.*{message}"):
        prepare_sequences(path, tmp_path / "out", form=form)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("options", "message"), [
    ({"form": "sideways"}, "form 'sideways' is none of auto, pairs, lines, windows"),
    ({"split": "random"}, "split 'random' is none of leave_one_out, time"),
    ({"split": "time"}, "pairs have no times: they cannot be split by time"),
    ({"ties": "file"}, "ties is for windows"),
    ({"form": "windows", "split": "leave_one_out"}, "windows have no users"),
    ({"max_history": 0}, "max_history 0 is not at least 1"),
    ({"min_count": 0}, "min_count 0 is not at least 1"),
    ({"core": -1}, "core -1 is negative"),
    ({"form": "windows", "core": 5}, "windows have no users: there is no core"),
    ({"core": 99}, r"file: no event is left: {'user or item with fewer than 99 events': 16}"),
])
def test_options_that_do_not_fit(tmp_path, options, message):
    (tmp_path / "file").write_text(pairs_text())
    with pytest.raises(af.InputError, match=message):
        prepare_sequences(tmp_path / "file", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_no_files(tmp_path):
    (tmp_path / "empty").mkdir()
    for path, message in ((tmp_path / "none", "no such file"), (tmp_path / "empty", "holds no file"), ([], "no input")):
        with pytest.raises(af.InputError, match=message):
            prepare_sequences(path, tmp_path / "out")


def test_forms_are_told_by_the_first_line_that_is_not_blank(tmp_path):
    for text, form in (("\n\n1\t2\n", "pairs"), ("1 2 3", "lines"), ("  ([1], [2])", "windows")):
        (tmp_path / "file").write_text(text)
        assert told_form(tmp_path / "file") == form


def test_users_too_short_for_a_split(tmp_path):
    (tmp_path / "file").write_text("1 2\n1 3\n2 2\n2 3\n")
    with pytest.raises(af.InputError, match="split is empty"):
        prepare_sequences(tmp_path / "file", tmp_path / "out")


def test_nothing_of_later_rows_reaches_the_training_part(tmp_path):
    """Other last items, in the same number: the training rows, their histories and the vocabulary stay."""
    def train(last: str):
        changed = pairs_text().replace("7 d", f"7 {last}").replace("1 z\n1 z", f"1 {last}\n1 {last}")
        (tmp_path / "file").write_text(changed)
        prepare_sequences(tmp_path / "file", tmp_path / "out", overwrite=True)
        data = Dataset.open(tmp_path / "out")
        return data.tokens("item"), prepared(tmp_path / "out")["train"], [a.tolist() for a in data.user_items()]

    assert train("a") == train("new")


def test_a_file_given_twice_is_refused(tmp_path):
    """By another name, too; its rows would be in training and test alike."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "pairs.txt").write_text(pairs_text())
    (tmp_path / "link.txt").symlink_to(tmp_path / "in" / "pairs.txt")
    with pytest.raises(af.InputError, match="link.txt: is given twice"):
        prepare_sequences([tmp_path / "in", tmp_path / "link.txt"], tmp_path / "out")
    (tmp_path / "hard.txt").hardlink_to(tmp_path / "in" / "pairs.txt")
    with pytest.raises(af.InputError, match="hard.txt: is given twice"):
        prepare_sequences([tmp_path / "in", tmp_path / "hard.txt"], tmp_path / "out")
    with pytest.raises(af.InputError, match="pairs.txt: is given twice"):
        text_files([tmp_path / "in" / "pairs.txt"] * 2, "train")
    packed = tmp_path / "in" / "pairs.txt.gz"
    packed.write_bytes(gzip.compress((tmp_path / "in" / "pairs.txt").read_bytes()))
    for read in (lambda: prepare_sequences(tmp_path / "in", tmp_path / "out"), lambda: text_files(tmp_path / "in", "train")):
        with pytest.raises(af.InputError, match=r"pairs.txt and pairs.txt.gz: look like the same file"):
            read()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused(tmp_path):
    """And not waited for."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(af.InputError, match="pipe: is no regular file"):
        prepare_sequences(tmp_path / "pipe", tmp_path / "out")


@pytest.mark.parametrize("header", ["user item", "User_ID\titem_id", "user_id movie_id"])
def test_a_header_is_no_event(tmp_path, header):
    separator = "\t" if "\t" in header else " "
    (tmp_path / "pairs.txt").write_text(f"\n{header}\n" + pairs_text().replace(" ", separator))
    with pytest.raises(af.InputError, match="pairs.txt: line 2 is a header"):
        prepare_sequences(tmp_path / "pairs.txt", tmp_path / "out")
