"""Preparation that is killed, interrupted or fails: what is left of it, and how it goes on."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, files, work
from ameir_fast.data.build import STAGES, build
from ameir_fast.progress import Progress
from tests import kill_prepare
from tests.test_data_build import PLANS, Chunks, contents, make_frame, same

PLAN = PLANS["built history"]
ROOT = Path(__file__).resolve().parent.parent


class Rows(Chunks):
    """Counts how often it is read; ``stop_at`` raises in the middle."""

    def __init__(self, file: Path, error: BaseException | None = None):
        super().__init__(make_frame(), 40, (file,))
        self.read, self.error = 0, error

    def chunks(self):
        self.read += 1
        for number, frame in enumerate(super().chunks()):
            if number == 2 and self.error is not None:
                raise self.error
            yield frame


class Interrupt(Progress):
    """Ctrl-C when a stage begins."""

    def __init__(self, at: str):
        super().__init__()
        self.at, self.noted = at, []

    def _show_start(self):
        if self.stage == self.at:
            raise KeyboardInterrupt

    def note(self, text):
        self.noted.append(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "input.txt"
    path.write_text("157 0")
    return path


@pytest.fixture(scope="module")
def wanted(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wanted") / "out"
    build(Chunks(make_frame(), 40), PLAN, folder, kind="k", options={})
    return folder


def prepare(source: Chunks, output: Path, **options) -> dict:
    return build(source, PLAN, output, **{"kind": "k", "options": {}, **options})


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def interrupted(file: Path, output: Path, stage: str, **options) -> Interrupt:
    progress = Interrupt(stage)
    with pytest.raises(KeyboardInterrupt):
        prepare(Rows(file), output, on_progress=progress, **options)
    return progress


def test_killed_at_random_moments_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    file = tmp_path / "input.txt"
    file.write_text("400 5")
    kill_prepare.prepare(tmp_path / "wanted", file, None)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("replaced")
    run = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "kill_prepare.py"), str(tmp_path / "out"), str(file), "28", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )
    assert run.returncode == 0, run.stderr
    killed = json.loads(run.stdout)
    assert len(killed) >= 20 and set(killed) == set(kill_prepare.STAGES), killed
    found, wanted = contents(tmp_path / "out"), contents(tmp_path / "wanted")
    # The seeds of both differ in nothing but the name of the output, which is nowhere inside.
    assert found == wanted
    assert names(tmp_path) == ["input.txt", "out", "wanted"]


@pytest.mark.parametrize("stage", ["split", "vocabularies", "write"])
def test_after_ctrl_c_finished_stages_are_not_done_again(tmp_path: Path, file: Path, wanted: Path, stage: str) -> None:
    progress = interrupted(file, tmp_path / "out", stage)
    assert "goes on with the unfinished stage" in progress.noted[0]
    assert not (tmp_path / "out").exists()
    again = Rows(file, AssertionError("read a second time"))
    statistics = prepare(again, tmp_path / "out")
    assert again.read == 0
    same(tmp_path / "out", wanted)
    assert statistics == Dataset.open(wanted).statistics
    assert names(tmp_path) == ["input.txt", "out"]


def test_ctrl_c_while_reading(tmp_path: Path, file: Path, wanted: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        prepare(Rows(file, KeyboardInterrupt()), tmp_path / "out")
    again = Rows(file)
    prepare(again, tmp_path / "out")
    assert again.read == 1
    same(tmp_path / "out", wanted)
    assert names(tmp_path) == ["input.txt", "out"]


@pytest.mark.parametrize("change", ["file", "time", "options", "kind", "plan"])
def test_other_work_starts_anew(tmp_path: Path, file: Path, change: str) -> None:
    interrupted(file, tmp_path / "out", "write")
    plan, options = PLAN, {"kind": "k", "options": {}}
    if change == "file":
        file.write_text("157  0")
    elif change == "time":
        os.utime(file, ns=(1, 1))
    elif change == "plan":
        plan = PLANS["time, no history"]
    else:
        options[change] = "x" if change == "kind" else {"other": 1}
    again = Rows(file)
    build(again, plan, tmp_path / "out", **options)
    assert again.read == 1
    build(Rows(file), plan, tmp_path / "fresh", **options)
    same(tmp_path / "out", tmp_path / "fresh")
    assert names(tmp_path) == ["fresh", "input.txt", "out"]


def test_without_files_nothing_is_kept(tmp_path: Path) -> None:
    progress = Interrupt("write")
    with pytest.raises(KeyboardInterrupt):
        prepare(Chunks(make_frame(), 40), tmp_path / "out", on_progress=progress)
    assert names(tmp_path) == [] and progress.noted == []


@pytest.mark.parametrize("error", [InputError("input.txt: line 3 is wrong"), OSError(errno.EIO, "broken"),
                                   RuntimeError("a fault")])
def test_an_error_while_reading_leaves_nothing(tmp_path: Path, file: Path, error: Exception) -> None:
    interrupted(file, tmp_path / "out", "split", options={"other": 1})  # rests of other work go as well
    with pytest.raises(type(error), match=str(error).replace("[", r"\[")):
        prepare(Rows(file, error), tmp_path / "out")
    assert names(tmp_path) == ["input.txt"]


@pytest.mark.parametrize("allowed", [0, 1, 2, 3, 5, 8, 13, 21, 34])
def test_a_full_disk_leaves_nothing(tmp_path: Path, file: Path, monkeypatch, allowed: int) -> None:
    original, calls = files.write, []

    def full(target, data):
        calls.append(len(data))
        if len(calls) > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(target, data)

    monkeypatch.setattr(files, "write", full)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "dataset.json").write_text("kept")
    with pytest.raises(OSError, match="No space left") as caught:
        prepare(Rows(file), tmp_path / "out", overwrite=True)
    assert str(tmp_path / "out") in str(caught.value.filename) and "prepare" not in str(caught.value.filename)
    assert names(tmp_path) == ["input.txt", "out"] and names(tmp_path / "out") == ["dataset.json"]


def test_one_process_at_a_time(tmp_path: Path, file: Path) -> None:
    class Second(Progress):
        def _show_start(self):
            with pytest.raises(InputError, match="out is being prepared by another process"):
                prepare(Rows(file), tmp_path / "out")

    prepare(Rows(file), tmp_path / "out", on_progress=Second())
    assert names(tmp_path) == ["input.txt", "out"]


def test_killed_while_the_output_is_replaced(tmp_path: Path, file: Path, wanted: Path, monkeypatch) -> None:
    """Both moments between the renames: the old output is put back, the new one is recognised as finished."""
    output = tmp_path / "out"
    output.mkdir()
    (output / "dataset.json").write_text("kept")
    with monkeypatch.context() as patched:
        # A kill: nothing after it runs, so nothing is put back.
        patched.setattr(work, "_put_back", lambda *_: None)
        patched.setattr(os, "rename", _stopping_after(1))
        with pytest.raises(KeyboardInterrupt):
            prepare(Rows(file), output, overwrite=True)
    assert not output.exists()
    # Another command finds the old output in its place again, and in use.
    with pytest.raises(InputError, match="out is in use"):
        prepare(Rows(file), output)
    assert names(output) == ["dataset.json"]
    again = Rows(file)
    prepare(again, output, overwrite=True)
    assert again.read == 0
    same(output, wanted)
    assert names(tmp_path) == ["input.txt", "out"]


def _stopping_after(count: int):
    rename, calls = os.rename, []

    def stopping(*paths):
        calls.append(paths)
        if len(calls) > count:
            raise KeyboardInterrupt
        rename(*paths)

    return stopping


def test_killed_after_the_last_rename(tmp_path: Path, file: Path, wanted: Path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(work.Work, "move", _moved_and_stopped(work.Work.move))
        with pytest.raises(KeyboardInterrupt):
            prepare(Rows(file), tmp_path / "out")
    same(tmp_path / "out", wanted)
    assert len(names(tmp_path)) == 3
    with pytest.raises(InputError, match="out is in use"):
        prepare(Rows(file), tmp_path / "out")
    assert names(tmp_path) == ["input.txt", "out"]


def _moved_and_stopped(move):
    def stopping(self, *arguments):
        move(self, *arguments)
        raise KeyboardInterrupt

    return stopping


def test_the_stages_are_shown_with_rows_and_rates(tmp_path: Path, file: Path) -> None:
    lines: list[str] = []
    prepare(Rows(file), tmp_path / "out", on_progress=lines.append)
    stages = [s for s in STAGES if s not in ("order", "events")]
    for number, stage in enumerate(stages, start=1):
        assert any(line.startswith(f"[{number}/{len(stages)}] {stage}") for line in lines)
        (done,) = [line for line in lines if f"{stage} done in" in line]
        assert "157 rows" in done and "rows/s" in done


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_came_there_meanwhile_is_kept(tmp_path: Path, file: Path, overwrite: bool) -> None:
    class Other(Progress):
        def _show_start(self):
            (tmp_path / "out").mkdir(exist_ok=True)
            (tmp_path / "out" / "precious").write_text("kept")

    with pytest.raises(InputError, match="out is in use"):
        prepare(Rows(file), tmp_path / "out", on_progress=Other(), overwrite=overwrite)
    assert names(tmp_path) == ["input.txt", "out"] and names(tmp_path / "out") == ["precious"]
