"""Progress: plain lines at most every few seconds, a live bar on a terminal, the right rate and time left."""

from __future__ import annotations

import io

import pytest

from ameir_fast import progress as p


class Clock:
    """Time that moves when told."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def plain(interval: float = 5.0) -> tuple[p.PlainProgress, Clock, io.StringIO]:
    clock, stream = Clock(), io.StringIO()
    return p.PlainProgress(stream, interval, clock), clock, stream


def test_plain_lines_are_rare():
    progress, clock, stream = plain()
    progress.start("behavior.train", 1000)
    for done in range(1, 1001):
        clock.now += 0.03125  # exact in binary
        progress.update(done, loss=0.5)
    progress.finish()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "[1] behavior.train: 1,000 steps"
    assert lines[1].startswith("[1] behavior.train  16% 160/1,000, 32.0 steps/s, loss 0.5000, 26 s left")
    assert lines[-1] == "[1] behavior.train done in 31 s: loss 0.5000"
    assert len(lines) == 1 + 6 + 1  # 31 seconds, a line every 5


def test_a_plan_shows_in_the_prefix_and_a_summary_in_the_last_line():
    progress, clock, stream = plain()
    progress.plan(2)
    for stage in ("one", "two", "three"):
        progress.start(stage, 1, unit="child")
        clock.now += 75
        progress.finish("best 0.75")
    assert stream.getvalue().splitlines() == [
        "[1/2] one: 1 child",
        "[1/2] one done in 1:15: best 0.75",
        "[2/2] two: 1 child",
        "[2/2] two done in 1:15: best 0.75",
        "[3] three: 1 child",
        "[3] three done in 1:15: best 0.75",
    ]


def test_resumed_steps_do_not_count_as_speed():
    progress, clock, stream = plain()
    progress.start("train", 1000, done=900)
    clock.now += 10
    progress.update(950)
    assert progress.rate == pytest.approx(5)
    assert progress.left == pytest.approx(10)
    assert "900 done before" in stream.getvalue()


def test_nothing_is_claimed_before_anything_is_known():
    progress, clock, _ = plain()
    progress.start("train", 10)
    assert progress.rate == 0 and progress.left is None
    progress.update(0)
    clock.now += 6
    progress.update(0)
    assert progress.left is None
    progress.finish()
    progress.finish()  # closing twice is harmless


def test_a_stage_that_is_left_open_is_closed_by_the_next():
    progress, _, stream = plain()
    progress.start("one", 1)
    progress.start("two", 1)
    progress.note("a note")
    assert [line.split(":")[0] for line in stream.getvalue().splitlines()] == [
        "[1] one",
        "[1] one done in 0.0 s",
        "[2] two",
        "a note",
    ]


def test_empty_stage():
    progress, clock, stream = plain()
    progress.start("nothing", 0)
    clock.now += 9
    progress.update(0)
    progress.finish()
    assert "0/0" in stream.getvalue()


def test_the_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    stream = Terminal()
    with p.make_progress(stream) as progress:
        assert isinstance(progress, p.RichProgress)
        progress.plan(1)
        progress.start("mlp.rank [x]", 10, unit="child")
        progress.update(5, auc=0.7512)
        progress.note("a [note]")
        progress.finish("best 0.7512")
    text = stream.getvalue()
    assert "[1/1] mlp.rank [x]" in text and "best 0.7512" in text and "a [note]" in text
    assert "\x1b[?25h" in text  # the cursor is shown again


def test_an_exception_takes_the_bar_down(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), p.make_progress(stream) as progress:
        progress.start("train", 10)
        raise KeyboardInterrupt
    assert stream.getvalue().rstrip().endswith("\x1b[?25h") or "\x1b[?25h" in stream.getvalue()


@pytest.mark.parametrize("term", ["dumb", ""])
def test_no_bar_where_it_cannot_be_redrawn(monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    assert isinstance(p.make_progress(Terminal()), p.PlainProgress)
    assert isinstance(p.make_progress(io.StringIO()), p.PlainProgress)
    assert type(p.make_progress(Terminal(), quiet=True)) is p.Progress


def test_the_base_is_silent(capsys):
    with p.Progress() as progress:
        progress.start("a", 3)
        progress.update(1, x=1.0)
        progress.note("n")
        progress.finish("s")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (37.4, "37 s"), (59.6, "1:00"), (245, "4:05"), (7445, "2:04:05")],
)
def test_durations(seconds, text):
    assert p.show_seconds(seconds) == text


def test_rates_and_values():
    assert p.show_rate(0, "step") == ""
    assert p.show_rate(0.25, "step") == "4.0 s/step"
    assert p.show_rate(1234, "child") == "1,234 children/s"
    assert (
        p.show_metrics({"loss": 0.5, "n": 1200, "tiny": 1e-6, "none": None})
        == "loss 0.5000, n 1,200, tiny 1e-06"
    )
