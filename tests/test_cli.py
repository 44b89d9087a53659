"""The command line: what it prints, its exit codes, and one clear line for each mistake with nothing
half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ameir_fast import cli, native
from ameir_fast.cli import prepare
from ameir_fast.cli import run as run_commands
from ameir_fast.errors import InputError
from ameir_fast.schema import FeatureSchema
from tests import fake_run

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ["prepare", "search", "train", "evaluate", "report", "doctor", "profile", "export", "bench"]


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def tree(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must be refused: code 2, one line on standard error, nothing on standard output
    or disk."""

    def check(*arguments: object, says: str) -> str:
        before = tree(tmp_path)
        assert call(*arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
        assert says in err
        assert tree(tmp_path) == before
        return err

    return check


# ---- help -----------------------------------------------------------------------------------------


def test_help_names_every_command(capsys):
    for arguments in ([], ["--help"], ["-h"]):
        assert call(*arguments) == 0
        out = capsys.readouterr().out
        assert all(command in out for command in COMMANDS)
        assert "ameir-fast prepare movielens --output" in out


KINDS = [["prepare", kind.NAME] for kind in prepare.KINDS]


@pytest.mark.parametrize("command", [*([name] for name in COMMANDS), ["bench", "cpu"], ["bench", "native"], ["bench", "prepare"], ["bench", "batches"], *KINDS])
def test_every_command_teaches_by_example_and_takes_json(capsys, command):
    assert call(*command, "--help") == 0
    out = capsys.readouterr().out
    if command not in (["bench"], ["prepare"]):
        assert "--json FILE" in out
    if command not in (["bench"], ["prepare"], ["doctor"]):
        assert out.count(f"ameir-fast {' '.join(command)} ") >= 2  # the usage line and an example


def test_version(capsys):
    import ameir_fast

    assert call("--version") == 0
    assert capsys.readouterr().out == f"ameir-fast {ameir_fast.__version__}\n"


def test_the_settings_of_a_search_are_listed(capsys):
    assert call("search", "--settings") == 0
    out = capsys.readouterr().out
    assert "behavior_children: int = " in out and "# longest training of one model" in out


def test_the_installed_form_of_the_command():
    """``python -m ameir_fast.cli`` in a process of its own, with its true exit code and streams."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "ameir_fast.cli", "report", "--run", "missing"],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: missing: no such run directory\n")


# ---- wrong options --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["serch"], "No such command 'serch'"),
        (["search"], "Missing option '--data'"),
        (["search", "--data", "d", "--run", "r", "--bogus"], "--bogus"),
        (["search", "--data", "d", "--run", "r", "--repeats", "0"], "--repeats"),
        (["search", "--data", "d", "--run", "r", "--seed", "-1"], "--seed"),
        (["search", "--data", "d", "--run", "r", "--resume", "--overwrite"], "contradict"),
        (["search", "--data", "d", "--run", "r", "--set", "nonsense"], "KEY=VALUE"),
        (["search", "--data", "d", "--run", "r", "--set", "nonsense=1"], "unknown setting 'nonsense'"),
        (["search", "--data", "d", "--run", "r", "--set", "dropout=2"], "dropout"),
        (["search", "--data", "d", "--run", "r", "--set", "embedding_dim=x"], "embedding_dim"),
        (["search", "--data", "d", "--run", "r", "--set", "backend=cuda"], "backend is 'cuda'"),
        (["search", "--data", "d", "--run", "r", "--set", "learning_rate=NaN"], "learning_rate"),
        (["search", "--data", "d", "--run", "r", "--config", "missing.json"], "missing.json: no such file"),
        (["search", "--data", "d", "--run", "r", "--strategy", "annealing"], "unknown strategy 'annealing'"),
        (
            ["search", "--data", "d", "--run", "r", "--strategy", "no_such_module:X"],
            "no module named 'no_such_module'",
        ),
        (["search", "--data", "d", "--run", "r", "--strategy", "json:Missing"], "no class 'Missing'"),
        (["search", "--data", "d", "--run", "r", "--strategy", "json:JSONDecoder"], "no method propose"),
        (["search", "--data", "d", "--run", "r", "--device", "cuda:99"], "cuda:99"),
        (["search", "--data", "d", "--run", "r", "--device", "abacus"], "abacus"),
        (["search", "--data", "d", "--run", "r", "--variants", "a,,b"], "empty entry"),
        (["search", "--data", "missing", "--run", "r"], "missing"),
        (
            ["train", "--architecture", "missing.json", "--data", "d", "--run", "r"],
            "missing.json: no such file",
        ),
        (["evaluate", "--run", "missing", "--data", "missing"], "missing"),
        (["report", "--run", "missing"], "missing: no such run directory"),
        (["report", "--run"], "requires an argument"),
        (["profile", "--run", "missing"], "no derived model"),
        (["export", "--run", "missing", "--output", "plan"], "no derived model"),
        (["profile", "--run", "missing", "--batch", "1,x"], "'x' is not a positive integer"),
        (["profile", "--run", "missing", "--batch", "0"], "'0' is not a positive integer"),
        (["bench", "cpu", "--suite", "nonsense"], "unknown suite 'nonsense'; known: alimama, criteo, beauty"),
        (["bench", "cpu", "--cases", "nonsense"], "unknown case 'nonsense'"),
        (["bench", "cpu", "--lengths", "long"], "unknown lengths 'long'"),
        (["bench", "cpu", "--engines", "tensorrt"], "unknown engine 'tensorrt'; known: plan, plan-unfolded, plan-bfloat16, eager"),
        (["bench", "cpu", "--engines", "abacus"], "unknown engine 'abacus'"),
        (["bench", "population", "--step", "7"], "unknown step 7; known: "),
        (["bench", "population"], "--step"),
        (["bench", "prepare", "--rows", "many"], "--rows: 'many' is not a positive integer"),
        (["bench", "nonsense"], "nonsense"),
        (["prepare", "nonsense", "--output", "x"], "No such command 'nonsense' (see ameir-fast prepare --help)"),
        (["prepare", "movielens", "--input", "missing", "--output", "x"], "missing"),
        (["prepare", "table", "--output", "x"], "--input"),
        (["prepare", "table", "--input", "missing.csv", "--output", "x"], "--schema"),
        (
            ["prepare", "table", "--input", "missing.csv", "--schema", "missing.json", "--output", "x"],
            "missing",
        ),
        (
            ["report", "--run", "missing", "--json", "no/such/dir/x.json"],
            "directory no/such/dir does not exist",
        ),
        (["report", "--run", "missing", "--json", "."], "is a directory"),
    ],
)
def test_mistakes_end_with_one_line(refused, monkeypatch, tmp_path, arguments, says):
    monkeypatch.chdir(tmp_path)
    refused(*arguments, says=says)


def test_a_message_with_line_breaks_stays_one_line(refused, monkeypatch):
    def fail(*_: object) -> None:
        raise InputError("one\n  two")

    monkeypatch.setattr("ameir_fast.report.build_report", fail)
    refused("report", "--run", "x", says="error: one two\n")


def test_a_broken_or_foreign_architecture_is_named(refused, tmp_path):
    path = tmp_path / "architecture.json"
    for text, says in [
        ("{", "not valid JSON"),
        (json.dumps({**fake_run.ARCHITECTURE, "version": 9}), "version 9"),
        (json.dumps({**fake_run.ARCHITECTURE, "shortcut": "bridge"}), "bridge"),
        (json.dumps(fake_run.ARCHITECTURE).replace("max_pool3", "max_pool9"), "max_pool9"),
    ]:
        path.write_text(text)
        says_path = refused(
            "train", "--architecture", path, "--data", "d", "--run", tmp_path / "r", says=says
        )
        assert str(path) in says_path


# ---- the operating system says no -----------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_one_line(capsys, tmp_path):
    run = fake_run.write(tmp_path / "run")
    assert call("report", "--run", run, "--json", "/dev/full") == 2
    assert capsys.readouterr().err == "error: the disk is full (No space left on device)\n"


def test_a_disk_that_fills_up_keeps_the_old_report(capsys, tmp_path, monkeypatch):
    run = fake_run.write(tmp_path / "run")
    (run / "report.html").write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    before = tree(tmp_path)
    assert call("report", "--run", run) == 2
    assert capsys.readouterr().err == "error: the disk is full (No space left on device)\n"
    assert tree(tmp_path) == before


def test_a_file_without_permission_is_named(capsys, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.json")

    monkeypatch.setattr("ameir_fast.report.build_report", refuse)
    assert call("report", "--run", tmp_path) == 2
    assert capsys.readouterr().err == "error: secret.json: Permission denied\n"


def test_a_fault_of_the_program_is_not_disguised(monkeypatch, tmp_path):
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("ameir_fast.report.build_report", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["report", "--run", str(tmp_path)])


def test_ctrl_c_ends_with_130(capsys, tmp_path, monkeypatch):
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ameir_fast.report.build_report", interrupt)
    assert call("report", "--run", tmp_path) == 130
    assert capsys.readouterr().err == "interrupted\n"


# ---- what works without data ----------------------------------------------------------------------


def test_report(capsys, tmp_path):
    run = fake_run.write(tmp_path / "run")
    assert call("report", "--run", run, "--json", tmp_path / "r.json") == 0
    assert capsys.readouterr().out == f"report: {run / 'report.html'}\n"
    assert json.loads((tmp_path / "r.json").read_text()) == {"version": 1, "report": str(run / "report.html")}
    assert (run / "report.html").read_text().startswith("<!doctype html>")


def test_json_on_standard_output_is_alone_there(capsys, tmp_path):
    run = fake_run.write(tmp_path / "run")
    assert call("report", "--run", run, "--json", "-") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["version"] == 1
    assert err.startswith("report: ")


def test_doctor(capsys, tmp_path):
    assert call("doctor", "--json", tmp_path / "doctor.json") == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "doctor.json").read_text())
    assert {"torch", "triton", "numpy", "polars"} <= found["packages"].keys()
    assert set(found["native"]) == {"_C", "_driver", "_plan"}
    assert set(found["backends"]) == {"reference", "cpp", "triton"}
    assert found["backends"]["reference"] == {"works": True, "why_not": None, "missing": []}
    for name, state in found["backends"].items():
        assert state["works"] or state["why_not"], name
    assert found["cpu"]["threads"] >= 1
    for word in ("python", "reference", "_driver", found["packages"]["torch"], found["cpu"]["name"]):
        assert word in out


def test_doctor_says_why_native_code_is_not_in_use(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "AMEIR_FAST_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "ameir_fast.cli", "doctor", "--json", "-"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    found = json.loads(done.stdout)
    assert "AMEIR_FAST_NATIVE=0" in found["native"]["_driver"]
    assert "AMEIR_FAST_NATIVE=0" in done.stderr


@pytest.fixture(scope="module")
def small_model(tmp_path_factory):
    """A run directory with a real model of a small schema."""
    import torch

    from ameir_fast import Architecture, FeatureSchema, Model

    schema = FeatureSchema.from_dict(fake_run.SCHEMA)
    run = fake_run.write(tmp_path_factory.mktemp("cli") / "run", ("config", "architecture", "metrics"))
    torch.manual_seed(0)
    Model(schema, Architecture.from_dict(fake_run.ARCHITECTURE), 4).save(run / "model")
    return run


def test_profile(capsys, tmp_path, small_model):
    import torch

    threads = torch.get_num_threads()
    try:
        code = call(
            "profile",
            "--run",
            small_model,
            "--batch",
            "1,16",
            "--seconds",
            0.05,
            "--threads",
            1,
            "--json",
            tmp_path / "p.json",
        )
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    rows = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert [row["batch"] for row in rows] == [1, 16]
    for row in rows:
        assert row["threads"] == 1 and 0 < row["p50_ms"] <= row["p99_ms"] and row["samples_per_s"] > 0
        assert row["calls"] >= 5 and row["backend"]
    assert "samples/s" in capsys.readouterr().out


@pytest.mark.skipif(native.why_not("_plan") is not None, reason=str(native.why_not("_plan")))
def test_a_plan_is_exported_and_profiled(capsys, refused, tmp_path, small_model):
    import torch

    from ameir_fast import FeatureSchema, Model, Plan
    from ameir_fast.profile import random_batch

    assert call("export", "--run", small_model, "--output", tmp_path / "plan") == 0
    assert f"plan: {tmp_path / 'plan'} (float32; on this machine it runs on " in capsys.readouterr().out
    schema = FeatureSchema.from_dict(fake_run.SCHEMA)
    batch = random_batch(schema, 20, np.full(20, schema.max_history))
    with torch.no_grad():
        wanted = Model.load(small_model / "model")(batch)
    torch.testing.assert_close(Plan.load(tmp_path / "plan")(batch), wanted, rtol=1e-4, atol=1e-5)
    refused("export", "--run", small_model, "--output", tmp_path / "plan", says="--overwrite replaces it")
    assert call("export", "--run", small_model, "--output", tmp_path / "plan", "--overwrite") == 0
    capsys.readouterr()
    profile = ["profile", "--run", small_model, "--batch", "1", "--seconds", 0.02]
    assert call(*profile, "--engine", "plan", "--json", tmp_path / "p.json") == 0
    (row,) = json.loads((tmp_path / "p.json").read_text())["rows"]
    assert row["engine"] == "plan" and row["backend"] == "cpp"
    capsys.readouterr()
    refused(*profile, "--engine", "onnx", says="unknown engine 'onnx'; known: model, plan, plan-bfloat16")
    assert call(*profile, "--engine", "plan", "--parts", "--json", tmp_path / "parts.json") == 0
    parts = json.loads((tmp_path / "parts.json").read_text())["rows"][0]["parts"]
    assert [part["part"] for part in parts][-1] == "head" and "parts of plan, batch 1" in capsys.readouterr().out
    refused(*profile, "--parts", "--predict", "--device", "h100", says="--parts measures, and --predict measures nothing")
    refused(*profile, "--parts", says="parts are told of a plan on the CPU alone: --engine plan")


def test_profile_names_a_truncated_model(refused, tmp_path, small_model):
    (tmp_path / "run" / "model").mkdir(parents=True)
    for name in ("model.json", "model.safetensors"):
        (tmp_path / "run" / "model" / name).write_bytes((small_model / "model" / name).read_bytes())
    weights = tmp_path / "run" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    refused("profile", "--run", tmp_path / "run", says=str(weights))


# ---- options become settings ----------------------------------------------------------------------


def test_settings_are_merged_in_order(tmp_path):
    from ameir_fast.search import QUICK, RETRIEVAL, SearchConfig

    file = tmp_path / "config.json"
    file.write_text(json.dumps({"version": 1, "embedding_dim": 8, "epochs": 2.0, "behavior_children": 7}))
    config = run_commands.make_config(
        str(file), ["epochs=1.5", "race_epochs=[0.1, 0.2]", "sampler=uniform"], 5, True
    )
    assert config.embedding_dim == 8 and config.behavior_children == 7
    assert config.epochs == 1.5 and config.race_epochs == (0.1, 0.2) and config.sampler == "uniform"
    assert config.seed == 5 and config.finalists == QUICK["finalists"]
    assert run_commands.make_config(None, None) == SearchConfig()
    retrieval = run_commands.make_config(None, ["epochs=1.5"], task="retrieval")
    assert retrieval == SearchConfig.for_task("retrieval").changed(epochs=1.5)
    assert retrieval.negatives == RETRIEVAL["negatives"] != SearchConfig().negatives
    # The config.json of a run directory can be used again as it is.
    file.write_text(
        json.dumps({"version": 1, "config": SearchConfig(embedding_dim=2).to_dict(), "repeats": 3})
    )
    assert run_commands.make_config(str(file), None).embedding_dim == 2
    for text, says in [
        ("[]", "not a JSON object"),
        ('{"version": 7}', "version 7"),
        ('{"depth": 1}', "depth"),
    ]:
        file.write_text(text)
        with pytest.raises(InputError, match=says) as error:
            run_commands.make_config(str(file), None)
        assert str(file) in str(error.value)


def test_strategies_by_name_and_of_ones_own(tmp_path, monkeypatch):
    from ameir_fast.search import EvolutionStrategy, RandomStrategy

    assert isinstance(run_commands.choose_strategy("random"), RandomStrategy)
    assert isinstance(run_commands.choose_strategy("evolution"), EvolutionStrategy)
    assert run_commands.choose_strategy("beam").width is None
    (tmp_path / "my_strategies_for_test.py").write_text(
        "class Mine:\n    def propose(self, sample, mutate, seen, generator, count):\n        return []\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert type(run_commands.choose_strategy("my_strategies_for_test:Mine")).__name__ == "Mine"


def test_variants():
    from ameir_fast.search.fixed import all_variants

    assert run_commands.choose_variants(None) is None
    assert run_commands.choose_variants("AMEIR-A, DIN,DIN") == ("AMEIR-A", "DIN")
    assert {"AMEIR-C", "DIN", "AMEIR-I", "random children"} <= set(all_variants(FeatureSchema.from_dict(fake_run.SCHEMA)))


def test_the_resume_command():
    arguments = ["search", "--data", "my data", "--run", "r", "--overwrite", "--seed", "3"]
    assert (
        run_commands.resume_command(arguments)
        == "ameir-fast search --data 'my data' --run r --seed 3 --resume"
    )
    assert run_commands.resume_command(["search", "--resume"]) == "ameir-fast search --resume"


def test_the_table_is_printed_whole(capsys):
    metrics = fake_run.metrics(repeats=5)
    run_commands.show_results(None, metrics)
    out = capsys.readouterr().out
    for name in fake_run.VARIANTS:
        assert name in out
    for word in ("test AUC", "test log loss", "vs DIN", "outside embedding", "samples/s", "0.0049", "4:29"):
        assert word in out
    assert "…" not in out
