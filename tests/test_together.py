"""Trainings side by side: order, threads, one clock, one display, errors."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import ameir_fast as af
from ameir_fast.progress import Progress
from ameir_fast.search.config import SearchConfig
from ameir_fast.search.together import together
from ameir_fast.search.training import Task


class Seen(Progress):
    def __init__(self):
        super().__init__()
        self.lines, self.most = [], 0

    def note(self, text):
        self.lines.append(text)

    def _show_start(self):
        self.lines.append(f"{self.stage}: {self.total}")
        self.first = self.done

    def _show_update(self):
        assert self.done <= self.total
        self.most = max(self.most, self.done)

    def _show_finish(self, summary):
        self.lines.append(f"{self.stage} done: {summary}")


@pytest.fixture(params=[1, 2, 5])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def task(progress=None, device="cpu") -> Task:
    return Task(data=None, objective=None, config=SearchConfig(), progress=progress or Progress(), device=device)


def training(name: str, steps: int = 4, seconds: float = 0.01):
    def job(task: Task) -> tuple[str, float, int]:
        began = task.clock()
        task.progress.start(name, 4)
        for step in range(steps):
            time.sleep(seconds)
            task.progress.update(step + 1)
        task.progress.finish(f"{steps} steps")
        return name, task.clock() - began, torch.get_num_threads()
    return job


def test_results_in_order_on_one_clock(threads):
    seen = Seen()
    began = time.perf_counter()
    found = together(task(seen), "race", [training("slow", seconds=0.05), training("a"), training("short", steps=2)])
    passed = time.perf_counter() - began
    assert [f[0] for f in found] == ["slow", "a", "short"]
    # Shares of the time that passed: they add up to it, however many ran side by side.
    assert 0.2 <= sum(f[1] for f in found) <= passed
    assert [f[2] for f in found] == [max(1, threads // 3)] * 3 and torch.get_num_threads() == threads
    assert seen.lines[0] == "race: 12" and seen.lines[-1] == "race done: 3 trainings" and seen.most == 12
    assert sorted(seen.lines[1:-1]) == ["a: 4 steps", "short: 2 steps", "slow: 4 steps"]


def test_side_by_side_only_where_the_cpu_computes(threads):
    at_once = min(threads, 3)
    met = threading.Barrier(at_once)
    together(task(), "race", [lambda task: met.wait(timeout=30)] * at_once)  # a broken barrier raises
    running, most = set(), []

    def job(task):
        running.add(threading.get_ident())
        most.append(len(running))
        time.sleep(0.02)
        running.discard(threading.get_ident())
    together(task(), "race", [job] * 6)
    assert max(most) <= threads
    most.clear()
    together(task(device="meta"), "race", [job] * 3)
    assert max(most) == 1
    assert together(task(), "race", []) == []


def endless(task):
    task.progress.start("endless", 10**6)
    for step in range(10**6):
        time.sleep(0.001)
        task.progress.update(step)


def fails(task):
    time.sleep(0.05)
    raise af.InputError("no such file")


def test_an_error_ends_all(threads):
    began = time.perf_counter()
    with pytest.raises(af.InputError, match="no such file"):
        together(task(), "race", [fails, endless, endless])
    assert time.perf_counter() - began < 20
    assert threading.active_count() == 1 and torch.get_num_threads() == threads


def test_ctrl_c_ends_all_at_once():
    """A real signal, to a process whose handler is the one that polars puts in place."""
    code = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # which a process in the background of a shell lacks
import os, polars, threading, time, torch
from ameir_fast.search.together import together
from tests.test_together import task
polars.DataFrame({"a": [1]}).lazy().select(polars.col("a").sum()).collect()
torch.set_num_threads(2)
started = threading.Barrier(2)
def job(task):
    task.progress.start("endless", 10**6)
    started.wait()
    if threading.current_thread().name.endswith("_0"):
        os.kill(os.getpid(), signal.SIGINT)
    for step in range(20_000):
        time.sleep(0.001)
        task.progress.update(step)
began = time.perf_counter()
try:
    together(task(), "race", [job, job])
except KeyboardInterrupt:
    # A signal that falls between a thread's start and its entry in the pool leaves it to end by itself, a step later.
    while threading.active_count() > 1 and time.perf_counter() - began < 10:
        time.sleep(0.01)
    print("interrupted", time.perf_counter() - began < 10, threading.active_count())
"""
    found = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).resolve().parent.parent, text=True,
                           capture_output=True, timeout=120, check=False)
    assert found.stdout.split() == ["interrupted", "True", "1"], found.stdout + found.stderr


def test_a_resumed_round_counts_what_is_done():
    """Trainings of earlier sessions report nothing and are complete; the display may wrap another one."""
    class Wrapper(Progress):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            for name in ("start", "update", "finish", "note"):
                setattr(self, name, getattr(inner, name))

    seen = Seen()
    stored = [lambda task: "stored"] * 2
    torch.set_num_threads(1)
    assert together(task(Wrapper(seen)), "race", [*stored, training("new"), training("last")])[:2] == ["stored"] * 2
    assert seen.lines == ["race: 16", "new: 4 steps", "last: 4 steps", "race done: 4 trainings"]
    assert seen.done == 16 and seen.first == 8


def test_seeded_models_do_not_depend_on_the_neighbours(threads):
    from ameir_fast.search.seeds import seeded_initialization

    def build(number):
        def job(task):
            with seeded_initialization(0, number):
                time.sleep(0.005)
                return torch.nn.Linear(7, 5).weight.detach()
        return job

    alone = [build(n)(None) for n in range(6)]
    state = torch.random.get_rng_state()
    for mine, other in zip(together(task(), "build", [build(n) for n in range(6)]), alone, strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(torch.random.get_rng_state(), state)
