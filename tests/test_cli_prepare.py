"""The commands ``prepare avazu --like``, ``alimama``, ``recbole``, ``fuxictr``, ``movielens`` and ``--parts``: options
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
from tests import (
    fuxictr_files,
    mini_movielens,
    test_data_alimama,
    test_data_avazu,
    test_data_criteo,
    test_data_recbole,
    test_data_reviews,
)


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


def logs(kind: str, folder: Path) -> list[object]:
    """Input of each kind, as arguments; rows that are split by time have a few of one time at most."""
    rng = random.Random(7)
    events = [(f"u{rng.randint(1, 9)}", f"{rng.randint(1, 12):010d}", 86400 * k) for k in range(300)]
    if kind == "movielens":
        return ["--input", mini_movielens.write(folder)]
    if kind in ("criteo", "avazu"):
        module = test_data_criteo if kind == "criteo" else test_data_avazu
        rows = module.make_rows(300)
        (folder / "train.txt").write_bytes(module.tsv(rows) if kind == "criteo" else module.text(rows))
        return ["--input", folder]
    if kind == "alimama":
        return ["--input", test_data_alimama.write(folder), "--split", "time"]
    if kind == "dmr":
        helpers.write_lines(folder / "dmr", test_data_alimama.dmr_line(rng, 0), [test_data_alimama.dmr_line(rng, u) for u in range(199)])
        return ["--input", folder / "dmr", "--form", "dmr"]
    if kind == "amazon":
        (folder / "csv").write_text("".join(f"A{u}SUAM1J3GNN3,{i},5.0,{t}\n" for u, i, t in events))
        return ["--input", folder / "csv", "--split", "time", "--core", 0]
    if kind == "steam":
        lines = [test_data_reviews.steam_line(u, i, 1.0, t // 86400) for u, i, t in events]
        (folder / "json").write_text("".join(line + "\n" for line in lines))
        return ["--input", folder / "json", "--split", "time", "--core", 0]
    if kind == "sequences":
        windows = [([rng.randint(1, 99) for _ in range(9)], [k] * 8 + [k + 1]) for k in range(300)]
        (folder / "windows").write_text("".join(f"{w}\n" for w in windows))
        return ["--input", folder / "windows"]
    if kind == "recbole":
        return ["--input", test_data_recbole.write(folder), "--threshold", "rating=4", "--split", "random"]
    if kind == "fuxictr":
        pytest.importorskip("yaml")
        fuxictr_files.write(folder)
        config = (folder / "dataset_config.yaml").read_text()
        kept = "".join(line for line in config.splitlines(keepends=True) if "valid_data" not in line and "test_data" not in line)
        (folder / "dataset_config.yaml").write_text(kept)
        return ["--input", folder, "--dataset-id", "tiny", "--root", folder]
    return ["--rows", 1000, "--fields", 4]


@pytest.mark.parametrize(
    "kind",
    ["movielens", "criteo", "avazu", "alimama", "dmr", "amazon", "steam", "sequences", "recbole", "fuxictr", "synthetic"],
)
def test_parts(tmp_path, prepare, refused, kind):
    (tmp_path / "raw").mkdir()
    command, arguments = "alimama" if kind == "dmr" else kind, logs(kind, tmp_path / "raw")
    options, statistics, _ = prepare(command, *arguments, "--parts", "0.5,0.2,0.3")
    assert options["parts"] == [0.5, 0.2, 0.3]
    rows = [statistics["splits"][name]["rows"] for name in ("train", "valid", "test")]
    # Rows of one time stay together; rows of retrieval without a history or a known item are left out.
    for found, wanted in zip(rows, (0.5, 0.2, 0.3), strict=True):
        assert abs(found / sum(rows) - wanted) < 0.03, rows
    options, statistics, _ = prepare(command, *arguments)
    assert options.get("parts") == ([0.8, 0.1, 0.1] if kind == "synthetic" else None)
    assert abs(statistics["splits"]["train"]["rows"] / statistics["rows"] - 0.8) < 0.03
    refused("parts '0.5;0.5' are not three numbers", command, *arguments, "--parts", "0.5;0.5")
    for wrong in ("0.5,0.5", "0.9,0.1,0.1", "0.9,0.2,-0.1", "0.9,0.1,0", "nan,0.5,0.5"):
        refused("are not three positive numbers with the sum 1", command, *arguments, "--parts", wrong)


def test_parts_where_the_test_split_is_given(tmp_path, prepare, refused):
    folder = test_data_alimama.write(tmp_path / "raw")
    _, plain, _ = prepare("alimama", "--input", folder)
    _, statistics, _ = prepare("alimama", "--input", folder, "--parts", "0.25,0.25,0.5")
    train, valid, test = (statistics["splits"][name]["rows"] for name in ("train", "valid", "test"))
    assert test == plain["splits"]["test"]["rows"] and abs(train - valid) <= 4
    rng = random.Random(1)
    for name, rows in (("train", 400), ("test", 50)):
        (tmp_path / name).write_text("".join(test_data_alimama.dmr_line(rng, u) + "\n" for u in range(rows)))
    arguments = ("--form", "dmr", "--input", tmp_path / "train", "--test", tmp_path / "test")
    _, statistics, _ = prepare("alimama", *arguments, "--parts", "0.4,0.4,0.2")
    assert statistics["splits"]["test"]["rows"] == 50 and 150 < statistics["splits"]["valid"]["rows"] < 250


def test_splits_without_parts(tmp_path, refused):
    says = "parts belong to splits by time, order or random, not by leave_one_out"
    (tmp_path / "pairs").write_text("1 2\n1 3\n1 4\n")
    refused(says, "sequences", "--input", tmp_path / "pairs", "--parts", "0.5,0.2,0.3")
    (tmp_path / "csv").write_text("A2SUAM1J3GNN3B,0000013714,5.0,1\n")
    refused(says, "amazon", "--input", tmp_path / "csv", "--parts", "0.5,0.2,0.3")
    refused(says, "steam", "--input", tmp_path / "csv", "--parts", "0.5,0.2,0.3")
    folder = mini_movielens.write(tmp_path / "raw")
    refused(says, "movielens", "--input", folder, "--retrieval", "--parts", "0.5,0.2,0.3")
    folder = test_data_recbole.write(tmp_path / "shop")
    refused(says, "recbole", "--input", folder, "--retrieval", "--parts", "0.5,0.2,0.3")
    folder = test_data_recbole.write(tmp_path / "parted", parts=True)
    refused("not by column", "recbole", "--input", folder, "--threshold", "rating=4", "--parts", "0.5,0.2,0.3")


def test_seeds_without_a_split_at_random(tmp_path, refused):
    says = "seed belongs to a split at random, not by"
    folder = mini_movielens.write(tmp_path / "raw")
    refused(f"{says} time", "movielens", "--input", folder, "--seed", 0)
    folder = test_data_recbole.write(tmp_path / "shop")
    refused(f"{says} time", "recbole", "--input", folder, "--threshold", "rating=4", "--seed", 1)
    (tmp_path / "train.csv").write_bytes(test_data_avazu.text(test_data_avazu.make_rows(50)))
    refused(f"{says} time", "avazu", "--input", tmp_path / "train.csv", "--seed", 1)
    folder = test_data_alimama.write(tmp_path / "raw ads")
    refused("--seed belongs to the dmr form", "alimama", "--input", folder, "--seed", 1)


def test_defaults_that_are_spelled_out_are_not_recorded(tmp_path, prepare):
    folder = mini_movielens.write(tmp_path / "raw")
    options, _, _ = prepare("movielens", "--input", folder)
    again, _, _ = prepare("movielens", "--input", folder, "--threshold", 4, "--parts", ".8,.1,.1", "--min-count", 1)
    assert json.dumps(again) == json.dumps(options)


def test_movielens_clicks(tmp_path, prepare, refused):
    folder = mini_movielens.write(tmp_path / "raw")
    options, statistics, _ = prepare(
        "movielens", "--input", folder, "--threshold", 3, "--split", "random", "--seed", 5, "--min-count", 4)
    stars = [int(r["rating:float"]) for r in mini_movielens.read(folder / "mini.inter")]
    assert (options["positive_rating"], options["split"], options["seed"], options["min_count"]) == (3, "random", 5, 4)
    assert statistics["label_rate"] == pytest.approx(sum(s >= 3 for s in stars) / len(stars))
    refused("threshold 5.5 does not part the ratings 1 to 5", "movielens", "--input", folder, "--threshold", 5.5)
    refused("threshold 1 does not part", "movielens", "--input", folder, "--threshold", 1)
    refused("threshold nan does not part", "movielens", "--input", folder, "--threshold", "nan")
    refused("threshold belongs to the ctr task", "movielens", "--input", folder, "--retrieval", "--threshold", 3)
