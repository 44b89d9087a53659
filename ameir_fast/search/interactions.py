"""Step 2: interactions by one-shot training inside sequential model-based search (paper section 2.3)."""

from __future__ import annotations

from functools import cached_property

import torch

from .. import metrics
from ..interaction_candidates import InteractionCandidates
from ..progress import count
from ..space.architecture import interaction_key
from .context import Context
from .crosses import SIGNIFICANT, Crosses, nothing_added
from .objective import CtrObjective
from .samplers import make_draws
from .seeds import generator
from .training import fit

Interaction = tuple[int, ...]


def expand(kept: list[Interaction], fields: int) -> list[Interaction]:
    """Every kept interaction times every field, and the parents; repeats dropped; by (order, fields).

    Multiplying a parent by a field of its own gives the parent again.
    """
    found = {tuple(sorted({*parent, f})) for parent in kept for f in range(fields)} | set(kept)
    return sorted(found, key=interaction_key)


def search_interactions(context: Context) -> dict:
    """All cycles. ``ranking`` holds the last cycle's candidates best first; ``found`` at most M of order ≥ 2: the best by
    shared weights; by crosses those that add to each other, which may be fewer, or none. In the ranking they have
    ``found_by``, the score that they were chosen by; pairs found by crosses may stand at its end."""
    config, fields = context.config, context.space.schema.num_fields
    scope = context.scope.scope("interactions")
    by_data = context.ranks_by_crosses
    judge = ByCrosses(context) if by_data else ByWeights(context)
    kept: list[Interaction] = [(f,) for f in range(fields)]
    steps = ranked = 0
    seconds = device_seconds = 0.0
    ranking: list[dict] = []
    for cycle in range(1, config.cycles + 1):
        candidates = expand(kept, fields)
        if cycle == 1 or not by_data:  # crosses read the base alone
            outcome = train_candidates(context, scope.scope("train", f"c{cycle}"), [] if by_data else candidates, cycle)
            steps += outcome.steps
            seconds, device_seconds = seconds + outcome.seconds, device_seconds + outcome.device_seconds
        ranking = scope.scope("rank", f"c{cycle}").result("scores", lambda c=candidates: judge.rank(c))
        kept = [tuple(r["fields"]) for r in judge.distinct(ranking)[:config.keep_interactions]]
        context.net.keep_interactions(kept)
        for r in ranking:
            r["cycle"] = cycle
        scope.scope("rank", f"c{cycle}").log(step=cycle, total=config.cycles, best=ranking[0]["score"])
        ranked += len(candidates)
    products = [r for r in ranking if len(r["fields"]) >= 2]
    chosen = scope.result("found", lambda: judge.choose(products, context.space.max_interactions))
    found = {tuple(one["fields"]): one for one in chosen}
    for r in ranking:
        r.update(found.get(tuple(r["fields"]), {}))
    listed = {tuple(r["fields"]) for r in ranking}
    for fields, one in found.items():
        if fields not in listed:  # a pair that was left behind in an earlier cycle
            ranking.append({**one, "cycle": 1})
    names = [f.name for f in context.space.schema.fields]
    for r in ranking:
        r.update(names=[names[f] for f in r["fields"]], order=len(r["fields"]))
    return {"ranking": ranking, "found": sorted(found, key=interaction_key), "train_steps": steps,
            "candidates_ranked": ranked, "seconds": seconds, "device_seconds": device_seconds}


def train_candidates(context: Context, scope, candidates: list[Interaction], cycle: int):
    """``updates_per_interaction`` updates of every candidate, ``interactions_per_step`` a step.

    Each of a step's interactions sees its own part of the batch, so that the base projection and the lookup
    serve all of them. The first cycle begins with a warm-up of the base alone. The embedding is step 1's and
    stays as it is (without behaviour the warm-up trains it): hundreds of candidates take many epochs, in which
    it would learn the training rows by heart and leave step 3 a ruin.
    """
    config, net = context.config, context.net
    net.add_interactions(candidates, generator(config.seed, *scope.names, "projections"))
    together = min(config.interactions_per_step, len(candidates))
    warmup = context.epochs(config.interaction_warmup_epochs) if cycle == 1 and config.interaction_warmup_epochs else 0
    rounds = -(-config.updates_per_interaction * len(candidates) // together) if candidates else 0
    draws = make_draws("fair" if config.sampler == "fair" else "uniform", [len(candidates)], rounds * together,
                       generator(config.seed, *scope.names, "draws"))

    def forward(step: int, batch, items):
        net.embedding.weight.requires_grad_(step < warmup and not context.space.schema.behavior)
        if step < warmup:
            return net.interaction_logit(batch, None, items)
        start = (step - warmup) * together
        return net.interaction_logit(batch, [candidates[d] for d, in draws[start:start + together]], items)

    watched = candidates[:: max(1, len(candidates) // 8)]
    net.dropout = config.dropout
    try:
        return fit(context.task, net, scope, total=warmup + rounds, learning_rate=config.learning_rate,
                   forward=forward, keep_best=False,
                   validate=(lambda: _mean(score_candidates(context, watched))) if watched else None)
    finally:
        net.embedding.weight.requires_grad_(True)


def _mean(found: list[dict]) -> dict[str, float]:
    return {k: sum(f[k] for f in found) / len(found) for k in found[0]}


@torch.no_grad()
def score_candidates(context: Context, candidates: list[Interaction]) -> list[dict[str, float]]:
    """Validation metrics of every candidate on the subset."""
    net, task = context.net, context.task
    batches = task.held_out("valid", context.config.validation_subset)
    net.eval()
    if isinstance(task.objective, CtrObjective):
        together = InteractionCandidates(net, candidates)
        logits = torch.cat([together.logits(b).cpu() for b in batches], 1)
        label = torch.cat([b.label.cpu() for b in batches])
        return [{"auc": float(a), "log_loss": float(b)} for a, b in
                zip(metrics.auc_columns(logits, label), metrics.log_loss_columns(logits, label), strict=True)]
    return [task.objective.evaluate(lambda b, items, c=c: net.interaction_logit(b, c, items), batches)
            for c in candidates]


class ByWeights:
    """Candidates judged with shared weights on the validation subset, as in the paper. Candidates with their scores,
    best first, are a ranking."""

    def __init__(self, context: Context):
        self.context = context

    def rank(self, candidates: list[Interaction]) -> list[dict]:
        found = score_candidates(self.context, candidates)
        return _sorted([{"score": f[self.context.primary], **f, "fields": list(c)}
                        for f, c in zip(found, candidates, strict=True)])

    def distinct(self, ranking: list[dict]) -> list[dict]:
        """The entries of a ranking that may be kept."""
        return ranking

    def choose(self, ranked: list[dict], most: int) -> list[dict]:
        """Of the last cycle's candidates of order 2 or more, best first, those found: ``fields``, ``score``, and
        ``found_by``, the score that they were chosen by."""
        return [{"fields": r["fields"], "score": r["score"], "found_by": r["score"]} for r in ranked[:most]]


class ByCrosses:
    """The same by training and validation rows (crosses.py), which are read once and only if something is not stored
    yet."""

    def __init__(self, context: Context):
        self.context = context
        self.known: dict[Interaction, float] = {}

    @cached_property
    def crosses(self) -> Crosses:
        return Crosses.of(self.context)

    def rank(self, candidates: list[Interaction]) -> list[dict]:
        fresh = [c for c in candidates if c not in self.known]
        progress = self.context.task.progress
        progress.start("interactions.rank", len(fresh), "candidate")
        for done, candidate in enumerate(fresh, start=1):
            self.known[candidate] = self.crosses.score(candidate)
            progress.update(done)
        progress.finish(f"{count(len(fresh), 'candidate')} by {self.crosses.values[0].shape[0]:,} rows")
        return _sorted([{"score": self.known[c], "fields": list(c)} for c in candidates])

    def distinct(self, ranking: list[dict]) -> list[dict]:
        return nothing_added(ranking)

    def choose(self, ranked: list[dict], most: int) -> list[dict]:
        progress = self.context.task.progress
        progress.start("interactions.choose", most, "interaction")
        kept = [tuple(r["fields"]) for r in self.distinct(ranked)[:self.context.config.keep_interactions]]
        found = self.crosses.choose(kept, most, progress.update, [tuple(r["fields"]) for r in ranked])
        progress.finish(f"{count(len(found), 'interaction')} that {'adds' if len(found) == 1 else 'add'} something"
                        if found else f"none scores {SIGNIFICANT:g}")
        return [{"fields": list(fields), "score": self.crosses.score(fields), "found_by": z} for fields, z in found]


def _sorted(entries: list[dict]) -> list[dict]:
    """Best first; ties by lower (order, fields)."""
    return sorted(entries, key=lambda r: (-r["score"], len(r["fields"]), r["fields"]))
