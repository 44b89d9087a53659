"""Step 2 of ``bench population``: what 50 kept interactions and the fields of the ``alimama`` shape make in one cycle."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from .. import Batch, SearchSpace, Supernet
from ..interaction_candidates import InteractionCandidates
from ..metrics import auc_columns, log_loss_columns
from ..search.interactions import expand
from .population_turns import Turns, alone
from .suites import EMBEDDING_DEVIATION, alimama

KEPT = 50
EAGER, QUICK_EAGER = 48, 12  # candidates that are also scored one after the other
ROUNDS = 3


def rows(layers: int | None, children: int | None, samples: int, quick: bool) -> Iterator[dict]:
    from .population import labelled_batches, peak_of

    tenth = max(1, (children or len(_candidates())) // 10)
    peaks = {"tenth": peak_of(_once, "shared", tenth, samples),
             **{name: peak_of(_once, name, children, samples) for name in ("eager", "shared")}}
    batches = labelled_batches(alimama()[0].schema, samples)
    candidates = _candidates(children)
    net = _net(candidates)
    few = candidates[:QUICK_EAGER if quick else EAGER]
    turns = Turns(batches, {"eager": [lambda b, c=c: net.interaction_logit(b, c) for c in few]}, len(candidates),
                  lambda: _together(net, candidates, batches),
                  lambda n: torch.cat([InteractionCandidates(net, candidates[:n]).logits(b) for b in batches], 1))
    turns.measure(1 if quick else ROUNDS)
    for row in turns.rows():
        row["peak_bytes"] = peaks[row["method"]]
        if row["method"] == "shared":
            row["peak_bytes_of_a_tenth"] = peaks["tenth"]
        yield {"case": f"{KEPT} x {net.schema.num_fields}", "samples": samples, "embedding_dim": net.embedding_dim, **row}


def _candidates(count: int | None = None) -> list[tuple[int, ...]]:
    """All that one cycle ranks, or so many of them, at random: of 50 kept ones of orders 1 to 3."""
    fields = alimama()[0].schema.num_fields
    draw = np.random.default_rng(0)
    pairs = expand([(f,) for f in range(fields)], fields)
    more = [c for c in expand(pairs, fields) if len(c) > 1]
    kept = [(f,) for f in range(fields)] + [more[i] for i in draw.permutation(len(more))[:KEPT - fields]]
    found = expand(kept, fields)
    return [found[i] for i in draw.permutation(len(found))[:count]]


def _net(candidates: list[tuple[int, ...]]) -> Supernet:
    case = alimama()[0]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Supernet(SearchSpace(case.schema), case.embedding_dim)
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


def _once(method: str, count: int | None, samples: int) -> None:
    """What a process whose memory is measured does: all candidates together, or one of them alone."""
    from .population import labelled_batches

    batches, candidates = labelled_batches(alimama()[0].schema, samples), _candidates(count)
    net = _net(candidates)
    if method == "shared":
        _together(net, candidates, batches)
    else:
        alone(lambda b: net.interaction_logit(b, candidates[0]), batches, torch.cat([b.label for b in batches]))
