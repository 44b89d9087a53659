"""The report: self-contained, escaped, for runs in any state; and the numbers of the final table."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from ameir_fast.errors import InputError
from ameir_fast.report import build_report, charts, summary
from ameir_fast.report.drawing import draw, widths
from ameir_fast.report.html import Html, node, table
from tests import fake_run

VOID = {"meta", "br", "img"}


class Checker(HTMLParser):
    """Every element is closed, in order; collects the tags, text and addresses."""

    def __init__(self):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def check(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert checker.open == []
    assert "script" not in checker.tags and "link" not in checker.tags
    assert checker.addresses == []
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)  # only markers inside the page
    assert "//" not in page.replace("<!--", "").replace("DOCTYPE", ""), "an address of another host"
    assert "NaN" not in page and "nan" not in re.sub(r"[a-z]*nan[a-z]+|[a-z]+nan", "", page)
    return checker


def text_of(run_dir) -> str:
    return "\n".join(check(build_report(run_dir).read_text(encoding="utf-8")).text)


def test_a_finished_run_shows_everything(tmp_path):
    text = text_of(fake_run.write(tmp_path / "run"))
    for expected in (
        "Found architecture",
        "self_attn2",
        "max_pool3",
        "passes through",
        "squeeze-excite",
        "K₀ = 336",
        "202 units",
        "Results on the test split",
        "AMEIR-C",
        "Wide&Deep",
        "random children",
        "vs DIN",
        "vs DNN",
        "0.0049",
        "What was ranked",
        "Step 1 · behaviour: 300 ranked",
        "Step 2 · interactions: 120 ranked",
        "found by z",
        "7.5000",
        "Step 3 · MLP: 880 ranked",
        "Race of the behavior finalists",
        "Race of the mlp finalists",
        "Learning curves",
        "behavior.train: validation AUC",
        "interactions.train: training loss",
        "behavior.race: validation AUC",
        "retrain: validation AUC",
        "Time of each step",
        "children ranked 300",
        "Data",
        "Features",
        "Environment",
        "Configuration",
        "learning_rate",
        "movielens",
    ):
        assert expected in text, expected


PARTS = ("config", "architecture", "metrics", "rankings", "history", "model")


@pytest.mark.parametrize("missing", PARTS)
def test_any_part_may_be_missing(tmp_path, missing):
    run = fake_run.write(tmp_path / "run", tuple(part for part in PARTS if part != missing))
    text = text_of(run)
    assert ("This run is not finished." in text) == (missing == "metrics")


@pytest.mark.parametrize("only", [part for part in PARTS if part != "model"])
def test_any_part_may_be_alone(tmp_path, only):
    assert "AMEIR search" in text_of(fake_run.write(tmp_path / "run", (only,)))


def test_an_unfinished_run_says_where_it_is_and_how_to_go_on(tmp_path):
    run = fake_run.write(tmp_path / "run", ("config", "history"))
    with open(run / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"stage": "mlp.race.3", "step": 1200, "total": 3000, "repeat": 0}) + "\n")
        file.write('{"stage": "mlp.race.3", "st')  # what a kill leaves
    text = text_of(run)
    assert "mlp.race.3, step 1,200 of 3,000" in text
    assert "--resume" in text
    assert "1 line of history.jsonl could not be read" in text


def test_names_are_escaped(tmp_path):
    evil = "<script>alert('x')</script>&\""
    schema = json.loads(json.dumps(fake_run.SCHEMA))
    schema["fields"][2]["name"] = evil
    run = fake_run.write(tmp_path / "run", schema=schema)
    metrics = json.loads((run / "metrics.json").read_text())
    metrics["variants"][evil] = metrics["variants"].pop("random children")
    metrics["environment"][evil] = evil
    (run / "metrics.json").write_text(json.dumps(metrics))
    rankings = json.loads((run / "rankings.json").read_text())
    rankings["interactions"][0]["names"][0] = evil
    (run / "rankings.json").write_text(json.dumps(rankings))
    page = build_report(run).read_text(encoding="utf-8")
    assert "<script" not in page
    assert evil in "".join(check(page).text)


def test_wrong_directories_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match="no such run directory"):
        build_report(tmp_path / "missing")
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="is not a run directory"):
        build_report(tmp_path / "other")
    run = fake_run.write(tmp_path / "run")
    (run / "metrics.json").write_text('{"version": 1, ')
    with pytest.raises(InputError, match="metrics.json"):
        build_report(run)
    (run / "metrics.json").write_text("[]")
    with pytest.raises(InputError, match="metrics.json: not a JSON object"):
        build_report(run)


def test_retrieval_runs(tmp_path):
    schema = {
        "version": 1,
        "task": "retrieval",
        "max_history": 50,
        "vocabularies": [{"name": "item", "size": 100}],
        "fields": [],
        "behavior": [{"name": "item", "vocabulary": "item"}],
        "target": [],
    }
    architecture = {**fake_run.ARCHITECTURE, "interactions": []}
    run = fake_run.write(tmp_path / "run", schema=schema, architecture=architecture)
    metrics = json.loads((run / "metrics.json").read_text())
    for variant in metrics["variants"].values():
        variant["hr@5"], variant["ndcg@5"] = variant.pop("auc"), variant.pop("log_loss")
    metrics["standard_error"], metrics["architecture"] = {}, architecture
    metrics["found"] = [{"AMEIR-A": architecture}]
    (run / "metrics.json").write_text(json.dumps(metrics))
    rankings = json.loads((run / "rankings.json").read_text())
    for finalist in rankings["race"]["behavior"]:
        finalist["rounds"] = [{"steps": r["steps"], "ndcg@5": r["auc"]} for r in finalist["rounds"]]
    (run / "rankings.json").write_text(json.dumps(rankings))
    text = text_of(run)
    assert "item scores" in text and "test NDCG@5" in text and "test HR@5" in text


def test_runs_without_history_and_with_many_fields():
    schema = {
        "version": 1,
        "task": "ctr",
        "max_history": 0,
        "vocabularies": [{"name": f"v{i}", "size": 9} for i in range(39)],
        "fields": [{"name": f"f{i}", "kind": "categorical", "vocabulary": f"v{i}"} for i in range(39)],
        "behavior": [],
        "target": [],
    }
    architecture = {**fake_run.ARCHITECTURE, "behavior": [], "interactions": [[0, 13], [8, 19, 26, 33]]}
    drawing = draw(architecture, schema, 16)
    assert "and 33 more fields" in drawing and "BEHAVIOUR" not in drawing
    assert widths(architecture, schema, 16).total == (39 + 2) * 16
    assert "and 35 more fields" in draw({**architecture, "interactions": []}, schema, None)


def test_widths_follow_the_specification():
    sizes = widths(fake_run.ARCHITECTURE, fake_run.SCHEMA, 16)
    assert (sizes.history, sizes.fields, sizes.interactions) == (3 * 2 * 16, 10 * 16, 5 * 16)


def test_paired_differences():
    metrics = {
        "variants": {
            "AMEIR-C": {
                "auc": {"mean": 0.76, "std": 0.01, "runs": [0.75, 0.77, 0.76]},
                "log_loss": {"mean": 0.5, "std": 0.0, "runs": [0.5, 0.5, 0.5]},
            },
            "DIN": {
                "auc": {"mean": 0.755, "std": 0.01, "runs": [0.751, 0.76, 0.754]},
                "log_loss": {"mean": 0.6, "std": 0.0, "runs": [0.6, 0.6, 0.4]},
            },
        }
    }
    difference = summary.paired_difference(metrics, "AMEIR-C", "DIN", "auc")
    gaps = [-0.001, 0.010, 0.006]
    mean = sum(gaps) / 3
    error = (sum((gap - mean) ** 2 for gap in gaps) / 2 / 3) ** 0.5
    assert difference.mean == pytest.approx(mean) and difference.standard_error == pytest.approx(error)
    assert (difference.wins, difference.pairs) == (2, 3)
    assert summary.paired_difference(metrics, "AMEIR-C", "DIN", "log_loss").wins == 2  # smaller is better
    assert summary.paired_difference(metrics, "DIN", "DIN", "auc") is None
    assert summary.paired_difference(metrics, "DIN", "DNN", "auc") is None
    assert str(summary.Difference("DIN", 0.005, None, 1, 1)) == "+0.0050"


def test_the_table_has_a_row_a_variant_and_the_deciding_metric_first():
    metrics = fake_run.metrics(repeats=3)
    header, rows = summary.table_header(metrics), summary.table_rows(metrics)
    assert header[:3] == ["variant", "test AUC", "test log loss"]
    assert [row[0] for row in rows][:3] == ["AMEIR-C", "AMEIR-B", "AMEIR-A"]
    assert {row[0] for row in rows} == set(fake_run.VARIANTS)
    assert all(len(row) == len(header) for row in rows)
    assert summary.table_rows({}) == [] and summary.metric_names({"variants": {}}) == []


def test_one_run_has_no_deviation():
    assert summary.mean_and_deviation({"mean": 0.75, "std": 0.0, "runs": [0.75]}) == "0.7500"
    assert summary.mean_and_deviation({"mean": 0.75, "std": 0.01, "runs": [0.74, 0.76]}) == "0.7500 ± 0.0100"
    assert summary.mean_and_deviation(None) == "–"


def test_describe():
    assert summary.describe(fake_run.ARCHITECTURE, fake_run.SCHEMA) == (
        "blocks self_attn2 (layer_norm, gelu) → zero → max_pool3 (none, swish); interactions item × age, "
        "genre × gender, item × age × year, occupation × hour × weekday, item × genre × age × zip; "
        "mlp 0.6 relu, 0.3 dice; SE shortcut"
    )


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.7512, 0.7533), (-3, 1e6), (5, 5)])
def test_ticks_are_round_and_inside(low, high):
    ticks = charts.ticks(low, high)
    assert 1 <= len(ticks) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in ticks)


def test_charts_without_data_are_left_out_and_single_points_are_drawn():
    assert charts.line_chart([], "x", "y") is None
    assert charts.line_chart([charts.Series("a", ())], "x", "y") is None
    assert charts.distribution([], "s") is None
    assert charts.dot_chart([], "s") is None
    assert charts.bar_chart([]) is None
    assert "<path" in charts.line_chart([charts.Series("a", ((1, 0.5),))], "x", "y")
    assert "<rect" in charts.distribution([0.5, 0.5], "s")
    assert "nan" not in charts.dot_chart([charts.DotRow("a", (0.5,), 0.5)], "s", 0.0)


def test_markup_is_escaped_unless_it_is_markup():
    assert node("b", "<", Html("<i></i>"), [None, "&"], title='"') == '<b title="&quot;">&lt;<i></i>&amp;</b>'
    assert node("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert node("path", stroke_width=1.23456) == '<path stroke-width="1.23"></path>'
    assert '<td class="n">1</td>' in table(["a", "b"], [["x", 1]])


def test_a_line_written_again_after_a_kill_counts_once(tmp_path):
    """Later lines replace earlier ones of the same repeat, stage and step; lines without a step all stay."""
    from ameir_fast.report.read import read_history
    lines = [{"repeat": 0, "stage": "a", "step": 1, "loss": 2.0}, {"repeat": 0, "stage": "a", "step": 1, "loss": 1.0},
             {"repeat": 1, "stage": "a", "step": 1, "loss": 3.0}, {"repeat": 0, "stage": "b"}, {"repeat": 0, "stage": "b"}]
    (tmp_path / "history.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    records, broken = read_history(tmp_path / "history.jsonl")
    assert [r.get("loss") for r in records] == [1.0, 3.0, None, None] and broken == 0


def test_a_budget_is_shown_where_there_was_one(tmp_path):
    run = fake_run.write(tmp_path / "run")
    assert "in trainings of one model" not in text_of(run)
    stored = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    stored["budget"] = {"asked": "<40x>", "trainings": 40.0, "seconds_per_training": None, "spent_seconds": 171.5,
                        "settings": {"finalists": 42, "race_epochs": [0.5, 1, 2]}, "parts": {"full trainings": 4, "race, behavior": 21.4}}
    (run / "metrics.json").write_text(json.dumps(stored), encoding="utf-8")
    text = text_of(run)
    for said in ("Budget", "in trainings of one model", "race, behavior", "21.4", "<40x>", "0.5, 1, 2", "171.5"):
        assert said in text


def test_a_step_2_that_found_nothing_says_so(tmp_path):
    run = fake_run.write(tmp_path / "run")
    ranking = json.loads((run / "rankings.json").read_text())
    for one in ranking["interactions"]:
        one.pop("found_by", None)
    (run / "rankings.json").write_text(json.dumps(ranking))
    assert "Step 2 · interactions (none found: no z is high enough): 120 ranked" in text_of(run)
