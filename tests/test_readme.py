"""What README, CONTRIBUTING and docs/ tell people to type exists and works."""

from __future__ import annotations

import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import typer

import ameir_fast.search
from ameir_fast import cli, native, ops
from ameir_fast.cli import app
from ameir_fast.data import prepare_movielens
from ameir_fast.search import SearchConfig
from ameir_fast.search.variants import FOUND

from . import tiny

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "CONTRIBUTING.md", "docs/data.md", "docs/evaluation.md", "docs/gpu.md", "docs/population.md", "docs/serving.md",
         "docs/training.md")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="the pages lie in the checkout, not in the package"
)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def commands(name: str, program: str) -> list[list[str]]:
    """Words of every command line of ``program`` in the code of a page, in fences and between backticks."""
    text = page(name)
    lines = [line for _, body in FENCE.findall(text) for line in body.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text))]
    split = [shlex.split(line, comments=True) for line in lines if line.strip().startswith(program + " ")]
    return [words[1:] for words in split]


def test_the_python_examples_run(tmp_path, monkeypatch):
    """In order and in one namespace; a search gets small settings where the example names none."""
    monkeypatch.chdir(tmp_path)
    prepare_movielens(tiny.write_raw(tmp_path / "raw"), tmp_path / "data" / "movielens-100k", max_history=8)
    search, usual = ameir_fast.search.search, asdict(SearchConfig())

    def small_search(data, run_dir, config=None, **options):
        said = {k: v for k, v in asdict(config or SearchConfig()).items() if v != usual[k]}
        return search(data, run_dir, replace(tiny.CONFIG, **said), **{"variants": FOUND, **options})

    monkeypatch.setattr(ameir_fast.search, "search", small_search)
    blocks = [body for language, body in FENCE.findall(page("README.md")) if language == "python"]
    assert len(blocks) == 5
    names: dict = {}
    for body in blocks:
        if "Plan.load" in body:
            if native.why_not("_plan"):
                continue
            with torch.no_grad():
                wanted = ameir_fast.Model.load("runs/mine/model")(names["batch"])
            with pytest.raises(SystemExit) as ended:
                cli.main(["export", "--run", "runs/mine", "--output", "plans/mine"])
            assert not ended.value.code
            exec(compile(body, "README.md", "exec"), names)
            torch.testing.assert_close(names["logits"], wanted, rtol=1e-4, atol=1e-5)
            continue
        exec(compile(body, "README.md", "exec"), names)
    assert names["logits"].shape == (512,)
    assert names["scores"].auc.shape == (1,)
    assert names["model"].arch == names["arch"].canonical()
    assert 0 <= names["metrics"]["variants"]["AMEIR-C"]["auc"]["mean"] <= 1
    for run in ("mine", "climb"):
        assert (tmp_path / "runs" / run / "architecture.json").exists()


def test_the_training_loop_runs(tmp_path, monkeypatch):
    """The examples of docs/training.md, one after the other, come to weights that have moved, and to a model."""
    monkeypatch.chdir(tmp_path)
    prepare_movielens(tiny.write_raw(tmp_path / "raw"), tmp_path / "data" / "movielens-100k", max_history=8)
    names: dict = {}
    for body in (body for language, body in FENCE.findall(page("docs/training.md")) if language == "python"):
        exec(compile(body, "docs/training.md", "exec"), names)
    assert names["best"].arch in names["archs"] and names["scores"].shape == (8, len(names["batch"]))
    assert names["rows"].steps > 0 and bool(torch.isfinite(names["net"].embedding.weight).all())


@pytest.mark.parametrize("name", PAGES)
def test_commands_and_their_options_exist(name):
    for words in commands(name, "ameir-fast"):
        command = typer.main.get_command(app)
        while words and hasattr(command, "commands") and not words[0].startswith("-"):
            if words[0] == "COMMAND":
                break
            assert words[0] in command.commands, f"{name}: ameir-fast {' '.join(words)}"
            command, words = command.commands[words[0]], words[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        for word in words:
            if word.startswith("--"):
                assert word.split("=")[0] in known, f"{name}: {command.name} has no option {word}"


def test_the_readme_shows_the_main_commands():
    assert {words[0] for words in commands("README.md", "ameir-fast")} >= {"prepare", "search", "evaluate", "doctor"}
    assert ["search"] in commands("README.md", "make")


@pytest.mark.parametrize("name", PAGES)
def test_make_targets_exist(name):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for words in commands(name, "make"):
        assert words[0] in targets, f"{name}: make {words[0]}"


@pytest.mark.parametrize("name", PAGES)
def test_named_files_exist(name):
    """Paths between backticks and in links; stored results and placeholders aside."""
    text = FENCE.sub("", page(name))
    named = re.findall(r"`((?:ameir_fast|csrc|kernels|tests|docs|search)/[\w/.]*)`", text)
    named += re.findall(r"\]\(((?!http)[\w/.]+)\)", text)
    for path in (p for p in named if "bench/results/" not in p):
        places = (ROOT / path, ROOT / "ameir_fast" / path, (ROOT / name).parent / path)
        assert any(place.exists() for place in places), f"{name}: {path}"


def test_the_table_of_operations_agrees_with_the_dispatcher():
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| (.+?) \|$", page("README.md"), re.MULTILINE)
    assert {row[0] for row in rows} == set(ops.OPS)
    for column, backend in enumerate(("reference", "cpp", "triton"), start=1):
        assert [row[0] for row in rows if row[column] != "yes"] == [
            name for name in (row[0] for row in rows) if name in ops.missing(backend)
        ]
