"""Batches against plain Python row by row, made ahead in a thread, and resumed in the middle of an epoch."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from ameir_fast import Batch, InputError, hostops, native
from ameir_fast.data import Dataset, dataset, order, prepare_movielens, prepare_table
from ameir_fast.data.feed import ahead, feed
from ameir_fast.data.shuffle import Shuffle
from ameir_fast.search.config import SearchConfig
from ameir_fast.search.training import Task
from tests import data_helpers as helpers

ROOT = Path(__file__).resolve().parent.parent
#: Windows of 32 rows, so that even a small split has many.
SMALL = functools.partial(Shuffle, block=8, window=4)


@pytest.fixture(scope="module")
def directories(tmp_path_factory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("feeding")
    prepare_movielens(helpers.write_mini_movielens(base / "raw"), base / "ctr", max_history=5)
    source = helpers.write_csv(base / "clicks.csv", helpers.make_clicks())
    schema = {**helpers.RETRIEVAL_SCHEMA, "history": {**helpers.RETRIEVAL_SCHEMA["history"], "min_history": 0}}
    (base / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    prepare_table(source, base / "retrieval", base / "schema.json")
    return {"ctr": base / "ctr", "retrieval": base / "retrieval"}


@pytest.fixture(
    params=[
        pytest.param("native", marks=pytest.mark.skipif(native.why_not("_driver") is not None, reason="not built")),
        "numpy",
    ]
)
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    assert (native.driver() is None) == (request.param == "numpy")
    return request.param


@pytest.fixture(params=["ctr", "retrieval"])
def data(request, directories, engine) -> Dataset:
    return Dataset.open(directories[request.param])


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(dataset, "Shuffle", SMALL)


def parts(batch: Batch) -> dict[str, list]:
    """Everything in a batch, with the types."""
    return {
        name: None if (value := getattr(batch, name)) is None else (value.dtype, value.tolist())
        for name in batch.__dataclass_fields__
    }


def same(got, expected) -> bool:
    return [parts(batch) for batch in got] == [parts(batch) for batch in expected]


def options(data: Dataset) -> dict:
    return {"negatives": 3, "seen": True} if data.task == "retrieval" else {}


# ---- row by row --------------------------------------------------------------------------------------


def by_hand(data: Dataset, row: int) -> dict:
    """What the files of a prepared directory say of a row, one number at a time."""
    load = functools.cache(lambda name: np.load(data.directory / "columns" / f"{name}.npy").tolist())
    fields, bags = [], []
    for f in data.schema.fields:
        if f.kind == "categorical":
            fields.append(load(f"field.{f.name}")[row])
        else:
            fields.append(0)
            offsets = load(f"field.{f.name}.offsets")
            bags.append(load(f"field.{f.name}.ids")[offsets[row] : offsets[row + 1]])
    history = None
    if data.schema.behavior:
        begin, end = load("history_begin")[row], load("history_end")[row]
        begin = max(begin, end - data.schema.max_history)
        history = [tuple(load(f"events.{b.name}")[k] for b in data.schema.behavior) for k in range(begin, end)]
    answer = load("label")[row] if data.task == "ctr" else load("items")[row]
    return {"fields": fields, "bags": bags, "history": history, "answer": answer}


def rows_of(data: Dataset, batch: Batch) -> list[dict]:
    multi = len(data.schema.multi_fields)
    bags = [helpers.bags(batch, multi, j) for j in range(multi)]
    histories = helpers.histories(batch) if data.schema.behavior else [None] * len(batch)
    answers = (batch.label if data.task == "ctr" else batch.items).tolist()
    return [
        {"fields": fields, "bags": [bag[k] for bag in bags], "history": histories[k], "answer": answers[k]}
        for k, fields in enumerate(batch.fields.tolist())
    ]


def views(data: Dataset) -> list[Dataset]:
    some = {"ctr": ["weekday", "genres", "item"], "retrieval": []}[data.task]
    found = [data, data.select(some)]
    return found if data.task == "retrieval" else [*found, data.select(["item"], behavior=False)]


def test_batches_in_windows_equal_the_files_row_by_row(data, windows):
    first, last = data.splits["train"]
    rows = SMALL(last - first, 5, 1).rows(0, last - first).tolist()
    expected = [by_hand(data, first + row) for row in rows]
    lengths = {len(row["history"]) for row in expected}
    assert {0, data.schema.max_history} <= lengths  # empty ones and full ones among them
    for view in views(data):
        batches = [batch.check(view.schema) for batch in view.batches("train", 13, seed=5, epoch=1)]
        got = [row for batch in batches for row in rows_of(view, batch)]
        assert got == [by_hand(view, first + row) for row in rows]


def test_any_rows_equal_the_files_row_by_row(data):
    first, last = data.splits["train"]
    scattered = np.arange(last - first)[::-7]  # not contiguous, descending
    for rows in (scattered, np.array([4, 4, 0], np.uint8), np.zeros(0, np.int32)):
        for view in views(data):
            assert rows_of(view, view.batch("train", rows)) == [by_hand(view, first + row) for row in rows.tolist()]


def test_a_limited_shuffle_in_windows_holds_the_rows_of_the_subset(data, windows):
    first, last = data.splits["train"]
    subset = order.subset(last - first, 70, "train")
    assert len(set(subset.tolist())) == 70
    for seed in (1, 2):
        rows = [row for b in data.batches("train", 9, limit=70, seed=seed) for row in rows_of(data, b)]
        assert rows == [by_hand(data, first + row) for row in subset[SMALL(70, seed, 0).rows(0, 70)].tolist()]


def test_the_system_is_told_what_will_be_read(data, windows, monkeypatch):
    told: set[int] = set()

    def read_ahead(columns, first, last):
        assert {len(column) for column in columns} == {len(data)}
        for a, b in zip(first.tolist(), last.tolist(), strict=True):
            told.update(range(a, b))

    monkeypatch.setattr(hostops, "read_ahead", read_ahead)
    for split, (first, last) in data.splits.items():
        told.clear()
        list(data.batches(split, 8, seed=1))
        assert told == set(range(first, last))
    told.clear()
    list(data.batches("train", 8, seed=1, limit=70))  # rows of a subset are scattered
    assert told == set()


# ---- resuming ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [7, 32, 50])
@pytest.mark.parametrize("limit", [None, 75])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_epoch_resumes_exactly(data, windows, size, limit, prefetch):
    """Fields, bags, histories, answers and negatives are those of the epoch that was not interrupted."""
    for seed in (None, 9):
        how = {"seed": seed, "epoch": 3, "limit": limit, **options(data)}
        every = list(data.batches("train", size, **how))
        assert len(every) > 1 and (seed is None or len(every[0]) == size)
        for start in range(len(every) + 2):
            rest = list(data.batches("train", size, start_batch=start, prefetch=prefetch, **how))
            assert same(rest, every[start:])


def test_resuming_assembles_nothing_of_what_was_done(data, windows, monkeypatch):
    assembled = []
    real = data._storage.assemble
    monkeypatch.setattr(data._storage, "assemble", lambda rows, most: assembled.append(len(rows)) or real(rows, most))
    batches = data.batches("train", 8, seed=1, start_batch=20)
    next(batches)
    assert assembled == [8]


# ---- ahead -------------------------------------------------------------------------------------------


def threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("feed")}


@pytest.mark.parametrize("depth", [0, 1, 2, 50])
def test_the_same_items_in_the_same_order(depth):
    assert list(ahead(iter(range(20)), depth)) == list(range(20))
    assert list(ahead(iter([]), depth)) == []
    assert threads() == set()


def test_items_are_made_ahead_in_one_other_thread_and_no_further():
    made, free, where = [], threading.Semaphore(0), set()

    def items():
        for k in range(10):
            where.add(threading.current_thread().name)
            made.append(k)
            free.release()
            yield k

    consumer = ahead(items(), 3)
    for k in range(7):
        assert next(consumer) == k
        # While the caller works on item k, the three after it are made.
        while len(made) < k + 4:
            assert free.acquire(timeout=10)
        time.sleep(0.01)
        assert made == list(range(k + 4))
    assert len(where) == 1 and where == threads() and "MainThread" not in where
    consumer.close()
    assert threads() == set()


@pytest.mark.parametrize("depth", [0, 1, 4])
def test_an_error_reaches_the_caller_in_its_place(depth):
    def items():
        yield 1
        yield 2
        raise InputError("row 3 is damaged")

    consumer, seen = ahead(items(), depth), []
    with pytest.raises(InputError, match="row 3 is damaged") as caught:
        while True:
            seen.append(next(consumer))
    assert seen == [1, 2]
    assert any(entry.name == "items" for entry in caught.traceback)  # where it happened
    assert list(consumer) == []
    assert threads() == set()


@pytest.mark.parametrize("leave", ["close", "forget", "raise"])
def test_stopping_early_leaves_no_thread(leave):
    ended = threading.Event()

    def items():
        try:
            while True:
                yield 0
        finally:
            ended.set()

    consumer = ahead(items(), 2)
    next(consumer)
    assert threads()
    if leave == "close":
        consumer.close()
    elif leave == "forget":
        del consumer
    else:
        with pytest.raises(KeyboardInterrupt):
            consumer.throw(KeyboardInterrupt)
    assert threads() == set()
    assert leave == "close" or ended.wait(10)  # a closed iterator that is still held keeps its items


def test_the_interpreter_exits_with_batches_left_over():
    code = (
        "import itertools\n"
        "from ameir_fast.data.feed import ahead\n"
        "left_over = ahead(itertools.count(), 3)\n"
        "print(next(left_over), next(left_over))\n"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["0", "1"] and done.stderr == ""


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_batches_made_ahead_are_the_same(data, windows, depth):
    for seed in (None, 4):
        how = {"seed": seed, **options(data)}
        assert same(data.batches("train", 24, prefetch=depth, **how), data.batches("train", 24, **how))
    early = data.batches("train", 5, seed=1, prefetch=depth)
    next(early)
    early.close()
    assert threads() == set()


def test_two_may_read_at_the_same_time(data, windows):
    found: dict[int, list] = {}

    def read(seed):
        found[seed] = list(data.batches("train", 16, seed=seed, prefetch=2, **options(data)))

    readers = [threading.Thread(target=read, args=(seed,)) for seed in (1, 2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    for seed in (1, 2):
        assert same(found[seed], data.batches("train", 16, seed=seed, **options(data)))
    assert threads() == set()


def test_an_error_while_assembling_reaches_the_training(directories, engine, monkeypatch):
    data = Dataset.open(directories["ctr"])
    real = data._storage.assemble

    def fails(rows, most):
        if fails.calls == 3:
            raise InputError("history of row 8 is [3, 2) of 2 events")
        fails.calls += 1
        return real(rows, most)

    fails.calls = 0
    monkeypatch.setattr(data._storage, "assemble", fails)
    seen = 0
    with pytest.raises(InputError, match="history of row 8"):
        for _ in data.batches("train", 8, seed=0, prefetch=2):
            seen += 1
    assert seen == 3 and threads() == set()


def test_negative_numbers_are_refused(data):
    for name in ("start_batch", "prefetch"):
        with pytest.raises(InputError, match=f"{name} -1 is negative"):
            next(data.batches("train", 4, **{name: -1}))


# ---- on the way to a GPU -----------------------------------------------------------------------------


def test_pinned_memory_needs_a_gpu(data, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="pin_memory needs a GPU"):
        next(data.batches("train", 4, pin_memory=True))


def test_batches_are_pinned_by_the_thread_and_sent_by_the_caller(monkeypatch):
    """The copy is made where the caller is, on its stream, and does not wait for the GPU."""
    steps = []

    class Recorded(Batch):
        def pin_memory(self):
            steps.append(("pin", threading.current_thread().name.startswith("feed")))
            return self

        def to(self, device, non_blocking=False):
            steps.append(("to", device, non_blocking, threading.current_thread() is threading.main_thread()))
            return self

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    batch = Recorded(torch.zeros(2, 1, dtype=torch.int32))
    assert list(feed(iter([batch]), "cuda", prefetch=2, pin_memory=True)) == [batch]
    assert steps == [("pin", True), ("to", "cuda", True, True)]
    steps.clear()
    assert list(feed(iter([batch]), "cuda", prefetch=2)) == [batch]
    assert steps == [("to", "cuda", False, True)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pinned_batches_arrive_on_the_gpu(data):
    how = {"seed": 3, **options(data)}
    arrived = list(data.batches("train", 16, device="cuda", prefetch=2, pin_memory=True, **how))
    assert all(batch.fields.is_cuda for batch in arrived)
    assert same(arrived, data.batches("train", 16, **how))


@pytest.mark.parametrize(("device", "extra"), [("cpu", {}), ("cuda:0", {"prefetch": 2, "pin_memory": True})])
def test_trainings_prefetch_on_a_gpu_alone(device, extra):
    asked = []

    class Data:
        task = "ctr"

        def size(self, split):
            return 10

        def batches(self, split, size, **how):
            asked.append(how)
            return iter(range(how["start_batch"], 3))

    task = Task(data=Data(), objective=None, config=SearchConfig(batch_size=4), progress=None, device=device)
    assert list(task.training_batches(6, 2, 7)) == [(2, 2), (3, 0), (4, 1), (5, 2), (6, 0)]
    assert asked == [
        {"seed": 6, "epoch": epoch, "device": device, "start_batch": start, **extra}
        for epoch, start in ((0, 2), (1, 0), (2, 0))
    ]
