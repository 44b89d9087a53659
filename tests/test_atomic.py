"""Nothing half-written: every failure leaves the old content and no temporary file."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ameir_fast import atomic
from ameir_fast.errors import InputError


def names(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_text_bytes_and_json(tmp_path):
    assert atomic.write_text(tmp_path / "a.txt", "é\n") == tmp_path / "a.txt"
    assert (tmp_path / "a.txt").read_bytes() == "é\n".encode()
    atomic.write_bytes(tmp_path / "b", b"\0\1")
    assert (tmp_path / "b").read_bytes() == b"\0\1"
    atomic.write_json(tmp_path / "c.json", {"b": 1, "a": [1.5, None]}, sort_keys=True)
    text = (tmp_path / "c.json").read_text()
    assert json.loads(text) == {"b": 1, "a": [1.5, None]}
    assert text.index('"a"') < text.index('"b"') and text.endswith("\n")
    assert names(tmp_path) == ["a.txt", "b", "c.json"]


def test_new_files_obey_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        atomic.write_text(tmp_path / "a", "x")
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_failure_keeps_the_old_content(tmp_path, monkeypatch, call):
    atomic.write_text(tmp_path / "a", "old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_failure_inside_the_block_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), atomic.open_atomic(tmp_path / "a") as file:
        file.write(b"part")
        raise RuntimeError
    assert names(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_a_form_is_refused_before_anything_is_written(tmp_path, value):
    with pytest.raises(ValueError, match="[Oo]ut of range"):
        atomic.write_json(tmp_path / "a.json", {"x": value})
    assert names(tmp_path) == []


def test_a_link_is_followed_and_a_device_written(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    atomic.write_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    atomic.write_text(os.devnull, "gone")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_full_device_raises():
    with pytest.raises(OSError, match="No space left"):
        atomic.write_text("/dev/full", "x" * 10)


def test_a_directory_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError):
        atomic.write_text(tmp_path, "x")
    with pytest.raises(FileNotFoundError):
        atomic.write_text(tmp_path / "missing" / "a", "x")


def test_really_full_file_system(tmp_path):
    """A limit of the system on file sizes, hit while writing, in a process of its own."""
    pytest.importorskip("resource")
    script = (
        "import resource, signal, sys\n"
        "from ameir_fast.atomic import write_bytes\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_bytes(sys.argv[1], b'x' * 5000)\n"
        "except OSError as error:\n"
        "    sys.exit(7 if error.errno else 8)\n"
    )
    (tmp_path / "a").write_text("old")
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "a")], cwd=Path(__file__).parents[1], check=False
    )
    assert done.returncode == 7
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_new_dir_appears_whole_or_not_at_all(tmp_path):
    with atomic.new_dir(tmp_path / "deep" / "out") as directory:
        (directory / "a").write_text("1")
        assert not (tmp_path / "deep" / "out").exists()
    assert names(tmp_path / "deep" / "out") == ["a"]
    with pytest.raises(RuntimeError), atomic.new_dir(tmp_path / "other") as directory:
        (directory / "a").write_text("1")
        raise RuntimeError
    assert names(tmp_path) == ["deep"]


def test_new_dir_refuses_what_is_in_use(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("keep")
    with pytest.raises(InputError, match="in use"), atomic.new_dir(tmp_path / "used"):
        pytest.fail("work began")
    (tmp_path / "file").write_text("keep")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a directory"), atomic.new_dir(tmp_path / "file", overwrite):
            pytest.fail("work began")
    assert names(tmp_path / "used") == ["mine"] and names(tmp_path) == ["file", "used"]


def test_overwriting_replaces_everything(tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "old").write_text("old")
    with atomic.new_dir(tmp_path / "used", overwrite=True) as directory:
        (directory / "new").write_text("new")
        assert names(tmp_path / "used") == ["old"]
    assert names(tmp_path / "used") == ["new"]
    assert names(tmp_path) == ["used"]


def test_failed_move_puts_the_old_directory_back(tmp_path, monkeypatch):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "old").write_text("old")
    rename = os.rename

    def fail_the_second(source, destination):
        if Path(destination) == tmp_path / "used" and "old" not in names(Path(source)):
            full_disk()
        rename(source, destination)

    monkeypatch.setattr(os, "rename", fail_the_second)
    with (
        pytest.raises(OSError, match="No space left"),
        atomic.new_dir(tmp_path / "used", overwrite=True) as directory,
    ):
        (directory / "new").write_text("new")
    assert names(tmp_path / "used") == ["old"]
    assert names(tmp_path) == ["used"]


def test_an_empty_directory_may_be_filled(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic.new_dir(tmp_path / "out") as directory:
        (directory / "a").write_text("1")
    assert names(tmp_path / "out") == ["a"]
