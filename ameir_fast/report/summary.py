"""The final table as plain data: shared by the terminal, the HTML page and whoever reads ``--json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: Metrics that are better when smaller.
LOWER_IS_BETTER = ("log_loss",)
#: The metric that decides, first one present.
PRIMARY = ("auc", "ndcg@5", "hr@5")
#: What the search finds, most complete first.
FOUND = ("AMEIR-C", "AMEIR-B", "AMEIR-A", "AMEIR-I")
#: Hand-made models, in the order of the table.
FIXED = ("DIN", "SASRec", "NextItNet", "GRU4Rec", "POP", "DeepFM", "Wide&Deep", "DNN-pool", "DNN", "FM", "LR")
#: What paired differences are taken against, where the run has it.
BASELINES = ("DIN", "SASRec", "DNN", "DeepFM")


@dataclass(frozen=True)
class Difference:
    """Paired difference of a variant from a baseline: the same seeds, run by run."""

    baseline: str
    mean: float
    standard_error: float | None  # None with a single pair
    wins: int  # runs in which the variant is the better one
    pairs: int

    def __str__(self) -> str:
        error = "" if self.standard_error is None else f" ± {self.standard_error:.4f}"
        won = f" ({self.wins}/{self.pairs})" if self.pairs > 1 else ""
        return f"{self.mean:+.4f}{error}{won}"


def metric_names(metrics: dict, sampled: bool = False) -> list[str]:
    """Names of the measured metrics, the deciding one first; ``sampled``: instead those against sampled items."""
    names: dict[str, None] = {}
    for variant in (metrics.get("variants") or {}).values():
        for name, value in variant.items():
            if isinstance(value, dict) and "mean" in value and sampled == bool(sampled_from(name)):
                names[name] = None
    first = [name for name in PRIMARY if name in names]
    return first[:1] + [name for name in names if name not in first[:1]]


def sampled_from(metric: str) -> str:
    """How the items of a sampled metric were drawn (``uniform100`` of ``hr@5_uniform100``); empty for all others."""
    name, _, sample = metric.partition("_")
    return sample if "@" in name else ""


def heading(metric: str) -> str:
    """A metric's name for people: ``test AUC``, ``test NDCG@5``."""
    name = metric.partition("_")[0].upper() if "@" in metric else metric
    return HEADINGS.get(metric, f"test {name}")


def standard_error(metrics: dict, metric: str) -> float | None:
    """The test's own standard error of a metric, where the run states one."""
    value = (metrics.get("standard_error") or {}).get(metric)
    return float(value) if isinstance(value, (int, float)) else None


def ordered_variants(metrics: dict) -> list[str]:
    """AMEIR variants first (C, B, A: the most complete on top), then the hand-made ones, then controls in the
    file's order."""
    names = list(metrics.get("variants") or {})
    found = [n for n in FOUND if n in names]
    fixed = [n for n in FIXED if n in names]
    return found + fixed + [n for n in names if n not in found and n not in fixed]


def runs_of(metrics: dict, variant: str, metric: str) -> list[float]:
    """The runs of a variant; empty where it has none."""
    value = metrics["variants"][variant].get(metric) or {}
    runs = value.get("runs")
    if runs is None:
        return [value["mean"]] if "mean" in value else []
    return list(runs)


def paired_difference(metrics: dict, variant: str, baseline: str, metric: str) -> Difference | None:
    """Difference variant − baseline over the runs both have, or None where there is no such pair.

    Runs are aligned by position: every variant of a run directory has been trained with the same list of
    seeds.
    """
    variants = metrics.get("variants") or {}
    if variant == baseline or variant not in variants or baseline not in variants:
        return None
    pairs = list(zip(runs_of(metrics, variant, metric), runs_of(metrics, baseline, metric), strict=False))
    if not pairs:
        return None
    sign = -1 if metric in LOWER_IS_BETTER else 1
    gaps = [ours - theirs for ours, theirs in pairs]
    mean = sum(gaps) / len(gaps)
    return Difference(
        baseline, mean, standard_error_of_mean(gaps), sum(sign * gap > 0 for gap in gaps), len(gaps)
    )


def standard_error_of_mean(values: Sequence[float]) -> float | None:
    """Sample deviation over √n; None for fewer than two values."""
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def mean_and_deviation(value: dict | None, digits: int = 4) -> str:
    """``0.7581 ± 0.0010``; without the deviation for a single run; a dash for nothing."""
    if not value or value.get("mean") is None:
        return "–"
    several = len(value.get("runs") or ()) != 1 and value.get("std") is not None
    return f"{value['mean']:.{digits}f}" + (f" ± {value['std']:.{digits}f}" if several else "")


def whole(value: float | None) -> str:
    """A count with thousands separated by commas; a dash for nothing."""
    return "–" if value is None else f"{value:,.0f}"


HEADINGS = {"auc": "test AUC", "log_loss": "test log loss", "valid": "validation"}


def table_header(metrics: dict) -> list[str]:
    """Headings that go with :func:`table_rows`."""
    names = metric_names(metrics)
    against = [f"vs {name}" for name in BASELINES if name in (metrics.get("variants") or {})]
    return [
        "variant",
        *[heading(name) for name in names],
        *against,
        "parameters",
        "outside embedding",
        "samples/s",
    ]


def table_rows(metrics: dict) -> list[list[str]]:
    """One row a variant, as text: metrics, paired differences of the deciding one, sizes and speed."""
    names = metric_names(metrics)
    variants = metrics.get("variants") or {}
    rows = []
    for variant in ordered_variants(metrics):
        data = variants[variant]
        row = [variant, *[mean_and_deviation(data.get(name)) for name in names]]
        for baseline in BASELINES:
            if baseline in variants:
                difference = paired_difference(metrics, variant, baseline, names[0]) if names else None
                row.append(str(difference) if difference else "–")
        row += [
            whole(data.get("parameters")),
            whole(data.get("parameters_outside_embedding")),
            whole(data.get("samples_per_s")),
        ]
        rows.append(row)
    return rows


def sampled_tables(metrics: dict) -> list[tuple[str, list[str], list[list[str]]]]:
    """A table for each way of sampling items, where the run ranked against samples: title, header, rows."""
    names = metric_names(metrics, sampled=True)
    tables = []
    for sample in dict.fromkeys(sampled_from(name) for name in names):
        own = [name for name in names if sampled_from(name) == sample]
        rows = [
            [variant, *[mean_and_deviation(metrics["variants"][variant].get(name)) for name in own]]
            for variant in ordered_variants(metrics)
        ]
        tables.append((describe_sample(sample), ["variant", *[heading(name) for name in own]], rows))
    return tables


def describe_sample(sample: str) -> str:
    """``uniform100`` → ``against 100 items drawn uniformly``."""
    kind = sample.rstrip("0123456789")
    how = {"uniform": "drawn uniformly", "popular": "drawn by popularity"}.get(kind, kind)
    return f"against {sample[len(kind) :]} items {how}"


def describe_block(block: dict) -> str:
    """``self_attn2 (layer_norm, relu)``; a zero block is just ``zero``."""
    if block.get("layer") == "zero":
        return "zero"
    return f"{block.get('layer')} ({block.get('norm')}, {block.get('activation')})"


def describe_mlp(mlp: Sequence[dict]) -> str:
    """``0.6 relu, 0.3 dice``, or fixed widths ``200 relu, 80 relu``."""

    def size(layer: dict) -> object:
        return layer["width"] if layer.get("ratio") is None else layer["ratio"]

    return ", ".join(f"{size(layer)} {layer.get('activation')}" for layer in mlp)


def describe_interaction(fields: Sequence[int], names: Sequence[str] | None) -> str:
    """``item × gender``; positions where the names are not known."""
    return " × ".join(names[i] if names and 0 <= i < len(names) else f"field {i}" for i in fields)


def describe(architecture: dict, schema: dict | None = None) -> str:
    """An architecture in one line, with field names where a schema says them."""
    names = [field["name"] for field in schema["fields"]] if schema else None
    parts = []
    if architecture.get("behavior"):
        parts.append("blocks " + " → ".join(describe_block(block) for block in architecture["behavior"]))
    if architecture.get("interactions"):
        parts.append(
            "interactions "
            + ", ".join(describe_interaction(fields, names) for fields in architecture["interactions"])
        )
    if architecture.get("mlp"):
        parts.append("mlp " + describe_mlp(architecture["mlp"]))
    parts.append("SE shortcut" if architecture.get("shortcut", "se") == "se" else "no shortcut")
    return "; ".join(parts)
