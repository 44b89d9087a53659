"""The sections of the report, each from the part of the run it needs and absent without it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from ..progress import show_seconds
from . import summary
from .charts import DotRow, Series, bar_chart, distribution, dot_chart, line_chart
from .drawing import draw
from .html import Html, figure, grid, join, node, section, table
from .read import Run
from .style import STYLE

#: Palette slots of the variants that runs have by default, so that a colour means the same thing in every report of one
#: kind of data.
COLORS = {
    "AMEIR-C": 1,
    "AMEIR-B": 2,
    "AMEIR-A": 3,
    "DIN": 4,
    "DNN-pool": 5,
    "DNN": 6,
    "Wide&Deep": 7,
    "AMEIR-I": 8,
    "SASRec": 5,
    "NextItNet": 6,
    "GRU4Rec": 7,
    "POP": 8,
    "DeepFM": 5,
}
TOP = 10


def render(run: Run) -> str:
    """The whole page."""
    title = f"AMEIR search · {run.directory.name or run.directory.resolve().name}"
    parts = [
        _headline(run, title),
        _architecture(run),
        _results(run),
        _rankings(run),
        _race(run),
        _curves(run),
        _steps(run),
        _budget(run),
        _data(run),
        _conditions(run),
    ]
    head = node(
        "head",
        node("meta", charset="utf-8"),
        node("meta", name="viewport", content="width=device-width,initial-scale=1"),
        node("title", title),
        node("style", Html(STYLE)),
    )
    page = node("html", head, node("body", node("main", parts)), lang="en")
    return f"<!doctype html>\n{page}\n"


def _names(run: Run) -> list[str] | None:
    return [field["name"] for field in run.schema["fields"]] if run.schema else None


# ---- top ------------------------------------------------------------------------------------------


def _headline(run: Run, title: str) -> Html:
    metrics = run.metrics or {}
    data, environment = metrics.get("data") or {}, metrics.get("environment") or {}
    said = [
        f"{data.get('kind')}, {summary.whole(data.get('rows'))} rows" if data else None,
        environment.get("device"),
        str(environment["date"])[:19].replace("T", " ") if environment.get("date") else None,
    ]
    parts: list[object] = [
        node("h1", title),
        node("p", " · ".join(text for text in said if text), class_="sub"),
        _tiles(run) if run.finished else _unfinished(run),
    ]
    if run.broken_lines:
        lines = "1 line" if run.broken_lines == 1 else f"{run.broken_lines} lines"
        parts.append(
            node("p", f"{lines} of history.jsonl could not be read and are left out.", class_="banner")
        )
    return join(parts)


def _unfinished(run: Run) -> Html:
    if run.history:
        last = run.history[-1]
        place = f"{last['stage']}, step {last.get('step', 0):,} of {last.get('total', 0):,}"
        where = f" The newest record is {place}."
    else:
        where = " It has written no record yet."
    resume = f"ameir-fast search --data DIR --run {run.directory} --resume"
    return node(
        "p",
        node("b", "This run is not finished."),
        where + " What exists so far is shown below. Continue it with ",
        node("code", resume),
        class_="banner",
    )


def _tiles(run: Run) -> Html:
    metrics = run.metrics
    names = summary.metric_names(metrics)
    order = summary.ordered_variants(metrics)
    best = order[0]
    data = metrics["variants"][best]
    error = summary.standard_error(metrics, names[0]) if names else None
    tiles = []
    if names and names[0] in data:
        tiles.append(
            (
                f"{data[names[0]]['mean']:.4f}",
                f"{summary.heading(names[0])} of {best}"
                + (f", test's standard error {error:.4f}" if error is not None else ""),
            )
        )
        for baseline in summary.BASELINES:
            difference = summary.paired_difference(metrics, best, baseline, names[0])
            if difference:
                tiles.append(
                    (
                        f"{difference.mean:+.4f}",
                        f"over {baseline}, better in {difference.wins} of {difference.pairs}",
                    )
                )
    if data.get("parameters_outside_embedding") is not None:
        tiles.append(
            (summary.whole(data["parameters_outside_embedding"]), "parameters outside the embedding")
        )
    if data.get("samples_per_s"):
        tiles.append((summary.whole(data["samples_per_s"]), "samples a second"))
    if metrics.get("seconds"):
        tiles.append((show_seconds(metrics["seconds"]), "for the whole run"))
    return node(
        "div",
        [node("div", node("b", value), node("span", text), class_="tile") for value, text in tiles],
        class_="tiles",
    )


# ---- the architecture -----------------------------------------------------------------------------


def _architecture(run: Run) -> Html | None:
    if not run.architecture:
        return None
    if run.schema:
        drawing: object = draw(run.architecture, run.schema, (run.model or {}).get("embedding_dim"))
    else:
        drawing = node("p", summary.describe(run.architecture))
    others = [
        [name, repeat, summary.describe(architecture, run.schema)]
        for repeat, found in enumerate(_found(run))
        for name, architecture in found.items()
    ]
    return section(
        "Found architecture",
        drawing,
        node(
            "details",
            node("summary", "all that was found, by repeat"),
            table(["variant", "repeat", "architecture"], others, text_columns=(0, 2), class_="names"),
        )
        if others
        else None,
        node(
            "details",
            node("summary", "architecture.json"),
            node("pre", json.dumps(run.architecture, indent=None, ensure_ascii=False)),
        ),
        note="Blue parts were chosen by the search. A dot marks a field that takes part in an interaction; "
        "p0, p1, … are the products of those fields' embeddings.",
    )


def _found(run: Run) -> list[dict]:
    """The found architectures of each repeat: {variant: JSON form}."""
    found = (run.metrics or {}).get("found") or []
    return [one for one in (found if isinstance(found, list) else [found]) if isinstance(one, dict)]


# ---- results --------------------------------------------------------------------------------------


def _results(run: Run) -> Html | None:
    if not run.finished:
        return None
    metrics = run.metrics
    names = summary.metric_names(metrics)
    order = summary.ordered_variants(metrics)
    rows = summary.table_rows(metrics)
    main = names[0] if names else None
    error = summary.standard_error(metrics, main) if main else None
    plots = []
    if main:
        dots = [
            DotRow(
                name,
                tuple(summary.runs_of(metrics, name, main)),
                metrics["variants"][name][main]["mean"],
                COLORS.get(name, 0),
            )
            for name in order
            if metrics["variants"][name].get(main, {}).get("mean") is not None
        ]
        plots.append(dot_chart(dots, summary.heading(main), error))
    runs = max((len(summary.runs_of(metrics, name, main)) for name in order), default=0) if main else 0
    note = (
        f"{'One run' if runs == 1 else f'Mean ± deviation over {runs} runs'} with the same seeds, budget and "
        "early stop for every variant. "
    )
    if error is not None:
        note += (
            f"The test set alone leaves a standard error of {error:.4f} on the "
            f"{summary.heading(main)} of one model (whiskers); "
            "differences between models are paired run by run and much sharper. "
        )
    ranked = (metrics.get("data") or {}).get("ranked")
    if ranked:
        note += f"Each row's item was ranked among {ranked}. "
    note += (
        "Columns “vs” give the mean difference ± its standard error and in how many runs the variant wins."
    )
    classes = ["found" if name in summary.FOUND else None for name in order]
    return section(
        "Results on the test split",
        table(summary.table_header(metrics), rows, row_classes=classes, class_="dense"),
        node("div", plots, style="margin-top:18px"),
        _sampled(metrics, classes),
        note=note,
    )


def _sampled(metrics: dict, classes: list) -> Html | None:
    """Ranking metrics against sampled items, beside those over all items in the main table."""
    found = [
        figure(title[:1].upper() + title[1:], table(header, rows, row_classes=classes, class_="dense"))
        for title, header, rows in summary.sampled_tables(metrics)
    ]
    if not found:
        return None
    said = (
        "The same models on the same rows, ranked against sampled items that the user has not had, as in papers "
        "that do so. Sampled metrics flatter every model and may order models otherwise than all items do."
    )
    return join([node("p", said, class_="note"), grid(*found)])


# ---- rankings -------------------------------------------------------------------------------------


def _rankings(run: Run) -> Html | None:
    rankings = run.rankings or {}
    names = _names(run)
    cards = []
    behavior = _scored(rankings.get("behavior"))
    if behavior:
        rows = [
            [_score(one), " → ".join(summary.describe_block(block) for block in one.get("behavior", []))]
            for one in behavior[:TOP]
        ]
        cards.append(_ranking("Step 1 · behaviour", behavior, ["score", "blocks"], rows, (1,)))
    interactions = _scored(rankings.get("interactions"))
    if interactions:
        rows = []
        by_crosses = "log_loss" not in interactions[0] and "ndcg@5" not in interactions[0]
        header = ["z" if by_crosses else "score", "interaction", "order", "cycle"]
        if by_crosses:
            header.append("found by z")
        # What was found stands first: by crosses it may come late in the ranking.
        for one in sorted(interactions, key=lambda one: "found_by" not in one)[:TOP]:
            said = (
                " × ".join(one["names"])
                if one.get("names")
                else summary.describe_interaction(one["fields"], names)
            )
            rows.append([_score(one), said, one.get("order", len(one["fields"])), one.get("cycle", "–")])
            if by_crosses:
                rows[-1].append(_score({"score": one["found_by"]}) if "found_by" in one else "–")
        measure = "z over training and validation" if by_crosses else "score on validation"
        title = "Step 2 · interactions"
        if by_crosses and not any("found_by" in one for one in interactions):
            title += " (none found: no z is high enough)"
        cards.append(_ranking(title, interactions, header, rows, (1,), measure))
    mlp = _scored(rankings.get("mlp"))
    if mlp:
        rows = [[_score(one), summary.describe_mlp(one.get("mlp", []))] for one in mlp[:TOP]]
        cards.append(
            _ranking("Step 3 · MLP", mlp, ["score", "ratio and activation of each layer"], rows, (1,))
        )
    if not cards:
        return None
    return section(
        "What was ranked",
        grid(*cards, small=True),
        note=f"Every ranked child is a tick under the histogram; the best {TOP} are orange, and listed in steps 1 and 3; "
        "in step 2 those found come first. The first few of steps 1 and 3 were scored again on all of validation, the others on a part of it.",
    )


def _scored(ranking: object) -> list[dict]:
    entries = ranking if isinstance(ranking, list) else []
    return [one for one in entries if isinstance(one, dict) and isinstance(one.get("score"), (int, float))]


def _score(one: dict) -> str:
    return f"{one['score']:.4f}"


def _ranking(
    title: str,
    entries: list[dict],
    header: list[str],
    rows: list[list],
    text: tuple[int, ...],
    measure: str = "score on validation",
) -> Html:
    best, rest = entries[:TOP], entries[TOP:]
    scores = [one["score"] for one in (*best, *rest)]
    caption = f"{title}: {len(entries):,} ranked"
    return figure(
        caption,
        distribution(scores, measure, TOP, width=340),
        table(header, rows, text_columns=text),
    )


# ---- the race -------------------------------------------------------------------------------------


def _race(run: Run) -> Html | None:
    races = (run.rankings or {}).get("race") or {}
    cards = []
    for step, finalists in races.items():
        if not isinstance(finalists, list) or not finalists:
            continue
        series, rows = [], []
        for index, one in enumerate(finalists, 1):
            rounds = one.get("rounds") or []
            points = tuple((r["steps"], _race_score(r)) for r in rounds)
            kept = bool(one.get("kept"))
            said = _finalist(one.get("finalist") or {}, step)
            series.append(Series(said, points, 1 if kept else 0, not kept, "kept" if kept else "dropped"))
            last = f"{points[-1][1]:.4f}" if points else "–"
            rows.append([index, said, len(rounds), last, "kept" if kept else ""])
        cards.append(
            figure(
                f"Race of the {step} finalists",
                line_chart(series, "training steps", "score on validation"),
                table(["", "finalist", "rounds", "last", ""], rows, text_columns=(1, 4)),
            )
        )
    if not cards:
        return None
    return section(
        "Race of finalists",
        grid(*cards),
        note="Finalists are spread over the ranking and trained for a short while, each round anew; after each the "
        "weaker half leaves, and the last ones get a full training (of retrieval the zero path, too). The zero path and the "
        "fixed MLP always take part.",
    )


def _race_score(entry: dict) -> float:
    """The validation score of a round, whatever the deciding metric is called."""
    return next(value for key, value in entry.items() if key != "steps")


def _finalist(architecture: dict, step: str) -> str:
    if step == "mlp" and architecture.get("mlp"):
        return summary.describe_mlp(architecture["mlp"])
    if architecture.get("behavior"):
        return " → ".join(summary.describe_block(block) for block in architecture["behavior"])
    return summary.describe(architecture)


# ---- learning curves ------------------------------------------------------------------------------


def _curves(run: Run) -> Html | None:
    groups: dict[str, dict[tuple[str, int], list[dict]]] = {}
    for record in run.history:
        parts = record["stage"].split(".")
        group, member = (
            (parts[0], ".".join(parts[1:]))
            if parts[0] == "retrain"
            else (".".join(parts[:2]), ".".join(parts[2:]))
        )
        groups.setdefault(group, {}).setdefault((member, record.get("repeat", 0)), []).append(record)
    several = len({record.get("repeat", 0) for record in run.history}) > 1
    cards = []
    for group, members in groups.items():
        for key in CURVES:
            series = [
                _series(group, member, repeat, _points(records, key), several)
                for (member, repeat), records in members.items()
            ]
            chart = line_chart(series, "step", _curve_name(key), width=340, height=210)
            if chart:
                cards.append(figure(f"{group}: {_curve_name(key)}", chart))
    if not cards:
        return None
    return section(
        "Learning curves",
        grid(*cards, small=True),
        note="Validation while the supernet trains is the mean over a fixed set of children. In races and "
        "in retraining there is one line a training; of finalists that are trained together, their mean.",
    )


#: Recorded values that are drawn, where a stage has them.
CURVES = ("valid_auc", "valid_ndcg@5", "valid_log_loss", "loss")


def _curve_name(key: str) -> str:
    """``valid_log_loss`` → ``validation log loss``."""
    name = key.removeprefix("valid_").replace("_", " ").replace("auc", "AUC").replace("ndcg", "NDCG")
    return f"validation {name}" if key.startswith("valid_") else f"training {name}"


def _series(group: str, member: str, repeat: int, points: tuple, several: bool) -> Series:
    """A line of the chart of ``group``, coloured by variant in retraining and by cycle in step 2."""
    if group.endswith(".race"):
        number, _, length = member.partition(".")
        who = f"finalist {number}" if number.isdecimal() else "together"
        member = f"{who}, " + ("full training" if length == "full" else f"{length} epochs")
    name = f"{member}, repeat {repeat}" if several else member
    if group == "retrain":
        variant = member.split(".")[0]
        color = COLORS.get(variant, 0)
        return Series(name, points, color, color == 0, variant if color else "controls")
    if group.endswith(".race"):
        return Series(name, points, 0, True)
    cycle = int(member[1:]) if member[:1] == "c" and member[1:].isdecimal() else 0
    label = f"cycle {cycle}" if cycle else ""
    return Series(name or group, points, (cycle - 1) % 8 + 1 if cycle else 1, several, label)


def _points(records: Iterable[dict], key: str) -> tuple[tuple[float, float], ...]:
    """(step, value) in step order. A resumed run repeats the steps after its checkpoint: the newest value
    wins."""
    values = {
        record["step"]: record[key]
        for record in records
        if isinstance(record.get(key), (int, float)) and isinstance(record.get("step"), (int, float))
    }
    return tuple(sorted(values.items()))


# ---- the rest -------------------------------------------------------------------------------------


def _steps(run: Run) -> Html | None:
    steps = (run.metrics or {}).get("steps") or {}
    timed = [
        (name, data)
        for name, data in steps.items()
        if isinstance(data, dict) and data.get("seconds") is not None
    ]
    if not timed:
        return None
    bars = bar_chart([(name, float(data["seconds"]), show_seconds(data["seconds"])) for name, data in timed])
    rows = [
        [
            name,
            ", ".join(
                f"{_words(key)} {_value(value)}" for key, value in data.items() if key not in ("seconds",)
            ),
        ]
        for name, data in timed
    ]
    return section(
        "Time of each step",
        grid(figure("wall seconds", bars), table(["step", "what it did"], rows, text_columns=(0, 1))),
    )


def _budget(run: Run) -> Html | None:
    budget = (run.metrics or {}).get("budget")
    if not budget:
        return None
    bars = bar_chart([(name, float(cost), f"{cost:.1f}") for name, cost in budget["parts"].items()])
    facts = {key: budget.get(key) for key in ("asked", "trainings", "seconds_per_training", "spent_seconds")}
    paced = {f"{name}, seed {seed}": value for seed, settings in budget.get("paced", {}).items() for name, value in settings.items()}
    return section(
        "Budget",
        grid(figure("planned, in trainings of one model", bars), figure("Its settings replace those of the configuration", _pairs({**facts, **budget["settings"]})),
             *([figure("Races, by what was left of the time when they came", _pairs(paced))] if paced else [])),
    )


def _data(run: Run) -> Html | None:
    data = (run.metrics or {}).get("data")
    schema = run.schema
    if not data and not schema:
        return None
    parts: list[object] = []
    if data:
        parts.append(figure("Data set", _pairs(data)))
    if schema:
        sizes = {one["name"]: one["size"] for one in schema["vocabularies"]}
        targets = set(schema["target"])
        rows = [
            [
                one["name"],
                "field, target" if one["name"] in targets else "field",
                one["kind"].replace("_", "-"),
                one["vocabulary"],
                f"{sizes[one['vocabulary']]:,}",
            ]
            for one in schema["fields"]
        ]
        rows += [
            [one["name"], "history", "categorical", one["vocabulary"], f"{sizes[one['vocabulary']]:,}"]
            for one in schema["behavior"]
        ]
        header = ["name", "role", "kind", "vocabulary", "ids"]
        parts.append(figure("Features", table(header, rows, text_columns=(0, 1, 2, 3))))
    return section("Data", grid(*parts))


def _conditions(run: Run) -> Html | None:
    environment = (run.metrics or {}).get("environment")
    parts = []
    if environment:
        parts.append(figure("Environment", _pairs(environment)))
    if run.config:
        parts.append(figure("Configuration", _pairs(run.config)))
    return section("Conditions", grid(*parts)) if parts else None


def _pairs(data: dict) -> Html:
    """Nested settings as a table of dotted names and values."""
    return table([], list(_flat(data)), text_columns=(0, 1), class_="pairs")


def _flat(data: dict, prefix: str = "") -> Iterable[list[str]]:
    for key, value in data.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield [f"{prefix}{key}", _value(value)]


def _value(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return str(value) if abs(value) < 10_000 else f"{value:,}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_value(one) for one in value)
    return str(value)


def _words(name: str) -> str:
    return name.replace("_", " ")
