"""The commands on real (small) data: prepare, search, train, evaluate, profile; resuming; wrong data and
damaged runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ameir_fast import InputError, native
from ameir_fast.data import Dataset
from ameir_fast.report import read_run
from ameir_fast.search import train
from ameir_fast.search.training import require_rows
from ameir_fast.space import Architecture
from ameir_fast.space.architecture import fixed_mlp
from tests import tiny
from tests.test_cli import ROOT, call, refused, tree  # noqa: F401 - refused is a fixture

CONFIG = dataclasses.replace(
    tiny.CONFIG,
    blocks=1,
    epochs=0.5,
    evaluate_every=0.25,
    race_epochs=(0.25,),
    behavior_epochs=0.5,
    mlp_epochs=0.5,
    behavior_children=4,
    mlp_children=6,
    cycles=1,
    finalists=2,
    validation_subset=60,
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """``raw``, ``data`` (prepared by the command) and ``config.json``."""
    directory = tmp_path_factory.mktemp("pipeline")
    tiny.write_raw(directory / "raw")
    (directory / "config.json").write_text(json.dumps(CONFIG.to_dict()))
    assert (
        call(
            "prepare",
            "movielens",
            "--input",
            directory / "raw",
            "--output",
            directory / "data",
            "--max-history",
            8,
            "--json",
            directory / "prepared.json",
        )
        == 0
    )
    return directory


def search_arguments(place: Path, run: Path, *more: object) -> list:
    return ["search", "--data", place / "data", "--run", run, "--config", place / "config.json", *more]


@pytest.fixture(scope="module")
def finished(place) -> Path:
    """A finished search with two repeats."""
    run = place / "run"
    assert call(*search_arguments(place, run, "--repeats", 2, "--json", place / "search.json")) == 0
    return run


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """A copy of the finished run that may be damaged."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# ---- the way through -------------------------------------------------------------------------------


def test_prepare(place):
    found = json.loads((place / "prepared.json").read_text())
    assert found["output"] == str(place / "data")
    assert found["statistics"]["rows"] == 1500
    assert {"rows", "label_rate", "vocabularies", "users", "items", "dropped"} <= found["statistics"].keys()
    assert json.loads((place / "data" / "statistics.json").read_text()) == found["statistics"]


def test_paths_per_step_see_the_whole_batch(place, tmp_path):
    class Read(Exception):
        pass

    def stop(data, run, config, **options):
        found.append((config.paths_per_step, config.path_rows))
        raise Read

    found: list = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ameir_fast.search.search", stop)
        for more in ([], ["--paths-per-step", 3], ["--paths-per-step", 3, "--set", "path_rows=part"]):
            with pytest.raises(Read):
                call("search", "--data", place / "data", "--run", tmp_path / "run", *more)
    assert found == [(8, "part"), (3, "all"), (3, "part")]


def test_search_fills_the_run_directory(finished, place):
    result = json.loads((place / "search.json").read_text())
    assert json.loads((finished / "metrics.json").read_text()) == result
    assert len(result["variants"]["AMEIR-C"]["auc"]["runs"]) == 2
    run = read_run(finished)
    assert run.finished and run.schema and run.architecture and run.rankings and run.history
    page = (finished / "report.html").read_text(encoding="utf-8")
    for expected in (
        "Found architecture",
        "Results on the test split",
        "Race of finalists",
        "Learning curves",
    ):
        assert expected in page


def test_the_table_and_the_path_are_printed(finished, place, tmp_path, capsys):
    assert call(*search_arguments(place, tmp_path / "run", "--variants", "AMEIR-A,DIN,DNN")) == 0
    out, err = capsys.readouterr()
    for expected in (
        "AMEIR-A",
        "DIN",
        "DNN",
        "test AUC",
        "vs DIN",
        "standard error",
        f"report: {tmp_path / 'run'}",
    ):
        assert expected in out
    assert "[1] behavior.train: " in err and "done in" in err
    assert "AMEIR-B" not in out


def test_evaluate(finished, place, capsys, tmp_path):
    assert call("evaluate", "--run", finished, "--data", place / "data", "--json", tmp_path / "e.json") == 0
    found = json.loads((tmp_path / "e.json").read_text())
    metrics = json.loads((finished / "metrics.json").read_text())
    assert found["split"] == "test"
    assert any(found["auc"] == pytest.approx(run) for run in metrics["variants"]["AMEIR-C"]["auc"]["runs"])
    assert f"{found['auc']:.4f}" in capsys.readouterr().out
    if native.why_not("_plan") is None:
        found = json.loads((tmp_path / "e.json").read_text())
        for engine, error in (("plan", 1e-5), ("plan-bfloat16", 2e-2)):
            assert call("evaluate", "--run", finished, "--data", place / "data", "--engine", engine, "--json",
                        tmp_path / "p.json") == 0
            planned = json.loads((tmp_path / "p.json").read_text())
            assert planned["engine"] == engine and planned["log_loss"] == pytest.approx(found["log_loss"], abs=error)


def test_train_the_found_architecture_again(finished, place, tmp_path, capsys):
    arguments = [
        "train",
        "--architecture",
        finished / "architecture.json",
        "--data",
        place / "data",
        "--run",
        tmp_path / "run",
        "--config",
        place / "config.json",
        "--seed",
        3,
    ]
    assert call(*arguments, "--json", tmp_path / "t.json") == 0
    assert (tmp_path / "run" / "architecture.json").read_bytes() == (
        finished / "architecture.json"
    ).read_bytes()
    assert "test AUC" in capsys.readouterr().out
    assert 0 < json.loads((tmp_path / "t.json").read_text())["variants"]["model"]["auc"]["mean"] < 1
    assert call("evaluate", "--run", tmp_path / "run", "--data", place / "data") == 0
    assert call("profile", "--run", tmp_path / "run", "--batch", "4", "--seconds", "0.02") == 0


def test_ctrl_c_says_how_to_go_on_and_resuming_ends_the_same(finished, place, tmp_path):
    run = tmp_path / "run"
    command = [str(part) for part in search_arguments(place, run, "--repeats", 2, "--threads", 1)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
    # A process started in the background of a shell inherits "ignore" for this signal.
    start = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from ameir_fast.cli import main; main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", start, *command],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    history, end = run / "history.jsonl", time.monotonic() + 120
    while not (history.exists() and "behavior.race" in history.read_text()) and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    last = err.strip().splitlines()[-1]
    assert last.startswith("interrupted; continue with: ameir-fast search ") and last.endswith(" --resume")
    assert not (run / "metrics.json").exists() and "Traceback" not in err
    assert call("report", "--run", run) == 0  # shows what exists
    assert call(*command, "--resume") == 0
    assert (run / "architecture.json").read_bytes() == (finished / "architecture.json").read_bytes()
    mine, theirs = (json.loads((r / "metrics.json").read_text())["variants"] for r in (run, finished))
    for name, row in mine.items():
        assert row["auc"] == theirs[name]["auc"], name


def test_ones_own_strategy(place, tmp_path, monkeypatch, capsys):
    (tmp_path / "strategy_of_the_test.py").write_text(
        "class Mine:\n"
        "    def propose(self, sample, mutate, seen, generator, count):\n"
        "        return [sample(generator) for _ in range(count)]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    arguments = search_arguments(place, tmp_path / "run", "--variants", "AMEIR-A")
    assert call(*arguments, "--strategy", "strategy_of_the_test:Mine") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["strategy"] == "strategy_of_the_test.Mine()"


def test_tensorboard_gets_every_record(place, finished, tmp_path, monkeypatch):
    from ameir_fast.progress import Progress
    from ameir_fast.tensorboard import TensorBoardProgress

    written: dict[str, list] = {}

    class Writer:
        def __init__(self, directory):
            self.directory = directory
            Path(directory).mkdir(parents=True)

        def add_scalar(self, tag, value, step):
            written.setdefault(self.directory, []).append((tag, value, step))

        def close(self):
            pass

    module = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    for _ in range(2):  # a second time, as after a kill: the logs are written anew
        written.clear()
        run = tmp_path / "run"
        run.mkdir(exist_ok=True)
        (run / "history.jsonl").write_bytes(b"")
        with TensorBoardProgress(Progress(), run) as progress:
            progress.start("behavior.train", 10)
            history = (finished / "history.jsonl").read_bytes()
            (run / "history.jsonl").write_bytes(history[: len(history) // 2])  # in the middle of a line
            progress.update(5, loss=1.0)
            (run / "history.jsonl").write_bytes(history)
            progress.finish()
    assert sorted(written) == [str(run / "tensorboard" / f"repeat-{r}") for r in (0, 1)]
    records = [json.loads(line) for line in history.splitlines()]
    losses = [("loss", r["repeat"], r["stage"], r["step"], r["loss"]) for r in records if "loss" in r]
    found = [
        ("loss", int(d[-1]), tag.rsplit("/", 1)[0], step, value)
        for d, entries in written.items()
        for tag, value, step in entries
        if tag.endswith("/loss")
    ]
    assert sorted(found) == sorted(losses)


def test_tensorboard_that_is_not_installed(refused, place, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refused(
        *search_arguments(place, tmp_path / "run", "--tensorboard"),
        says="pip install 'ameir-fast[tensorboard]'",
    )


# ---- what must be refused --------------------------------------------------------------------------


def test_a_run_directory_in_use(refused, place, copied, tmp_path):  # noqa: F811
    refused(*search_arguments(place, copied), says="in use")
    refused(*search_arguments(place, copied, "--resume", "--repeats", 2, "--seed", 5), says="seed = 0, not 5")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    refused(*search_arguments(place, tmp_path / "notes", "--overwrite"), says="not a run directory")


def test_prepared_data_in_use(refused, place, tmp_path):  # noqa: F811
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    refused("prepare", "movielens", "--input", place / "raw", "--output", tmp_path / "used", says="in use")


def test_only_prepared_data_is_overwritten(refused, capsys, tmp_path):  # noqa: F811
    """Neither a directory of other things nor one that is read from."""
    arguments = write_table(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("keep")
    refused(*arguments[:-1], tmp_path / "mine", "--overwrite", says="mine is in use (not empty) and holds no prepared data")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "keep"
    output = Path(arguments[-1])
    assert call(*arguments) == 0
    capsys.readouterr()
    (output / "more.csv").write_bytes((tmp_path / "table.csv").read_bytes())
    refused(*arguments, "--overwrite", "--input", output / "more.csv", says="more.csv: lies in the output directory")
    refused(*arguments, "--overwrite", "--like", output, says="data: is the output directory")
    (output / "mine.json").write_bytes((tmp_path / "table.json").read_bytes())
    schema = [output / "mine.json" if a == tmp_path / "table.json" else a for a in arguments]
    refused(*schema, "--overwrite", says="mine.json: lies in the output directory")
    assert (output / "mine.json").exists() and (output / "more.csv").exists()
    (output / "more.csv").unlink()
    assert call(*arguments, "--overwrite") == 0


def test_nothing_is_downloaded_for_an_output_in_use(refused, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr("ameir_fast.data.fetch_movielens", lambda *_, **__: pytest.fail("downloaded"))
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("keep")
    refused("prepare", "movielens", "--output", tmp_path / "used", says="in use")


def test_a_download_that_fails(refused, tmp_path, monkeypatch):  # noqa: F811
    def fail(command, **_: object):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: connection reset\n")

    monkeypatch.setattr(subprocess, "run", fail)
    refused("prepare", "movielens", "--output", tmp_path / "data", says="connection reset")


@pytest.mark.parametrize(
    ("name", "damage", "says"),
    [
        ("model.safetensors", lambda data: data[: len(data) // 2], "model.safetensors"),
        ("model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
        ("model.json", lambda data: data.replace(b'"version": 1,', b'"version": 9,', 1), "version 9"),
        ("model.json", lambda data: data[: len(data) // 2], "not valid JSON"),
        ("model.json", lambda data: data.replace(b'"se"', b'"bridge"'), "bridge"),
    ],
)
def test_a_damaged_model(refused, place, copied, name, damage, says):  # noqa: F811
    path = copied / "model" / name
    path.write_bytes(damage(path.read_bytes()))
    for command in (["evaluate", "--run", copied, "--data", place / "data"], ["profile", "--run", copied]):
        refused(*command, says=says)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data.replace(b'"version":"1"', b'"version":"9"'), "version '9'"),
    ],
)
def test_a_damaged_checkpoint(refused, place, tmp_path, monkeypatch, capsys, damage, says):  # noqa: F811
    run = tmp_path / "run"
    arguments = search_arguments(place, run, "--variants", "AMEIR-A")
    with monkeypatch.context() as patch:
        fill_disk_after(patch, 8)
        assert call(*arguments) == 2
    capsys.readouterr()
    found = sorted((run / "checkpoint").rglob("*.safetensors"))
    assert found
    for path in found:
        path.write_bytes(damage(path.read_bytes()))
    assert "safetensors" in refused(*arguments, "--resume", says=says)


def fill_disk_after(patch: pytest.MonkeyPatch, writes: int) -> None:
    """Every fsync after so many fails as on a full disk."""
    real, calls = os.fsync, []

    def fsync(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > writes:
            raise OSError(28, "No space left on device")
        real(descriptor)

    patch.setattr(os, "fsync", fsync)


def test_an_architecture_of_another_schema(refused, place, finished, tmp_path):  # noqa: F811
    architecture = json.loads((finished / "architecture.json").read_text())
    for change, says in [
        ({"interactions": [[0, 77]]}, "77"),
        ({"interactions": [[0, -1]]}, "-1"),
    ]:
        path = tmp_path / "architecture.json"
        path.write_text(json.dumps({**architecture, **change}))
        refused(
            "train", "--architecture", path, "--data", place / "data", "--run", tmp_path / "run", says=says
        )


def test_data_of_another_schema(refused, place, finished, tmp_path, capsys):  # noqa: F811
    tiny.write_raw(tmp_path / "raw", users=30, items=40, ratings=800, seed=5)
    assert call("prepare", "movielens", "--input", tmp_path / "raw", "--output", tmp_path / "data") == 0
    capsys.readouterr()
    refused("evaluate", "--run", finished, "--data", tmp_path / "data", says="another schema")


def test_data_that_was_changed_since(refused, place, finished, tmp_path):  # noqa: F811
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    label = data / "columns" / "label.npy"
    content = label.read_bytes()
    label.write_bytes(content[:-4] + (b"\0\0\0\0" if content[-4:] != b"\0\0\0\0" else b"\0\0\x80?"))
    refused("search", "--data", data, "--run", tmp_path / "run", says="label.npy: its checksum is not")
    refused("evaluate", "--run", finished, "--data", data, says="label.npy: its checksum is not")


def test_damaged_data(refused, place, tmp_path):  # noqa: F811
    for name, content in [
        ("schema.json", b"{"),
        ("dataset.json", b'{"version": 9}'),
        ("columns/label.npy", b""),
    ]:
        data = tmp_path / "data"
        shutil.copytree(place / "data", data)
        (data / name).write_bytes(content)
        refused("search", "--data", data, "--run", tmp_path / "run", says=name.split("/")[-1])
        shutil.rmtree(data)


TABLE = {
    "version": 1,
    "label": "click",
    "user": "user",
    "time": "time",
    "fields": [{"name": "item"}, {"name": "color"}],
    "vocabularies": {"color": {"size": 3}},
}


def write_table(directory: Path, **changes: object) -> list:
    """A table of 40 rows, the last of which has some values changed; the arguments to prepare it."""
    rows = [
        {"user": i % 5, "item": f"i{i % 7}", "color": i % 3, "time": i, "click": i % 2} for i in range(40)
    ]
    rows[-1].update(changes)
    names = list(rows[0])
    lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in rows)]
    (directory / "table.csv").write_text("\n".join(lines) + "\n")
    (directory / "table.json").write_text(json.dumps(TABLE))
    return [
        "prepare",
        "table",
        "--input",
        directory / "table.csv",
        "--schema",
        directory / "table.json",
        "--output",
        directory / "data",
    ]


def test_a_table(capsys, tmp_path):
    assert call(*write_table(tmp_path), "--json", tmp_path / "p.json") == 0
    assert json.loads((tmp_path / "p.json").read_text())["statistics"]["rows"] == 40
    assert "40 rows, 50.0% positive" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"click": "nan"}, "click"),
        ({"click": 2}, "click"),
        ({"click": ""}, "click"),
        ({"color": 3}, "color"),
        ({"color": -1}, "color"),
        ({"time": "later"}, "time"),
    ],
)
def test_wrong_values_in_a_table(refused, tmp_path, changes, says):  # noqa: F811
    refused(*write_table(tmp_path, **changes), says=says)


def prepare_again(capsys, arguments: list, *more: object, **schema: object) -> tuple[Path, str]:
    """``write_table``'s table once more with other entries of its schema, and what was printed."""
    output = arguments[-1].parent / "again"
    Path(arguments[5]).write_text(json.dumps({**TABLE, **schema}))
    capsys.readouterr()
    assert call(*arguments[:-1], output, "--overwrite", *more) == 0
    return output, capsys.readouterr().out


def test_a_search_needs_rows_and_labels_of_both_kinds(refused, tmp_path, capsys):  # noqa: F811
    arguments = write_table(tmp_path)
    assert call(*arguments) == 0
    like, _ = prepare_again(capsys, arguments, "--like", tmp_path / "data")
    refused("search", "--run", tmp_path / "run", "--data", like, says="the train split is empty; it was prepared with --like")
    with pytest.raises(InputError, match="the train split is empty"):
        train(Dataset.open(like), tmp_path / "run", Architecture((), (), fixed_mlp(8, 4), "none"))
    table = Path(arguments[3])
    names, *rows = table.read_text().splitlines()
    for click in "01":
        table.write_text("\n".join([names, *(row.rsplit(",", 1)[0] + f",{click}" for row in rows)]) + "\n")
        data, said = prepare_again(capsys, arguments)
        assert f"all labels of the valid split are {click}: a search needs both kinds" in said
        refused("search", "--data", data, "--run", tmp_path / "run", says=f"all 32 labels of the train split are {click}")
    table.write_text("\n".join(row.rsplit(",", 1)[0] for row in (names, *rows)) + "\n")
    unlabelled = Dataset.open(prepare_again(capsys, arguments, "--like", tmp_path / "data")[0])
    with pytest.raises(InputError, match="rows of the test split have no label"):
        require_rows(unlabelled, ["test"])
    with pytest.raises(InputError, match="the valid split is empty"):
        require_rows(unlabelled, ["valid"])
    assert not (tmp_path / "run").exists()


def test_evaluating_an_empty_split(refused, place, copied, tmp_path):  # noqa: F811
    data = tmp_path / "data"
    shutil.copytree(place / "data", data)
    about = json.loads((data / "dataset.json").read_text())
    about["splits"] = {"train": [0, 0], "valid": [0, 0], "test": [0, about["rows"]]}
    (data / "dataset.json").write_text(json.dumps(about))
    (copied / "metrics.json").unlink()  # by which it would be noticed that this is other data
    refused("evaluate", "--run", copied, "--data", data, "--split", "train", says="the train split is empty")


def test_a_split_by_order_tells_of_rows_out_of_order(capsys, tmp_path):
    def counted(schema: dict, **changes: object) -> tuple[int | None, str]:
        data, said = prepare_again(capsys, write_table(tmp_path, **changes), **schema)
        return json.loads((data / "statistics.json").read_text()).get("out_of_order"), said

    count, said = counted({"split": {"by": "order"}}, time=3)  # the last row of 40
    assert count == 1 and "out of order 1: rows earlier than the row before them" in said
    assert counted({"split": {"by": "order"}})[0] is None
    assert counted({}, time=3)[0] is None  # split by time


def test_a_table_given_twice(refused, tmp_path):  # noqa: F811
    arguments = write_table(tmp_path)
    refused(*arguments, "--input", arguments[3], says="table.csv: is given twice, and its rows would be in several splits")


def test_missing_columns_files_and_broken_schemas(refused, tmp_path):  # noqa: F811
    arguments = write_table(tmp_path)
    text = (tmp_path / "table.csv").read_text()
    (tmp_path / "table.csv").write_text(text.replace("color", "colour", 1))
    refused(*arguments, says="color")
    (tmp_path / "table.csv").write_text(text)
    (tmp_path / "table.json").write_text(json.dumps({**TABLE, "shape": 1}))
    refused(*arguments, says="shape")
    (tmp_path / "table.json").write_text("{")
    refused(*arguments, says="table.json")
    (tmp_path / "table.json").write_text(json.dumps(TABLE))
    (tmp_path / "table.csv").unlink()
    refused(*arguments, says="table.csv")
    refused(*arguments, "--max-history", "5", says="--max-history")


def test_a_disk_that_fills_up_while_preparing(capsys, tmp_path, monkeypatch):
    arguments = write_table(tmp_path)
    before = tree(tmp_path)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert call(*arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1].startswith("error: ") and "No space left" in err[-1]
    assert tree(tmp_path) == before and not (tmp_path / "data").exists()


def test_a_disk_that_fills_up_while_searching(capsys, place, tmp_path, monkeypatch):
    """What was finished stays whole, and the run resumes once there is room."""
    run = tmp_path / "run"
    arguments = search_arguments(place, run, "--variants", "AMEIR-A")
    with monkeypatch.context() as patch:
        fill_disk_after(patch, 25)
        assert call(*arguments) == 2
    err = capsys.readouterr().err.splitlines()
    assert err[-1] == "error: the disk is full (No space left on device)"
    assert not [name for name in tree(run) if ".ameir-fast-" in name]
    assert call(*arguments, "--resume") == 0
    assert (run / "metrics.json").exists()
