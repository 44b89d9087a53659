"""``prepare criteo`` on files in Criteo's form against pandas: rows per second and peak memory; and feeding.

    python -m ameir_fast.bench.prepare [--rows N,…] [--pandas-rows N] [--quick] [--json FILE]

The rows are made up (criteo_rows.py) and written to the disk first. At ``--pandas-rows`` both engines prepare the same
file, each in a process of its own whose start counts, in turns; that they come to the same ids is checked before
anything is measured. ``ratio`` is then the median over rounds of pandas' time divided by the engine's. Larger files,
``--rows``, are prepared once by ``ameir-fast`` alone, and ``ratio`` compares rows per second with pandas' at its size,
which favours pandas where the memory ends. Files have just been written, so they are read from memory as far as it
holds them. Last, batches of the largest one against the training of a supernet (feeding.py).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..atomic import write_text
from ..data import Dataset
from ..data.criteo import FIELDS
from ..errors import InputError
from ..search.environment import describe
from . import criteo_rows
from .feeding import feeding

ENGINES = ("ameir-fast", "pandas")
ROWS = (30_000_000,)
PANDAS_ROWS = 10_000_000
QUICK_ROWS = 200_000
#: With fewer there may be no value seen often enough.
FEWEST = 1_000
#: Of disk, the file and everything that is made of it.
BYTES_PER_ROW = 700


class Run(NamedTuple):
    """What a process took: seconds from start to end, and the most memory that was its own at once."""

    seconds: float
    peak_bytes: int


def run(
    rows: Sequence[int] | None = None,
    pandas_rows: int | None = None,
    rounds: int | None = None,
    quick: bool = False,
    work: str | Path | None = None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """One row for each file and engine, then two of feeding; ``on_row`` sees each as soon as it is there.

    A row of preparing holds ``suite``, ``case``, ``engine``, ``rows``, ``bytes`` (of the file), ``seconds``,
    ``rows_per_s``, ``peak_bytes``, ``rounds``, ``ratio`` (above 1: that many times as fast as pandas), ``cpus``,
    ``versions``, ``cpu``, ``platform``, ``git`` and ``date``; one of feeding what ``feeding`` says.

    Args:
        rows: sizes of the files that ``ameir-fast`` prepares alone; default ``ROWS``, none with ``quick``.
        pandas_rows: size of the file for both; default ``PANDAS_ROWS``, ``QUICK_ROWS`` with ``quick``.
        rounds: of both; default 3, 1 with ``quick``.
        quick: under 45 seconds, not for quoting.
        work: where the files lie meanwhile; default the system's place for temporary files.

    Raises:
        InputError: pandas is not installed, a size is below ``FEWEST``, or the disk hasn't enough room.
        AssertionError: the engines' ids differ.
        RuntimeError: an engine failed.
    """
    if importlib.util.find_spec("pandas") is None:
        raise InputError("the baseline needs pandas: pip install 'ameir-fast[bench]'")
    sizes = list(rows) if rows is not None else [] if quick else list(ROWS)
    pandas_rows = pandas_rows or (QUICK_ROWS if quick else PANDAS_ROWS)
    rounds = rounds or (1 if quick else 3)
    if min([pandas_rows, *sizes]) < FEWEST:
        raise InputError(f"{min([pandas_rows, *sizes])} rows are fewer than {FEWEST}")
    facts = _facts()
    found = []

    def add(row: dict) -> None:
        found.append({"suite": "prepare", **row, **facts})
        on_row(found[-1])

    with tempfile.TemporaryDirectory(prefix="ameir-fast-bench-", dir=work) as directory:
        place = Path(directory)
        _check_room(place, max([pandas_rows, *sizes]))
        both = _both(place, pandas_rows, rounds)
        for row in both:
            add(row)
        rate = both[-1]["rows_per_s"]
        for size in sizes:
            add(_alone(place, size, rate))
        for row in feeding(Dataset.open(place / "out", verify=False), 4.0 if quick else 60.0):
            add({"case": "feeding", **row})
    return found


def _both(place: Path, rows: int, rounds: int) -> list[dict]:
    file = _written(place, rows)
    runs: dict[str, list[Run]] = {engine: [] for engine in ENGINES}
    for number in range(rounds):
        for engine in ENGINES if number % 2 else ENGINES[::-1]:
            runs[engine].append(_prepare(engine, place, file))
        if number == 0:
            _check_equal(place)
    pandas = [run.seconds for run in runs["pandas"]]
    return [
        _row(file, rows, engine, runs[engine],
             statistics.median(p / run.seconds for p, run in zip(pandas, runs[engine], strict=True)))
        for engine in ENGINES
    ]


def _alone(place: Path, rows: int, pandas_rate: float) -> dict:
    shutil.rmtree(place / "out")
    file = _written(place, rows)
    done = _prepare("ameir-fast", place, file)
    return _row(file, rows, "ameir-fast", [done], rows / done.seconds / pandas_rate)


def _row(file: Path, rows: int, engine: str, runs: list[Run], ratio: float) -> dict:
    seconds = statistics.median(run.seconds for run in runs)
    return {
        "case": f"criteo {rows:,} rows",
        "engine": engine,
        "rows": rows,
        "bytes": file.stat().st_size,
        "seconds": seconds,
        "rows_per_s": rows / seconds,
        "peak_bytes": max(run.peak_bytes for run in runs),
        "rounds": len(runs),
        "ratio": ratio,
    }


def _written(place: Path, rows: int) -> Path:
    file = place / "train.txt"
    print(f"writing {rows:,} rows", file=sys.stderr, flush=True)
    criteo_rows.write(file, rows)
    return file


def _prepare(engine: str, place: Path, file: Path) -> Run:
    print(f"{engine}: {file.stat().st_size / 1e6:,.0f} MB", file=sys.stderr, flush=True)
    if engine == "pandas":
        (place / "pandas").mkdir(exist_ok=True)
        script = Path(__file__).with_name("pandas_criteo.py")
        return measured([sys.executable, str(script), str(file), str(place / "pandas")])
    return measured([sys.executable, "-m", "ameir_fast.cli", "prepare", "criteo", "--input", str(file), "--output",
                     str(place / "out"), "--overwrite"])


def _check_equal(place: Path) -> None:
    columns = {"label": "label", **{name: f"field.{name}" for name in FIELDS}}
    for name, stored in columns.items():
        ours = np.load(place / "out" / "columns" / f"{stored}.npy", mmap_mode="r", allow_pickle=False)
        theirs = np.load(place / "pandas" / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        if not np.array_equal(ours, theirs):
            raise AssertionError(f"pandas and ameir-fast differ in {name}")


def measured(command: Sequence[str]) -> Run:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; with the end of what it said.
    """
    with tempfile.TemporaryFile() as said:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=said, stderr=said)
        peak, ended = [0], threading.Event()
        watch = threading.Thread(target=_watch, args=(process.pid, peak, ended))
        watch.start()
        code = process.wait()
        seconds = time.perf_counter() - began
        ended.set()
        watch.join()
        if code:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)}: exit code {code}: {said.read()[-2000:].decode(errors='replace')}")
    return Run(seconds, peak[0] or _largest_child())


def _watch(pid: int, peak: list[int], ended: threading.Event) -> None:
    """Reads again and again how much memory a process has had at once. What ``getrusage`` says of children starts from
    the memory of the process that started them."""
    while not ended.wait(0.02):
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            return
        for line in lines:
            if line.startswith("VmHWM:"):
                peak[0] = max(peak[0], 1024 * int(line.split()[1]))


def _largest_child() -> int:
    """Where there is no /proc."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _check_room(place: Path, rows: int) -> None:
    free, needed = shutil.disk_usage(place).free, BYTES_PER_ROW * rows
    if free < needed:
        raise InputError(f"{place.parent}: {rows:,} rows need {needed / 1e9:.0f} GB of disk, {free / 1e9:.0f} GB are free; "
                         "choose another place with --work, or fewer rows")


def _facts() -> dict:
    import pandas
    import polars

    about = describe()
    versions = {k: about[k] for k in ("python", "torch", "numpy", "version")}
    return {
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {**versions, "polars": polars.__version__, "pandas": pandas.__version__},
        **{k: about[k] for k in ("cpu", "platform", "git", "date")},
    }


def line(row: dict) -> str:
    """A row as text."""
    start = f"{row['case']:<24} {row['engine']:<11} {row['rows_per_s']:>12,.0f} rows/s"
    if row["case"] == "feeding":
        return start + (f"   {row['ratio']:.1f} times the rate of training" if row["engine"] == "batches" else "")
    text = f"{start}   {row['seconds']:>8.1f} s   peak {row['peak_bytes'] / 2**30:>5.2f} GiB"
    return text + (f"   {row['ratio']:.2f} times as fast as pandas" if row["engine"] != "pandas" else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the rows as JSON lines if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", metavar="N,…", help="files that ameir-fast prepares alone; default 30 million")
    parser.add_argument("--pandas-rows", type=int, metavar="N", help="the file for both; default 10 million")
    parser.add_argument("--rounds", type=int, metavar="R", help="of both; default 3")
    parser.add_argument("--work", metavar="DIR", help="where the files lie meanwhile")
    parser.add_argument("--quick", action="store_true", help="under 45 seconds, not for quoting")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, one JSON object a line")
    arguments = parser.parse_args(argv)
    try:
        sizes = None if arguments.rows is None else [int(n) for n in arguments.rows.split(",") if n]
        rows = run(sizes, arguments.pandas_rows, arguments.rounds, arguments.quick, arguments.work,
                   on_row=lambda row: print(line(row), flush=True))
    except (InputError, ValueError) as error:
        parser.exit(2, f"error: {error}\n")
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
