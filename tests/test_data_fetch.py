"""fetch_movielens: a real download where one is possible, and every way a download can go wrong."""

from __future__ import annotations

import subprocess
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, fetch, fetch_movielens, prepare_movielens
from tests import data_helpers as helpers

SPLITS = ("train", "valid", "test")


def pip_that(action):
    """A stand-in for ``subprocess.run``: ``action`` gets the folder, returns (exit code, what pip says)."""

    def run(command, **options):
        code, text = action(command[command.index("--dest") + 1])
        return SimpleNamespace(returncode=code, stdout="", stderr=text)

    return run


def wheel_in(folder: str, members: dict[str, bytes]) -> str:
    path = f"{folder}/recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def refused(monkeypatch, tmp_path, action, match):
    monkeypatch.setattr(subprocess, "run", pip_that(action))
    with pytest.raises(InputError, match=match) as caught:
        fetch_movielens(tmp_path / "cache" / "ml")
    assert "\n" not in str(caught.value)
    assert helpers.files_below(tmp_path) <= {"cache"}, "something half-written was left"


def test_failed_download_quotes_pip(monkeypatch, tmp_path):
    text = (
        "WARNING: retrying\nERROR: Could not find a version that satisfies the requirement recbole==1.2.1\n\n"
    )
    refused(monkeypatch, tmp_path, lambda folder: (1, text), "ERROR: Could not find a version")


def test_pip_that_is_missing(monkeypatch, tmp_path):
    refused(
        monkeypatch,
        tmp_path,
        lambda folder: (1, "/usr/bin/python: No module named pip\n"),
        "No module named pip",
    )


def test_interrupted_download(monkeypatch, tmp_path):
    def action(folder):
        path = wheel_in(folder, {"a": b"x" * 1000})
        with open(path, "r+b") as file:
            file.truncate(400)
        return 0, ""

    refused(monkeypatch, tmp_path, action, r"recbole-1\.2\.1.*(damaged|sha256)")


def test_download_that_leaves_nothing(monkeypatch, tmp_path):
    refused(monkeypatch, tmp_path, lambda folder: (0, ""), "recbole==1.2.1")


def test_wheel_with_another_hash(monkeypatch, tmp_path):
    refused(monkeypatch, tmp_path, lambda folder: (0, wheel_in(folder, {"a": b"x"}) and ""), r"sha256")


def test_members_with_another_hash(tmp_path):
    """A wheel that the user gives may have another hash as a whole; its data may not."""
    raw = helpers.write_mini_movielens(tmp_path / "raw")
    members = {
        f"recbole/dataset_example/ml-100k/ml-100k.{kind}": (raw / f"ml-mini.{kind}").read_bytes()
        for kind in ("inter", "user", "item")
    }
    wheel = wheel_in(str(tmp_path), members)
    with pytest.raises(InputError, match=r"ml-100k\.\w+.*sha256"):
        prepare_movielens(wheel, tmp_path / "out")
    members.pop("recbole/dataset_example/ml-100k/ml-100k.user")
    wheel = wheel_in(str(tmp_path), members)
    with pytest.raises(InputError, match=r"ml-100k\.(user|inter)"):
        prepare_movielens(wheel, tmp_path / "out")
    (tmp_path / "cut.whl").write_bytes((tmp_path / "recbole-1.2.1-py3-none-any.whl").read_bytes()[:200])
    with pytest.raises(InputError, match=r"cut\.whl"):
        prepare_movielens(tmp_path / "cut.whl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ctrl_c_during_the_download_leaves_nothing(monkeypatch, tmp_path):
    def interrupted(command, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_movielens(tmp_path / "cache" / "ml")
    assert helpers.files_below(tmp_path) <= {"cache"}


# ---- the real data, where it can be downloaded ------------------------------------------------------


@pytest.fixture(scope="module")
def movielens(tmp_path_factory):
    """A fresh copy. pip runs with a limit: a machine without network may wait for minutes otherwise."""
    run = subprocess.run
    limited = pytest.MonkeyPatch()
    limited.setattr(subprocess, "run", lambda command, **options: run(command, **{"timeout": 20, **options}))
    try:
        folder = fetch_movielens(tmp_path_factory.mktemp("fetched") / "ml-100k")
    except subprocess.TimeoutExpired:
        pytest.skip("the download of MovieLens-100K did not end within 20 seconds")
    except InputError as error:
        if "could not download" not in str(error):
            raise
        pytest.skip(f"MovieLens-100K can't be downloaded here: {error}")
    finally:
        limited.undo()
    prepare_movielens(folder, folder.parent / "prepared")
    return folder, Dataset.open(folder.parent / "prepared")


def test_movielens_100k_as_counted_by_plain_python(movielens):
    folder, data = movielens
    rows = helpers.read_mini(folder)
    assert len(rows) == len(data) == 100_000
    assert data.splits == {"train": (0, 79_999), "valid": (79_999, 90_000), "test": (90_000, 100_000)}
    for split, (begin, end) in data.splits.items():
        assert data.labels(split).tolist() == [float(row["rating"] >= 4) for row in rows[begin:end]]
    training = {row["item_id"] for row in rows[:79_999]}
    assert data.schema.size("item") == 1 + len(training) == 1617
    item = [None if token is None else str(token) for token in data.tokens("item")]
    by_user: dict[str, list[dict]] = {}
    for row in rows:
        by_user.setdefault(row["user_id"], []).append(row)
    chosen = np.arange(0, 10_000, 97)
    for k, history in zip(chosen, helpers.histories(data.batch("test", chosen)), strict=True):
        row = rows[90_000 + k]
        before = [event for event in by_user[row["user_id"]] if event["time"] < row["time"]][-20:]
        assert [(item[i], r) for i, r in history] == [
            (event["item_id"] if event["item_id"] in training else None, event["rating"]) for event in before
        ]


def test_fetching_again_reads_no_network(movielens, monkeypatch):
    folder, _ = movielens
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a download was started"))
    assert fetch_movielens(folder) == folder
    assert sorted(path.name for path in folder.iterdir()) == sorted(fetch.MEMBER_HASHES)
