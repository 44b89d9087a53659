"""The commands ``prepare avazu --like``, ``alimama``, ``recbole``, ``fuxictr`` and ``movielens --retrieval``: options
reach the readers, results come as JSON, a bad line ends with one line and code 2."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import random
import textwrap
from pathlib import Path

import pytest

from ameir_fast import cli
from ameir_fast.cli.prepare import KINDS
from tests import data_helpers as helpers
from tests import fuxictr_files, mini_movielens, test_data_alimama, test_data_avazu, test_data_recbole


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code or 0


@pytest.fixture
def prepare(tmp_path, capsys):
    """Runs a preparation and returns its options, statistics, and what was printed."""

    def run(kind: str, *arguments: object) -> tuple[dict, dict, str]:
        output = tmp_path / "out"
        assert call("prepare", kind, *arguments, "--output", output, "--overwrite", "--json", tmp_path / "said") == 0
        said = json.loads((tmp_path / "said").read_text())
        about = json.loads((output / "dataset.json").read_text())
        assert about["kind"] == kind and said["statistics"] == json.loads((output / "statistics.json").read_text())
        return about["options"], said["statistics"], capsys.readouterr().out

    return run


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a preparation that must end with one line and code 2."""

    def run(says: str, *arguments: object) -> None:
        assert call("prepare", *arguments, "--output", tmp_path / "new") == 2
        out, err = capsys.readouterr()
        # On a busy machine lines about the progress may come before it.
        (line,) = (line for line in err.splitlines() if not line.startswith("["))
        assert out == "" and says in line, err
        assert not (tmp_path / "new").exists()

    return run


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.NAME)
def test_no_option_is_forgotten(kind):
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind.prepare)))
    read = {name.id for line in tree.body[0].body for name in ast.walk(line) if isinstance(name, ast.Name)}
    assert set(inspect.signature(kind.prepare).parameters) <= read


def test_avazu_like(tmp_path, prepare, refused):
    rows = test_data_avazu.make_rows(200)
    (tmp_path / "train.csv").write_bytes(test_data_avazu.text(rows))
    header = [column for column in test_data_avazu.HEADER if column != "click"]
    (tmp_path / "test.csv").write_bytes(test_data_avazu.text(rows[:50], header))
    assert call("prepare", "avazu", "--input", tmp_path, "--output", tmp_path / "model", "--min-count", 3) == 0
    options, statistics, _ = prepare("avazu", "--input", tmp_path, "--like", tmp_path / "model")
    assert options == {"min_count": 3} and statistics["splits"]["test"]["rows"] == 50
    refused("was prepared with min_count 3, not 4", "avazu", "--input", tmp_path, "--like", tmp_path / "model",
            "--min-count", 4)
    refused("has no labels", "avazu", "--input", tmp_path / "test.csv")


def test_alimama(tmp_path, prepare, refused):
    folder = test_data_alimama.write(tmp_path / "raw")
    options, statistics, out = prepare("alimama", "--input", folder)
    assert options == {
        "behaviors": ["pv"],
        "since": None,
        "test_from": test_data_alimama.LAST_DAY,
        "max_history": 50,
        "all_fields": False,
        "min_count": 1,
    }
    assert f"{statistics['rows']} rows" in out and "behaviour other than pv" in out
    options, *_ = prepare(
        "alimama",
        "--input",
        folder,
        "--behaviors",
        "buy,pv",
        "--since",
        1494000000,
        "--split",
        "time",
        "--max-history",
        9,
        "--all-fields",
        "--min-count",
        2,
    )
    assert options == {
        "behaviors": ["pv", "buy"],
        "since": 1494000000,
        "test_from": None,
        "max_history": 9,
        "all_fields": True,
        "min_count": 2,
    }
    options, statistics, _ = prepare("alimama", "--input", folder, "--test-from", 1494520000)
    assert statistics["splits"]["test"]["first_time"] >= 1494520000 > statistics["splits"]["valid"]["last_time"]
    refused("behaviours click are not some of pv", "alimama", "--input", folder, "--behaviors", "click")
    refused("belongs to --split last-day", "alimama", "--input", folder, "--split", "time", "--test-from", 5)
    refused("split 'days' is neither last-day nor time", "alimama", "--input", folder, "--split", "days")
    refused("form 'zip' is neither raw nor dmr", "alimama", "--input", folder, "--form", "zip")
    refused("the raw form is one folder", "alimama", "--input", folder, "--test", folder)
    (folder / "behavior_log.csv").write_text("user,time_stamp,btag,cate,brand\n1,2,3\n")
    refused("behavior_log.csv: line 2 has 3 columns, not 5", "alimama", "--input", folder)


def test_alimama_in_267_columns(tmp_path, prepare, refused):
    rng = random.Random(1)
    lines = [test_data_alimama.dmr_line(rng, u) + "\n" for u in range(200)]
    (tmp_path / "train").write_text("".join(lines[:160]))
    (tmp_path / "test").write_text("".join(lines[160:]))
    arguments = ("--form", "dmr", "--input", tmp_path / "train", "--test", tmp_path / "test", "--seed", 4)
    options, statistics, _ = prepare("alimama", *arguments)
    assert options == {
        "form": "dmr",
        "test_files": 1,
        "seed": 4,
        "max_history": 50,
        "all_fields": False,
        "min_count": 1,
    }
    assert statistics["splits"]["test"]["rows"] == 40
    refused("belong to the raw form", "alimama", *arguments, "--since", 5)
    (tmp_path / "test").write_text("1,2\n")
    refused("test: line 1 has 2 columns, not 267", "alimama", *arguments)


def test_recbole(tmp_path, prepare, refused):
    folder = test_data_recbole.write(tmp_path / "shop")
    options, statistics, out = prepare(
        "recbole",
        "--input",
        folder,
        "--threshold",
        "rating=4",
        "--history",
        "item_id,rating",
        "--target",
        "item_id,brand",
        "--leave-out",
        "device",
        "--max-history",
        7,
        "--bins",
        0,
        "--user-field",
        "--split",
        "time",
    )
    assert options == {
        "label": None,
        "threshold": ["rating", 4.0],
        "retrieval": False,
        "columns": {"user": "user_id", "item": "item_id", "time": "timestamp"},
        "split": "time",
        "max_history": 7,
        "bins": 0,
        "user_field": True,
        "left_out": {
            "device": "as asked for",
            "age": "float, which is no category",
            "vector": "float_seq, which is no category",
        },
    }
    assert "left out: column age (float, which is no category)" in out and statistics["rows"] == 260
    unknown = statistics["without_attributes"]
    assert min(unknown.values()) > 0
    for what, count in unknown.items():
        assert f"without attributes {count}: rows whose {what} the other files don't know" in out
    options, *_ = prepare("recbole", "--input", folder, "--retrieval")
    assert options["retrieval"] and options["split"] == "leave_one_out"
    refused("threshold 'rating' is not COLUMN=NUMBER", "recbole", "--input", folder, "--threshold", "rating")
    refused("threshold 'rating=good' is not", "recbole", "--input", folder, "--threshold", "rating=good")
    refused("no column 'who' for the user", "recbole", "--input", folder, "--retrieval", "--user", "who")
    refused("thus a column 'when'", "recbole", "--input", folder, "--retrieval", "--time", "when")
    refused("no column 'click' for the label", "recbole", "--input", folder, "--label", "click")
    with open(folder / "shop.inter", "a") as file:
        file.write("u1\ti1\n")
    refused("shop.inter: line 262 has 2 columns, not 5", "recbole", "--input", folder, "--retrieval")


@pytest.mark.skipif(importlib.util.find_spec("yaml") is None, reason="PyYAML is not installed (the fuxictr extra)")
def test_fuxictr(tmp_path, prepare, refused):
    folder = tmp_path / "tiny"
    fuxictr_files.write(folder)
    place = ("--input", folder / "dataset_config.yaml", "--dataset-id", "tiny", "--root", folder)
    options, statistics, out = prepare("fuxictr", *place)
    assert options == {
        "dataset_id": "tiny",
        "history": ["click_sequence", "cate_sequence"],
        "max_history": 5,
        "bins": 10,
        "left_out": {"group": "meta, for metrics only"},
    }
    assert "left out: feature group" in out and statistics["rows"] == 270
    options, *_ = prepare("fuxictr", *place, "--history", "cate_sequence", "--max-history", 3, "--bins", 0)
    assert "price" in options["left_out"] and options["history"] == ["cate_sequence"] and options["max_history"] == 3
    refused("names several data sets", "fuxictr", "--input", folder)
    refused("train.csv: no such file", "fuxictr", "--input", folder, "--dataset-id", "tiny")
    (folder / "data" / "valid.csv").write_text("clk,userid\n1,2,3\n")
    refused("valid.csv: line 2 has 3 columns, not 2", "fuxictr", *place)


def test_movielens_retrieval(tmp_path, prepare, refused):
    folder = mini_movielens.write(tmp_path / "raw")
    options, statistics, _ = prepare(
        "movielens", "--input", folder, "--retrieval", "--split", "time", "--max-history", 4
    )
    assert options.pop("source").keys() == {"inter", "item", "user"}
    assert options == {"positive_rating": 4, "max_history": 4, "user_field": False, "retrieval": True, "split": "time"}
    assert statistics["label_rate"] is None
    refused(
        "split 'leave_one_out' is none of those that ctr data can have",
        "movielens",
        "--input",
        folder,
        "--split",
        "leave_one_out",
    )
    helpers.write_lines(folder / "mini.inter", "user_id:token\titem_id:token", ["1\t2"])
    refused("mini.inter: column 'rating:float' is missing", "movielens", "--input", folder)
    Path(folder / "u.data").write_text("1\t2\t3\t4\n")
    refused("holds more than one of MovieLens's forms", "movielens", "--input", folder)
