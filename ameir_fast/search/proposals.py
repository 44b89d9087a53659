"""Ranking of children with shared weights: a strategy proposes, the supernet scores, nothing scored is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..errors import InputError
from ..space import Architecture
from .context import Context
from .seeds import generator
from .store import Scope
from .strategy import RandomStrategy

CHUNK = 32         # children that a strategy proposes at a time, and of one that may look at their scores are scored
POPULATION = 4096  # children scored together, and then stored: a killed run loses so many at most
FRUITLESS_ROUNDS = 20


def rank_children(context: Context, scope: Scope, *, count: int, always: Sequence, sample: Callable,
                  mutate: Callable, to_arch: Callable[[object], Architecture],
                  to_json: Callable[[object], object],
                  allowed: Callable[[object], bool] = lambda child: True,
                  choices: Sequence[Sequence] | None = None) -> list[dict]:
    """``count`` distinct children (``always`` first) scored on the validation subset, best first.

    The scores are stored chunk by chunk: of children that a strategy proposes as they come, so that it sees them; of known
    ones, and such as are drawn at random, 4096 at a time, because they share more work.
    Proposals are a function of the seed, the round and the scores so far, so a resumed ranking proposes what the
    interrupted one would have. The top k are re-evaluated on all of validation and lead the ranking in that order, as
    in the paper. Entries hold ``score``, the metrics and the child under the step's name. Raises ``InputError`` when
    no child is ``allowed``. ``choices``: of each place of a child, where all combinations are children; the first ones are
    those that do nothing.
    """
    config, primary = context.config, context.primary
    ledger = _Ledger(context, scope, to_arch, to_json)
    context.task.progress.start(scope.stage, count, unit="child", done=min(count, len(ledger.stored)))
    pending = list(dict.fromkeys(always))
    expands = choices is not None and hasattr(context.strategy, "expand")
    looks = expands or getattr(context.strategy.propose, "__func__", None) is not RandomStrategy.propose
    number = fruitless = 0
    while len(ledger.seen) + len(pending) < count and fruitless < FRUITLESS_ROUNDS:
        number += 1
        g = generator(config.seed, *scope.names, "round", number)
        if expands:
            proposed = dict.fromkeys(context.strategy.expand(choices, dict(ledger.seen), g, count))
        else:
            proposed = dict.fromkeys(context.strategy.propose(sample, mutate, dict(ledger.seen), g, CHUNK))
        fresh = [c for c in proposed if c not in ledger.seen and c not in pending and allowed(c)]
        fruitless = 0 if fresh else fruitless + 1
        pending = (pending + fresh)[:count - len(ledger.seen)]
        if pending and (expands or len(pending) >= (CHUNK if looks else POPULATION)):
            ledger.score(pending)
            pending = []
    if pending:
        ledger.score(pending)
    if not ledger.seen:
        raise InputError(f"{scope.stage}: no child satisfies the constraints; raise max_parameters")
    order = sorted(ledger.children, key=lambda c: -ledger.seen[c])

    def again() -> list[dict]:
        found = context.score_children([to_arch(c) for c in order[:config.top_k]], None)
        return sorted(({**ledger.entries[c], **f, "subset_score": ledger.seen[c], "score": f[primary]}
                       for c, f in zip(order, found, strict=False)), key=lambda r: -r["score"])

    ranking = scope.result("top", again) + [ledger.entries[c] for c in order[config.top_k:]]
    work = context.task.progress.metrics.get("shared_work")
    context.task.progress.finish(f"{len(ranking)} children, best {primary} {ranking[0]['score']:.4f}"
                                 + ("" if work is None else f", shared_work {work}"))
    step = scope.names[1]
    return [{**{k: v for k, v in r.items() if k != "child"}, step: r["child"]} for r in ranking]


class _Ledger:
    """Scores by child, in the order of scoring; those of an interrupted run are taken from its file."""

    def __init__(self, context: Context, scope: Scope, to_arch: Callable, to_json: Callable):
        self.context, self.scope, self.to_arch, self.to_json = context, scope, to_arch, to_json
        self.stored: list[dict] = scope.load("scores") or []
        self.seen: dict = {}
        self.entries: dict = {}

    @property
    def children(self) -> list:
        return list(self.seen)

    def score(self, children: list) -> None:
        for start in range(0, len(children), POPULATION):
            self._score(children[start:start + POPULATION])

    def _score(self, children: list) -> None:
        start, primary, progress = len(self.seen), self.context.primary, self.context.task.progress
        shared, known = {}, len(self.stored) - start
        new = children[max(0, known):]
        if new:
            began = time.monotonic()
            best = {} if not self.seen else {primary: max(self.seen.values())}
            found, times = self.context.score_population([self.to_arch(c) for c in new], self.context.config.validation_subset,
                                                         on_child=lambda done: progress.update(len(self.stored) + done, **best))
            rate = len(new) / max(time.monotonic() - began, 1e-9)
            self.stored += [{"score": f[primary], **f, "child": self.to_json(c)} for c, f in zip(new, found, strict=True)]
            self.scope.save("scores", self.stored)
            self.scope.log(step=start + len(children), best=max(r["score"] for r in self.stored),
                           children_per_s=round(rate, 1), shared_work=round(times, 2))
            shared = {"shared_work": f"{times:.1f}x"}
        for child, entry in zip(children, self.stored[start:], strict=False):
            self.seen[child], self.entries[child] = entry["score"], entry
        progress.update(len(self.seen), **{primary: max(self.seen.values())}, **shared)
