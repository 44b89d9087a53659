"""Native host code against its NumPy twin, what both must do, and missing native modules."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import ameir_fast
from ameir_fast import hostops, native, negatives
from ameir_fast.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
NEEDS_DRIVER = pytest.mark.skipif(
    native.why_not("_driver") is not None, reason=str(native.why_not("_driver"))
)
ENGINES = [pytest.param("native", marks=NEEDS_DRIVER), "numpy"]


@pytest.fixture(params=ENGINES)
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    assert (native.driver() is None) == (request.param == "numpy")
    return request.param


# ---- assembling ------------------------------------------------------------------------------------


def storage(
    seed: int, rows: int = 50, fields: int = 4, bags: int = 1, depth: int = 2, num_events: int = 200
) -> dict:
    """Random columnar storage; the last ``bags`` fields are multi-categorical."""
    generator = np.random.default_rng(seed)
    edges = np.sort(generator.integers(0, num_events + 1, size=(rows, 2)), axis=1)
    lengths = [np.concatenate([[0], np.cumsum(generator.integers(0, 4, size=rows))]) for _ in range(bags)]
    return {
        "columns": [generator.integers(0, 1000, rows, dtype=np.int32) for _ in range(fields - bags)]
        + [None] * bags,
        "bags": [(generator.integers(0, 99, offsets[-1], dtype=np.int32), offsets) for offsets in lengths],
        "events": [generator.integers(0, 77, num_events, dtype=np.int32) for _ in range(depth)],
        "begin": np.ascontiguousarray(edges[:, 0]),
        "end": np.ascontiguousarray(edges[:, 1]),
    }


def by_hand(rows, columns, bags, events, begin, end, max_history):
    """The contract, one row after another in plain Python."""
    fields, bag_ids, bag_sizes, history, lengths = [], [], [], [], []
    for r in rows:
        fields.append([0 if c is None else c[r] for c in columns])
        for ids, offsets in bags:
            bag = ids[offsets[r] : offsets[r + 1]].tolist()
            bag_ids += bag
            bag_sizes.append(len(bag))
        first = max(begin[r], end[r] - max_history)
        history += [[e[t] for e in events] for t in range(first, end[r])] if events else []
        lengths.append(max(0, end[r] - first) if events else 0)
    return (
        np.array(fields, np.int32).reshape(len(rows), len(columns)),
        np.array(bag_ids, np.int32),
        np.cumsum([0, *bag_sizes]),
        np.array(history, np.int32).reshape(sum(lengths), len(events)),
        np.cumsum([0, *lengths]),
    )


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"bags": 0},
        {"bags": 3, "fields": 3},
        {"depth": 0},
        {"depth": 1},
        {"depth": 3},
        {"fields": 0, "bags": 0},
        {"rows": 1},
        {"num_events": 0},
        {"depth": 0, "bags": 0, "fields": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("max_history", [0, 1, 20, 10_000])
def test_assemble_equals_the_contract(engine, shape, max_history):
    data = storage(7, **shape)
    generator = np.random.default_rng(1)
    for batch in (0, 1, 13):
        rows = generator.integers(0, data["begin"].shape[0], batch)
        got = hostops.assemble(rows, **data, max_history=max_history)
        for a, b, dtype in zip(
            got,
            by_hand(rows, **data, max_history=max_history),
            (np.int32, np.int32, np.int64, np.int32, np.int64),
            strict=True,
        ):
            assert a.dtype == dtype
            assert a.flags.c_contiguous
            np.testing.assert_array_equal(a, b)


def test_assemble_reads_memory_maps(engine, tmp_path):
    data = storage(3)
    np.save(tmp_path / "column.npy", data["columns"][0])
    np.save(tmp_path / "event.npy", data["events"][1])
    rows = np.arange(50)
    expected = hostops.assemble(rows, **data, max_history=5)
    data["columns"][0] = np.load(tmp_path / "column.npy", mmap_mode="r", allow_pickle=False)
    data["events"][1] = np.load(tmp_path / "event.npy", mmap_mode="r", allow_pickle=False)
    for a, b in zip(hostops.assemble(rows, **data, max_history=5), expected, strict=True):
        np.testing.assert_array_equal(a, b)


def broken(**changes):
    data = {"rows": np.array([4, 9, 0]), **storage(11), "max_history": 20}
    for name, change in changes.items():
        data[name] = change(data[name])
    return data


def edited(position, value):
    def edit(array):
        array = array.copy()
        array[position] = value
        return array

    return edit


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": edited(1, 50)}, r"^row 50 at position 1 is outside 0..49$"),
        ({"rows": edited(2, -1)}, r"^row -1 at position 2 is outside 0..49$"),
        ({"end": edited(9, 201)}, r"^history of row 9 is \[\d+, 201\) of 200 events$"),
        ({"begin": edited(0, -1)}, r"^history of row 0 is \[-1, \d+\) of 200 events$"),
        (
            {"begin": edited(9, 200), "end": edited(9, 199)},
            r"^history of row 9 is \[200, 199\) of 200 events$",
        ),
        ({"bags": lambda b: [(b[0][0][:3], b[0][1])]}, r"^bag 0 of row \d is \[\d+, \d+\) of 3 ids$"),
        (
            {"bags": lambda b: [(b[0][0], edited(5, -(2**62))(b[0][1]))]},
            r"^bag 0 of row 4 is \[\d+, -\d+\) of \d+ ids$",
        ),
        ({"max_history": lambda m: -1}, r"^max_history is negative$"),
        ({"end": lambda e: e[:-1].copy()}, r"^begin and end differ in length$"),
        ({"columns": lambda c: [c[0][:-1].copy(), *c[1:]]}, r"^a column and begin differ in length$"),
        ({"events": lambda e: [e[0], e[1][:-1].copy()]}, r"^behaviour columns differ in length$"),
        ({"bags": lambda b: [(b[0][0], b[0][1][:-1].copy())]}, r"one entry more than begin"),
    ],
)
def test_assemble_refuses_what_leaves_the_storage(engine, changes, message):
    with pytest.raises(InputError, match=message):
        hostops.assemble(**broken(**changes))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": lambda r: r.astype(np.int32)},
        {"rows": list},
        {"begin": lambda b: np.repeat(b, 2)[::2]},
        {"events": lambda e: [e[0].astype(np.int64), e[1]]},
        {"columns": lambda c: [c[0][:, None], *c[1:]]},
        {"bags": lambda b: [(b[0][0].astype(np.float32), b[0][1])]},
    ],
)
def test_assemble_converts_nothing_silently(engine, change):
    with pytest.raises(TypeError, match="contiguous one-dimensional"):
        hostops.assemble(**broken(**change))


@NEEDS_DRIVER
@pytest.mark.parametrize("seed", range(20))
def test_assemble_native_equals_numpy(seed):
    generator = np.random.default_rng(seed)
    data = storage(
        seed,
        rows=int(generator.integers(1, 300)),
        fields=6,
        bags=2,
        depth=int(generator.integers(0, 4)),
        num_events=int(generator.integers(0, 3000)),
    )
    rows = generator.integers(0, data["begin"].shape[0], int(generator.integers(0, 200)))
    max_history = int(generator.integers(0, 40))
    got = native.driver().Storage(*data.values()).assemble(rows, max_history)
    for a, b in zip(got, hostops._assemble_numpy(rows, *data.values(), max_history), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


def test_a_storage_serves_many_batches_and_lasts_longer_than_its_columns(engine):
    data = storage(5)
    kept = {name: [c if c is None else c.copy() for c in data[name]] for name in ("columns", "events")}
    expected = [by_hand(rows, **data, max_history=7) for rows in np.arange(50).reshape(10, 5)]
    made = hostops.Storage(**{**data, **kept})
    kept.clear()
    for rows, wanted in zip(np.arange(50).reshape(10, 5), expected, strict=True):
        for a, b in zip(made.assemble(rows, 7), wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="^row 50 at position 0"):
        made.assemble(np.array([50]), 7)
    with pytest.raises(TypeError, match="rows must be"):
        made.assemble(np.arange(3, dtype=np.int32), 7)
    with pytest.raises(InputError, match="begin and end differ in length"):
        hostops.Storage(**{**data, "end": data["end"][:-1].copy()})


def test_reading_ahead_is_a_hint_within_the_columns(engine, tmp_path):
    np.save(tmp_path / "column.npy", np.arange(100_000, dtype=np.int32))
    mapped = np.asarray(np.load(tmp_path / "column.npy", mmap_mode="r"))
    label = np.ones(100_000, np.float32)
    for first, last in (([], []), ([0], [100_000]), ([3, 90_000], [3, 90_001])):
        hostops.read_ahead([mapped, label], np.array(first, np.int64), np.array(last, np.int64))
    np.testing.assert_array_equal(mapped, np.arange(100_000))
    hostops.read_ahead([], np.zeros(0, np.int64), np.zeros(0, np.int64))
    for first, last in ((-1, 5), (9, 8), (99_999, 100_001)):
        with pytest.raises(InputError, match=rf"^range \[{first}, {last}\) leaves a column of 100000$"):
            hostops.read_ahead([mapped, label], np.array([0, first]), np.array([1, last]))
    with pytest.raises(InputError, match="1 first and 2 last"):
        hostops.read_ahead([mapped], np.array([0]), np.array([1, 2]))
    with pytest.raises(TypeError, match="columns.0. must be a contiguous"):
        hostops.read_ahead([mapped[::2]], np.array([0]), np.array([1]))


@NEEDS_DRIVER
def test_assemble_releases_the_interpreter_lock():
    """While a long call runs in another thread, this thread goes on: it counts far on, in steps of short
    sleeps."""
    data = storage(0, rows=1000, fields=60, bags=0, num_events=2000)
    rows = np.random.default_rng(0).integers(0, 1000, 200_000)
    running = threading.Event()

    def work():
        running.set()
        hostops.assemble(rows, **data, max_history=200)
        running.clear()

    thread = threading.Thread(target=work)
    thread.start()
    running.wait()
    steps = 0
    while running.is_set():
        time.sleep(0.0005)
        steps += 1
    thread.join()
    assert steps >= 5


# ---- negatives -------------------------------------------------------------------------------------


def own_items(seed: int, users: int, num_items: int, most: int):
    generator = np.random.default_rng(seed)
    lists = [
        np.sort(generator.choice(num_items, generator.integers(0, most + 1), replace=False))
        for _ in range(users)
    ]
    offsets = np.concatenate([[0], np.cumsum([len(x) for x in lists])]).astype(np.int64)
    return offsets, np.concatenate([*lists, np.empty(0)]).astype(np.int32), lists


@NEEDS_DRIVER
@pytest.mark.parametrize("seed", range(20))
def test_negatives_native_equals_numpy(seed):
    generator = np.random.default_rng(seed)
    num_items = int(generator.integers(20, 500))
    offsets, items, _ = own_items(seed, 30, num_items, 15)
    users = generator.integers(0, 30, 64)
    positives = generator.integers(0, num_items, 64).astype(np.int32)
    weights = generator.integers(0, 5, num_items) * (seed % 3 > 0)
    weights[1] += 1
    rows = generator.integers(0, 2**40, 64) if seed % 2 else None
    starts = negatives.item_starts(weights) if seed % 4 > 1 else None
    arguments = (users, offsets, items, num_items, int(generator.integers(0, 12)), seed * 7**20 % 2**64, positives, rows,
                 starts, True)
    np.testing.assert_array_equal(
        native.driver().sample_negatives(*arguments), negatives._sample_negatives_numpy(*arguments)
    )


def test_negatives_avoid_history_positive_and_unknown(engine):
    offsets, items, lists = own_items(1, 12, 40, 36)
    users = np.tile(np.arange(12), 8)
    positives = np.random.default_rng(2).integers(0, 40, users.size).astype(np.int32)
    drawn = negatives.sample_negatives(users, offsets, items, 40, 50, 3, positives)
    assert drawn.shape == (96, 50)
    assert drawn.dtype == np.int32
    for user, positive, row in zip(users, positives, drawn, strict=True):
        allowed = set(range(1, 40)) - set(lists[user].tolist()) - {int(positive)}
        assert set(row.tolist()) <= allowed


@pytest.mark.parametrize("positive", [0, 1, 4, 6, 9])
def test_negatives_are_uniform(engine, positive):
    offsets, items = np.array([0, 4]), np.array([0, 2, 3, 6], np.int32)
    drawn = negatives.sample_negatives(
        np.zeros(20_000, np.int64), offsets, items, 10, 5, 99, np.full(20_000, positive, np.int32)
    )
    allowed = sorted(set(range(1, 10)) - {2, 3, 6} - {positive})
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == allowed
    expected = drawn.size / len(allowed)
    # Chi-squared with at most 5 degrees of freedom: 25 has probability 1e-4, and the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 25


def test_negatives_are_a_function_of_seed_row_and_slot(engine):
    offsets, items, _ = own_items(5, 4, 300, 20)
    users, positives = np.array([0, 1, 2, 3, 0]), np.array([5, 6, 7, 8, 9], np.int32)

    def draw(seed, n=6, rows=5):
        return negatives.sample_negatives(
            users[:rows].copy(), offsets, items, 300, n, seed, positives[:rows].copy()
        )

    full = draw(17)
    np.testing.assert_array_equal(draw(17), full)
    np.testing.assert_array_equal(draw(17, n=3), full[:, :3])
    np.testing.assert_array_equal(draw(17, rows=2), full[:2])
    np.testing.assert_array_equal(draw(17 + 2**64), full)
    assert (draw(18) != full).any(axis=1).all()
    assert draw(-1).shape == (5, 6)
    # Fixed numbers: the draws are part of what makes a run repeatable, on every machine and in every later
    # version.
    assert draw(0)[0].tolist() == [103, 81, 84, 146, 181, 132]


def test_the_generator_is_splitmix64():
    # First outputs of the published generator started at 0 and at 1234567.
    for start, output in ((0, 0xE220A8397B1DCDAF), (1234567, 6457827717110365317)):
        state = np.array([(start + negatives._GAMMA) % 2**64], np.uint64)
        assert int(negatives._mix(state)[0]) == output


@pytest.mark.parametrize("positive", [0, 1, 4, 6, 9])
def test_weighted_negatives_follow_their_weights(engine, positive):
    weights = np.array([50, 3, 8, 1, 0, 7, 2, 0, 13, 5])  # that of id 0 never counts, items 4 and 7 are never drawn
    offsets, items = np.array([0, 4]), np.array([0, 2, 3, 6], np.int32)
    drawn = negatives.sample_negatives(
        np.zeros(20_000, np.int64), offsets, items, 10, 5, 4, np.full(20_000, positive, np.int32),
        starts=negatives.item_starts(weights),
    )
    allowed = sorted({1, 5, 8, 9} - {positive})
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == allowed
    expected = drawn.size * weights[allowed] / weights[allowed].sum()
    # Chi-squared with at most 3 degrees of freedom: 21 has probability 1e-4, and the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 21


def test_equal_weights_are_uniform_draws(engine):
    offsets, items, _ = own_items(7, 5, 200, 30)
    users = np.arange(40) % 5
    positives = np.arange(40, dtype=np.int32)
    arguments = (users, offsets, items, 200, 8, 11, positives)
    np.testing.assert_array_equal(
        negatives.sample_negatives(*arguments, starts=negatives.item_starts(np.ones(200, int))),
        negatives.sample_negatives(*arguments),
    )


def test_rows_name_the_draws(engine):
    """A row's draws depend on its number, not on its place in the batch."""
    offsets, items, _ = own_items(5, 4, 300, 20)
    users, positives = np.array([0, 1, 2, 3, 0]), np.array([5, 6, 7, 8, 9], np.int32)
    rows = np.array([10, 11, 12, 13, 14])
    every = negatives.sample_negatives(users, offsets, items, 300, 6, 1, positives, rows=rows)
    for part in (slice(0, 2), slice(2, 5), slice(4, 5)):
        some = negatives.sample_negatives(
            users[part].copy(), offsets, items, 300, 6, 1, positives[part].copy(), rows=rows[part].copy()
        )
        np.testing.assert_array_equal(some, every[part])


def test_nothing_left_may_be_zero(engine):
    arguments = (np.array([0, 1]), np.array([0, 2, 3]), np.array([1, 2, 1], np.int32), 4, 3, 0,
                 np.array([3, 3], np.int32))
    with pytest.raises(InputError, match="^user 0: its own items leave none of 3 items"):
        negatives.sample_negatives(*arguments)
    assert negatives.sample_negatives(*arguments, may_be_none=True).tolist() == [[0, 0, 0], [2, 2, 2]]
    # Item 2 is allowed, but has no weight.
    starts = negatives.item_starts(np.array([0, 4, 0, 9]))
    assert (negatives.sample_negatives(*arguments, starts=starts, may_be_none=True) == 0).all()


def test_a_single_item_left_is_always_drawn(engine):
    offsets, items = np.array([0, 3]), np.array([1, 2, 4], np.int32)
    drawn = negatives.sample_negatives(
        np.zeros(3, np.int64), offsets, items, 6, 4, 0, np.array([5, 5, 5], np.int32)
    )
    assert (drawn == 3).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"users": np.array([0, 2])}, "^user 2 of row 1 is outside 0..1$"),
        ({"users": np.array([-1, 0])}, "^user -1 of row 0 is outside 0..1$"),
        ({"positives": np.array([1, 9], np.int32)}, "^positive item 9 of row 1 is outside 0..8$"),
        ({"positives": np.array([-3, 1], np.int32)}, "^positive item -3 of row 0"),
        ({"user_offsets": np.array([0, 9, 4])}, "^user 0: its own items are not ascending"),
        ({"user_offsets": np.array([-1, 2, 4])}, "^user 0: its own items are not ascending"),
        ({"user_items": np.array([3, 2, 1, 5], np.int32)}, "^user 0: its own items are not ascending"),
        ({"user_items": np.array([1, 2, 5, 5], np.int32)}, "^user 1: its own items are not ascending"),
        ({"user_items": np.array([1, 2, 5, 9], np.int32)}, "^user 1: its own items are not ascending"),
        ({"user_items": np.array([-1, 2, 5, 6], np.int32)}, "^user 0: its own items are not ascending"),
        (
            {"num_items": 3, "user_items": np.array([1, 2, 0, 1], np.int32)},
            "^user 0: its own items leave none of 2 items",
        ),
        (
            {
                "num_items": 3,
                "user_items": np.array([0, 2, 0, 1], np.int32),
                "positives": np.array([1, 1], np.int32),
            },
            "^user 0: its own items leave none of 2 items",
        ),
        ({"n": -1}, "negatives is negative"),
        ({"num_items": 0}, "num_items is outside"),
        ({"user_offsets": np.empty(0, np.int64)}, "user_offsets is empty"),
        ({"positives": np.array([1], np.int32)}, "differ in length"),
        ({"rows": np.array([1])}, "rows and users differ in length"),
        ({"starts": np.arange(4) - 1}, "starts do not rise from 0"),
        ({"starts": np.array([0, 0, 1, 1])}, "one entry more than there are items"),
        ({"starts": np.array([0, 0, 2, 1, 5, 6, 7, 8, 9, 9])}, "starts do not rise from 0"),
        ({"starts": np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])}, "starts do not rise from 0"),
        ({"starts": np.array([0, 0, 2, 3, 4, 5, 6, 7, 8, 2**32])}, "less than 2.32"),
    ],
)
def test_negatives_refuse_bad_input(engine, changes, message):
    arguments = {
        "users": np.array([0, 1]),
        "user_offsets": np.array([0, 2, 4]),
        "user_items": np.array([1, 2, 5, 6], np.int32),
        "num_items": 9,
        "n": 3,
        "seed": 1,
        "positives": np.array([1, 1], np.int32),
    }
    negatives.sample_negatives(**arguments)
    if changes.get("num_items") == 3 and "positives" not in changes:
        changes = {**changes, "positives": np.array([0, 0], np.int32)}
    with pytest.raises(InputError, match=message):
        negatives.sample_negatives(**{**arguments, **changes})


# ---- missing and unfit modules ---------------------------------------------------------------------


def in_a_copy(tmp_path: Path, code: str, *, edit=None, **environment: str) -> subprocess.CompletedProcess:
    """Run ``code`` against a copy of the package's own modules, which ``edit`` may change first."""
    package = Path(ameir_fast.__file__).parent
    copy = tmp_path / "ameir_fast"
    copy.mkdir()
    for file in package.glob("*"):
        if file.name in ("native.py", "hostops.py", "negatives.py", "errors.py", "_build_info.json") or file.suffix == ".so":
            shutil.copy(file, copy / file.name)
    # Without the package's own __init__, which would import every model.
    (copy / "__init__.py").write_text("")
    if edit is not None:
        edit(copy)
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
    )


def set_info(**changes):
    def edit(copy: Path) -> None:
        path = copy / "_build_info.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


SHOW = "from ameir_fast import native; print(native.ops_loaded(), native.why_not('_C'), sep='\\n')"
BUILT = pytest.mark.skipif(
    (native.build_info() or {}).get("mode", "none") == "none", reason="built in mode none"
)


@BUILT
def test_the_copy_works(tmp_path):
    done = in_a_copy(tmp_path, SHOW)
    assert done.stdout.splitlines() == ["True", "None"]
    assert done.stderr == ""


@BUILT
def test_another_torch_is_refused_with_a_remedy(tmp_path):
    done = in_a_copy(tmp_path, SHOW, edit=set_info(torch="2.11.0+cu130"))
    loaded, reason = done.stdout.splitlines()
    assert loaded == "False"
    assert reason.startswith("_C was built for torch 2.11.0+cu130, this is torch ")
    assert "pip install --no-build-isolation" in reason
    assert done.stderr.count("RuntimeWarning") == 1


@BUILT
def test_the_same_torch_in_another_build_is_accepted(tmp_path):
    import torch

    done = in_a_copy(tmp_path, SHOW, edit=set_info(torch=torch.__version__.split("+")[0] + "+cu130"))
    assert done.stdout.splitlines()[0] == "True"


@BUILT
def test_a_damaged_file_warns_once_and_says_why(tmp_path):
    def damage(copy: Path) -> None:
        for file in copy.glob("*.so"):
            file.write_bytes(b"not a library")

    code = (
        "from ameir_fast import native\n"
        "for _ in range(3): print(native.ops_loaded(), native.driver())\n"
        "print(native.why_not('_C')); print(native.why_not('_driver'))"
    )
    done = in_a_copy(tmp_path, code, edit=damage)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["False None"] * 3
    assert lines[3].startswith("_C does not load")
    assert lines[4].startswith("_driver does not load")
    assert done.stderr.count("RuntimeWarning") == 2


@BUILT
def test_a_driver_of_another_python_is_named(tmp_path):
    def rename(copy: Path) -> None:
        for file in copy.glob("_driver.*"):
            file.rename(copy / "_driver.cpython-39-x86_64-linux-gnu.so")
        set_info(python="3.9.1")(copy)

    done = in_a_copy(tmp_path, "from ameir_fast import native; print(native.why_not('_driver'))", edit=rename)
    assert done.stdout.startswith("_driver was built for Python 3.9.1, this is 3.")


@BUILT
def test_a_driver_of_another_time_is_named(tmp_path):
    """An edit in csrc/ without a new build, or the other way round."""
    def other(copy: Path) -> None:
        path = copy / "native.py"
        path.write_text(path.read_text().replace("DRIVER_INTERFACE = ", "DRIVER_INTERFACE = 1000 + "))

    done = in_a_copy(tmp_path, "from ameir_fast import native; print(native.driver(), native.why_not('_driver'))", edit=other)
    assert done.stdout.startswith("None _driver is older or newer than this code; rebuild")
    assert done.stderr.count("RuntimeWarning") == 1


def test_absent_modules_are_silent_and_explained(tmp_path):
    def remove(copy: Path) -> None:
        for file in (*copy.glob("*.so"), *copy.glob("_build_info.json")):
            file.unlink()

    done = in_a_copy(tmp_path, SHOW, edit=remove)
    assert done.stdout.splitlines()[0] == "False"
    assert "--no-build-isolation -e ." in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("value", ["0", "false", "OFF"])
def test_native_code_can_be_turned_off(monkeypatch, value):
    monkeypatch.setenv("AMEIR_FAST_NATIVE", value)
    assert native.driver() is None
    assert not native.ops_loaded()
    assert native.why_not("_C") == f"turned off by AMEIR_FAST_NATIVE={value}"
    with pytest.raises(KeyError, match="no native module"):
        native.why_not("_D")


def test_importing_loads_no_native_module():
    code = (
        "import sys, ameir_fast.native, ameir_fast.hostops, ameir_fast.metrics\n"
        "print('ameir_fast._driver' in sys.modules, ameir_fast.native._ops.cache_info().currsize)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, check=True)
    assert done.stdout.split() == ["False", "0"]


# ---- the benchmark ---------------------------------------------------------------------------------


@pytest.mark.skipif(
    any(native.why_not(name) for name in native.MODULES), reason="native modules are not built"
)
@pytest.mark.parametrize("make", ["assemble_movielens", "negatives_few", "auc_ties", "rank_sampled"])
def test_native_code_is_faster_than_what_it_replaces(make):
    from ameir_fast.bench import native as bench
    from ameir_fast.bench import native_cases

    # Ratios lie between 4 and 30 on an idle machine. Asking for 1, in the best of three tries, leaves room
    # for a machine so busy that the native turns happen to be the interrupted ones.
    for _ in range(3):
        rows = bench._measure(getattr(native_cases, make)(), seconds=0.2)
        if all(row["ratio"] > 1 for row in rows[1:]):
            break
    else:
        pytest.fail(bench.table(rows))
    assert rows[0]["engine"] == "native"
    assert rows[0]["ratio"] == 1.0
    assert {
        "suite",
        "case",
        "engine",
        "p50_ms",
        "versions",
        "cpu",
        "git",
        "date",
        "threads",
        "rounds",
    } <= rows[0].keys()


def test_the_benchmark_needs_native_modules(monkeypatch, tmp_path, capsys):
    from ameir_fast.bench import native as bench

    monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    with pytest.raises(SystemExit) as stopped:
        bench.main(["--quick", "--json", str(tmp_path / "rows.jsonl")])
    assert stopped.value.code == 2
    assert (
        capsys.readouterr().err
        == "error: native module _C cannot be used: turned off by AMEIR_FAST_NATIVE=0\n"
    )
    assert list(tmp_path.iterdir()) == []
