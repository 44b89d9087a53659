"""Every reader on damaged files: a result, or one InputError and nothing left behind; never another exception.

The short form is part of ``make test``; ``make test-slow`` gives each reader ten minutes
(``AMEIR_FAST_FUZZ_SECONDS`` sets another length).
"""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest

import ameir_fast as af
from ameir_fast import data as readers
from ameir_fast.data.recbole import Meaning

from . import (
    test_data_alimama,
    test_data_avazu,
    test_data_criteo,
    test_data_fuxictr,
    test_data_movielens_forms,
    test_data_recbole,
    test_data_reviews,
    test_data_sequences,
)
from . import mini_movielens as mini

#: Pieces of text that readers stumble over, put in at random places.
PIECES = [b"", b"\n", b"\r\n", b"\r", b"\t", b",", b"::", b"|", b'"', b"'", b"\\", b"{", b"}", b"[", b"(", b")", b"]",
          b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", "é😀".encode(), b"nan", b"inf", b"-1", b"1e400", b"0x10", b"u'", b"None",
          b"9" * 30, b"x" * 300, b" " * 50, b"\n\n\n", b"true", b"0.5", b"-0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"]


def one(name: str, content: bytes | str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return write


def movielens(form: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        raw = mini.write(folder.parent / f"raw-{form}")
        if form == "recbole":
            shutil.copytree(raw, folder)
        else:
            getattr(test_data_movielens_forms, f"write_{form}")(raw, folder)
    return write


def dmr(folder: Path) -> None:
    folder.mkdir()
    rng = random.Random(0)
    (folder / "train.csv").write_text("".join(test_data_alimama.dmr_line(rng, k % 9) + "\n" for k in range(60)))


def steam_windows(folder: Path) -> None:
    rng = random.Random(0)
    lines = [([rng.randrange(1, 9) for _ in range(5)], sorted(rng.randrange(1000, 9000) for _ in range(5)))
             for _ in range(60)]
    one("windows.txt", "".join(f"{line}\n" for line in lines))(folder)


def plain_table(folder: Path) -> None:
    folder.mkdir()
    rng = random.Random(0)
    rows = [f"u{rng.randrange(6)},{rng.randrange(9)},{rng.choice(['', 'a|b', 'c'])},{rng.randrange(2)},{1000 + k}\n"
            for k in range(60)]
    (folder / "clicks.csv").write_text("user,item,tags,click,ts\n" + "".join(rows))
    (folder / "schema.json").write_text(json.dumps({
        "version": 1, "label": "click", "user": "user", "time": "ts",
        "fields": [{"name": "item"}, {"name": "tags", "kind": "multi_categorical", "separator": "|"}],
        "history": {"max_history": 5, "fields": [{"name": "history_item", "column": "item", "vocabulary": "item"}]},
        "target": ["item"]}))


def as_parquet(path: Path) -> None:
    """Most of the file is a column that no one reads, so that there is damage that no one sees."""
    frame = pl.read_csv(path).with_columns(pl.col(pl.String).fill_null(""))
    frame = frame.with_columns(note=pl.Series([f"{k * 7919 % 100_003:x}" * 20 for k in range(frame.height)]))
    frame.write_parquet(path.with_suffix(".parquet"), compression="uncompressed")
    path.unlink()


def parquet_table(folder: Path) -> None:
    plain_table(folder)
    as_parquet(folder / "clicks.csv")


def parquet_fuxictr(folder: Path) -> None:
    test_data_fuxictr.write(folder)
    config = folder / "dataset_config.yaml"
    text = config.read_text().replace("data_format: csv", "data_format: parquet")
    config.write_text(text.replace(".csv", ".parquet"))
    for path in (folder / "data").glob("*.csv"):
        as_parquet(path)


reviews = test_data_reviews
CASES: dict[str, tuple[Callable[[Path], object], Callable[[Path, Path], object]]] = {
    "criteo": (one("train.txt", test_data_criteo.tsv(test_data_criteo.make_rows(80))),
               lambda i, o: readers.prepare_criteo(i / "train.txt", o)),
    "criteo csv": (one("train.csv", test_data_criteo.table(test_data_criteo.make_rows(80), ["label", *test_data_criteo.FIELDS])),
                   lambda i, o: readers.prepare_criteo(i / "train.csv", o)),
    "avazu": (one("train.csv", test_data_avazu.text(test_data_avazu.make_rows(80))),
              lambda i, o: readers.prepare_avazu(i / "train.csv", o)),
    "alimama": (lambda folder: test_data_alimama.write(folder, impressions=80, behaviors=300), readers.prepare_alimama),
    "alimama dmr": (dmr, lambda i, o: readers.prepare_alimama_dmr([i / "train.csv"], o)),
    **{f"amazon {form}": (one("reviews", reviews.amazon_text(form, reviews.amazon_events()[:200])),
                          lambda i, o: readers.prepare_amazon(i / "reviews", o, core=0)) for form in reviews.FORMS},
    "steam": (one("steam.json", reviews.steam_text(reviews.steam_events()[:200])),
              lambda i, o: readers.prepare_steam(i / "steam.json", o, core=2)),
    "pairs": (one("pairs.txt", test_data_sequences.pairs_text()), lambda i, o: readers.prepare_sequences(i / "pairs.txt", o)),
    "lines": (one("lines.txt", test_data_sequences.lines_text()), lambda i, o: readers.prepare_sequences(i / "lines.txt", o)),
    "windows": (steam_windows, lambda i, o: readers.prepare_sequences(i / "windows.txt", o)),
    **{f"movielens {form}": (movielens(form), readers.prepare_movielens) for form in ("recbole", "100k", "1m", "20m")},
    "recbole": (lambda folder: test_data_recbole.write(folder, rows=80),
                lambda i, o: readers.prepare_recbole(i, o, Meaning(threshold=("rating", 3.0)))),
    "fuxictr": (test_data_fuxictr.write, lambda i, o: readers.prepare_fuxictr(i, o, dataset_id="tiny", root=i)),
    "fuxictr parquet": (parquet_fuxictr, lambda i, o: readers.prepare_fuxictr(i, o, dataset_id="tiny", root=i)),
    "table": (plain_table, lambda i, o: readers.prepare_table(i / "clicks.csv", o, i / "schema.json")),
    "table parquet": (parquet_table, lambda i, o: readers.prepare_table(i / "clicks.parquet", o, i / "schema.json")),
}


def damage(data: bytes, rng: random.Random) -> bytes:
    """A few changes: bytes put in, taken out, doubled, moved, flipped; or a file cut off, repeated, compressed."""
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at, length = rng.randrange(len(data) + 1), rng.choice([1, 1, 3, 20, 200])
        kind = rng.randrange(8)
        if kind == 0:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + rng.choice(PIECES) + data[at + length:]
        elif kind == 2:
            data = data[:at] + data[at + length:]
        elif kind == 3:
            data = data[:at] + data[at:at + length] * 2 + data[at + length:]
        elif kind == 4 and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1:]
        elif kind == 5:
            data = data[:at]
        elif kind == 6:
            lines = data.split(b"\n")
            lines[rng.randrange(len(lines))] = rng.choice([*lines, *PIECES])
            data = b"\n".join(lines)
        else:
            packed = gzip.compress(data)
            data = rng.choice([packed, packed[:rng.randrange(len(packed))], data + packed])
    return data


@contextmanager
def no_longer_than(seconds: float, stderr: int) -> Iterator[None]:
    """Ends the process, with every thread's traceback on ``stderr``, if what is inside doesn't end: threads that wait
    for each other take no time of a CPU, and no exception can reach them.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=stderr)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def fuzz(name: str, folder: Path, seed: int, until: Callable[[int, float], bool], stderr: int) -> tuple[int, int]:
    """Runs one reader on damaged files until told; how often it gave a result and how often it refused."""
    write, prepare = CASES[name]
    write(folder / "whole")
    files = sorted(p for p in (folder / "whole").rglob("*") if p.is_file())
    rng, began, results, refused = random.Random(seed), time.monotonic(), 0, 0
    while not until(results + refused, time.monotonic() - began):
        shutil.rmtree(folder / "in", ignore_errors=True)
        shutil.copytree(folder / "whole", folder / "in")
        hit = folder / "in" / rng.choice(files).relative_to(folder / "whole")
        content = damage(hit.read_bytes(), rng)
        hit.write_bytes(content)
        out = folder / "place" / "out"
        shutil.rmtree(folder / "place", ignore_errors=True)
        out.parent.mkdir()
        start = time.process_time()  # of this process, which other work on the machine does not lengthen
        try:
            with no_longer_than(300, stderr):
                prepare(folder / "in", out)
        except af.InputError as error:
            refused += 1
            assert str(error) and "\n" not in str(error), error
            assert not list(out.parent.iterdir()), f"{name}: left behind after {error}"
        except BaseException:
            (folder / "culprit").write_bytes(content)
            print(f"{name}: {hit.name}, kept as {folder / 'culprit'}")
            raise
        else:
            results += 1
            data = readers.Dataset.open(out)
            assert [p.name for p in out.parent.iterdir()] == ["out"]
            for split in data.splits:
                for batch in data.batches(split, 64):
                    batch.check(data.schema)
        assert time.process_time() - start < 30, f"{name}: hangs"
    return results, refused


@pytest.fixture
def stderr(capfd) -> Iterator[int]:
    """A descriptor of the true one, which pytest doesn't keep to itself."""
    with capfd.disabled():
        copy = os.dup(2)
    yield copy
    os.close(copy)


@pytest.mark.parametrize("name", CASES)
def test_damaged_files(name, tmp_path, stderr):
    results, refused = fuzz(name, tmp_path, 1, lambda count, _: count >= 25, stderr)
    assert results and refused  # the damage is neither too small nor too large to tell anything


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_damaged_files_for_minutes(name, tmp_path, stderr):
    limit = float(os.environ.get("AMEIR_FAST_FUZZ_SECONDS", "600"))
    results, refused = fuzz(name, tmp_path, 2, lambda _, seconds: seconds >= limit, stderr)
    assert results and refused


def test_a_reader_that_waits_for_ever_ends_with_its_place():
    script = """
import threading, time
from tests.test_data_fuzz import no_longer_than
with no_longer_than(60, 2):
    time.sleep(0.01)
with no_longer_than(0.2, 2):
    threading.Event().wait()
"""
    root = Path(__file__).parent.parent
    ended = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 1 and "line 7 in <module>" in ended.stderr, ended.stderr
