"""What ``prepare`` shows of its work: nothing when it is quick, stages and lines when it lasts."""

from __future__ import annotations

import time

import pytest

from ameir_fast.cli.prepare.common import Notes, summary


def wait(condition) -> None:
    end = time.monotonic() + 5
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_quick_work_is_silent(capsys):
    with Notes(delay=60) as notes:
        notes("reading")
        notes.start("read", 10, "row")
        notes.update(10)
        notes.finish()
    assert capsys.readouterr().err == ""


def test_a_download_shows_its_newest_line(capsys):
    with Notes(delay=0.05) as notes:
        notes("first")
        notes("downloading")
        wait(lambda: notes._inner is not None)
        notes("unpacking")
    assert capsys.readouterr().err == "downloading\nunpacking\n"


def test_the_stage_under_way_appears_late_with_its_whole_rate(capsys):
    with Notes(delay=0.2) as notes:
        notes.plan(3)
        notes.start("read", None, "row")
        notes.finish()
        notes.start("split", 1000, "row")
        notes.update(500)
        wait(lambda: notes._inner is not None)
        assert notes._inner.rate == pytest.approx(notes.rate, rel=0.2)
        notes.update(1000)
        notes.finish("1,000 rows")
        notes.start("write", 1000, "row")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[2/3] split: 1,000 rows" and lines[-1] == "[3/3] write: 1,000 rows"
    assert any(line.startswith("[2/3] split done in") and line.endswith("1,000 rows") for line in lines)


def test_ctrl_c_takes_the_display_down(capsys):
    with pytest.raises(KeyboardInterrupt), Notes(delay=0.02) as notes:
        notes.start("read", None, "row")
        wait(lambda: notes._inner is not None)
        notes.note("interrupted")
        raise KeyboardInterrupt
    assert not notes._timer.is_alive() and capsys.readouterr().err.endswith("interrupted\n")


def test_fields_without_known_values_are_named():
    """Too high a minimum count, or values that come only later, leave nothing to learn from."""
    shares = {f"f{i}": 0.9 + i / 100 for i in range(7)} | {"low": 0.2, "odd": None}
    said = summary({"rows": 10, "splits": {"train": {"unknown_share": {"low": 0.1}}, "test": {"unknown_share": shares}}})
    assert len(said) == 2
    assert said[1].startswith("hardly a value known in the test split: f6 (96%), f5 (95%), f4 (94%), f3 (93%), f2 (92%) and 2 more; ")
