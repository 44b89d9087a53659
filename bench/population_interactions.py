"""Step 2 of ``bench population``: what 50 kept interactions and the fields of the ``alimama`` shape make in one cycle,
with that shape's embeddings and as wide ones as the search's default."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .. import Batch, SearchSpace, Supernet
from ..interaction_candidates import InteractionCandidates
from ..metrics import auc_columns, log_loss_columns
from ..search import SearchConfig
from ..search.interactions import expand
from .population_turns import Turns, alone
from .suites import EMBEDDING_DEVIATION, alimama

KEPT = 50
EAGER, QUICK_EAGER = 48, 12  # candidates that are also scored one after the other
ROUNDS = 3


def rows(layers: int | None, children: int | None, samples: int, quick: bool) -> Iterator[dict]:
    widths = [alimama()[0].embedding_dim] if quick else [alimama()[0].embedding_dim, SearchConfig.embedding_dim]
    peaks = {width: _peaks(width, children, samples) for width in widths}  # before there is much here
    for width in widths:
        yield from _of_width(width, children, samples, quick, peaks[width])


def _peaks(width: int, count: int | None, samples: int) -> dict[str, int]:
    from .population import peak_of

    tenth = max(1, (count or len(_candidates())) // 10)
    return {"tenth": peak_of(_once, "shared", width, tenth, samples),
            **{name: peak_of(_once, name, width, count, samples) for name in ("eager", "shared")}}


def _of_width(width: int, count: int | None, samples: int, quick: bool, peaks: dict[str, int]) -> Iterator[dict]:
    from .population import labelled_batches

    batches = labelled_batches(alimama()[0].schema, samples)
    candidates = _candidates(count)
    net = _net(candidates, width)
    few = candidates[:QUICK_EAGER if quick else EAGER]
    turns = Turns(batches, {"eager": [lambda b, c=c: net.interaction_logit(b, c) for c in few]}, len(candidates),
                  lambda: _together(net, candidates, batches),
                  lambda n: torch.cat([InteractionCandidates(net, candidates[:n]).logits(b) for b in batches], 1))
    turns.measure(1 if quick else ROUNDS)
    for row in turns.rows():
        row["peak_bytes"] = peaks[row["method"]]
        if row["method"] == "shared":
            row["peak_bytes_of_a_tenth"] = peaks["tenth"]
        yield {"case": f"{KEPT}x{net.schema.num_fields} K={width}", "samples": samples, "embedding_dim": width, **row}


def _candidates(count: int | None = None) -> list[tuple[int, ...]]:
    """All that one cycle ranks, or so many of them, at random: of 50 kept ones of orders 1 to 3."""
    fields = alimama()[0].schema.num_fields
    draw = np.random.default_rng(0)
    pairs = expand([(f,) for f in range(fields)], fields)
    more = [c for c in expand(pairs, fields) if len(c) > 1]
    kept = [(f,) for f in range(fields)] + [more[i] for i in draw.permutation(len(more))[:KEPT - fields]]
    found = expand(kept, fields)
    return [found[i] for i in draw.permutation(len(found))[:count]]


def _net(candidates: list[tuple[int, ...]], width: int) -> Supernet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(SearchSpace(alimama()[0].schema), width)
        with torch.no_grad():
            net.embedding.weight.normal_(0, EMBEDDING_DEVIATION)
        net.add_interactions(candidates)
    return net.eval()


@torch.no_grad()
def _together(net: Supernet, candidates: list, batches: list[Batch]) -> tuple:
    """As the search scores them."""
    together = InteractionCandidates(net, candidates)
    logits = torch.cat([together.logits(batch) for batch in batches], 1)
    label = torch.cat([batch.label for batch in batches])
    return auc_columns(logits, label), log_loss_columns(logits, label)


def _once(method: str, width: int, count: int | None, samples: int) -> None:
    """What a process whose memory is measured does: all candidates together, or one of them alone."""
    from .population import labelled_batches

    batches, candidates = labelled_batches(alimama()[0].schema, samples), _candidates(count)
    net = _net(candidates, width)
    if method == "shared":
        _together(net, candidates, batches)
    else:
        alone(lambda b: net.interaction_logit(b, candidates[0]), batches, torch.cat([b.label for b in batches]))
