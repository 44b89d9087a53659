"""Rows with planted truth: ids without any dependence between fields, and a logit that is known exactly.

Fields are drawn independently, ids come in pairs of equal frequency, and of each pair one has the hidden level +1, the
other -1 (a last id without a partner has 0). A product of levels is therefore as likely positive as negative whatever a
proper part of its fields: an interaction of order r is invisible to lower orders, not merely weak in them. Behaviour signals are built with the same
care; what each of them is invisible to is said beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import InputError
from .order import mixed
from .plan import PARTS, SplitPlan

#: Rows drawn with one generator: the unit of determinism.
BLOCK = 1 << 16
BEHAVIORS = ("sum", "order", "target")
#: Classes of items around the circle of the ``order`` signal: with two of them it would depend on the first and the
#: last item alone.
CIRCLE = 3
#: Kinds of items that the ``target`` signal compares.
KINDS = 8
_PILOT_ROWS = BLOCK


@dataclass(frozen=True)
class Interaction:
    """A product of hidden levels of ``fields`` (numbers), with its strength in the logit."""

    fields: tuple[int, ...]
    strength: float = 1.0


@dataclass(frozen=True)
class SyntheticOptions:
    """What to draw. Strengths are standard deviations of their part of the logit, over rows.

    Args:
        vocabulary: ids of each field beside id 0, one number for all fields or one a field.
        exponent: of the ids' frequencies, rank^-exponent with two ids a rank; 0 is uniform.
        interactions: of order 2 or more.
        heredity: mean of the levels that an interaction multiplies, in units of their deviation. With h > 0 every
            part of k of its r fields has an effect of its own, h^(r-k) of the interaction's strength, as factors
            of real data have; with 0 there is nothing to be seen in any part.
        main: strength of all fields' own effects together.
        behavior: any of ``BEHAVIORS``.
        history_mean: mean number of a row's earlier events (before the cut at ``max_history``); 0: no history.
        noise: share of the labels that are drawn at the base rate, whatever the row.
        parts: shares of the rows for train, valid and test, one after another.
    """

    rows: int = 1_000_000
    fields: int = 12
    vocabulary: tuple[int, ...] = (100,)
    exponent: float = 1.0
    interactions: tuple[Interaction, ...] = (Interaction((1, 2)), Interaction((3, 4, 5)), Interaction((6, 7, 8, 9)))
    heredity: float = 0.0
    main: float = 0.3
    behavior: tuple[str, ...] = ()
    behavior_strength: float = 1.0
    history_mean: float = 15.0
    max_history: int = 20
    noise: float = 0.0
    base_rate: float = 0.3
    seed: int = 0
    parts: tuple[float, ...] = PARTS

    def __post_init__(self):
        at_least = {"rows": 10, "fields": 1, "max_history": 1, "exponent": 0, "main": 0, "heredity": 0,
                    "behavior_strength": 0, "history_mean": 0, "noise": 0}
        for name, least in at_least.items():
            if not least <= getattr(self, name) < np.inf:
                raise InputError(f"{name} {getattr(self, name)!r} is not a number >= {least}")
        if self.noise >= 1 or not 0 < self.base_rate < 1:
            raise InputError(f"noise {self.noise!r} lies outside [0, 1) or base_rate {self.base_rate!r} outside (0, 1)")
        SplitPlan("order", self.parts)  # refuses parts that cannot be
        if len(self.vocabulary) not in (1, self.fields) or min(self.vocabulary) < 2:
            raise InputError(f"vocabulary {list(self.vocabulary)}: not one size or {self.fields}, each at least 2")
        for i in self.interactions:
            name = ",".join(map(str, i.fields))
            if len(i.fields) < 2 or len(set(i.fields)) < len(i.fields) or not set(i.fields) <= set(range(self.fields)):
                raise InputError(f"interaction {name}: not two or more different fields of 0..{self.fields - 1}")
            if not 0 < i.strength < np.inf:
                raise InputError(f"interaction {name}: its strength {i.strength!r} is not a number above 0")
        if len({frozenset(i.fields) for i in self.interactions}) < len(self.interactions):
            raise InputError("an interaction is given twice")
        for name in self.behavior:
            if name not in BEHAVIORS:
                raise InputError(f"behavior {name!r} is none of {', '.join(BEHAVIORS)}")
        if self.behavior and not self.history_mean:
            raise InputError("a behavior signal needs a history: history_mean is 0")
        if self.history_mean > BLOCK / 64:
            raise InputError(f"history_mean {self.history_mean:g} is more than {BLOCK // 64}")

    def size(self, field: int) -> int:
        """Ids of a field beside id 0."""
        return self.vocabulary[field % len(self.vocabulary)]


@dataclass(frozen=True)
class Block:
    """Rows in the order of their time; ``user`` int64 [R] (None without history), numbered over the whole data."""

    ids: list[np.ndarray]     # a field: int32 [R], from 1 on
    user: np.ndarray | None
    logit: np.ndarray         # float64 [R], noise left out
    probability: np.ndarray   # float64 [R] of a positive label, noise included
    label: np.ndarray         # bool [R]


class Planted:
    """The hidden truth of ``options``, and blocks of rows drawn from it: block b is a function of (options, b)
    alone, and the number of rows only says where the last one is cut."""

    def __init__(self, options: SyntheticOptions):
        self.options = options
        draw = self._generator("truth")
        self.probability = [_zipf(options.size(f), options.exponent) for f in range(options.fields)]
        self._edges = [np.cumsum(p)[:-1] for p in self.probability]
        self.sign = [_signs(p, draw) for p in self.probability]
        self.own = [_standard(draw.standard_normal(p.size), p) for p in self.probability]
        item = self.probability[0]
        self.taste = _signs(item, draw)
        self.place = _classes(item.size, CIRCLE, draw)
        self.kind = _classes(item.size, KINDS, draw)
        self.kind_share = np.bincount(self.kind, item, KINDS)
        # A user lives within a segment of rows, long enough for about 64 users to take turns.
        self._segment = min(BLOCK, max(1024, 1 << int(np.ceil(np.log2(64 * max(options.history_mean, 1))))))
        self._users = max(1, round((self._segment - 1) / max(options.history_mean, 1e-9)) - 1) if options.history_mean \
            else 0
        ids, _, signals, _ = self._draw("pilot", _PILOT_ROWS)
        self._scale = {name: 1 / max(signal.std(), 1e-9) for name, signal in signals.items()}
        self.intercept = 0.0
        self.intercept = _intercept(self._logit(ids, signals), options.base_rate)

    def block(self, number: int) -> Block:
        """Rows ``number · BLOCK`` up to the next block, or to the end."""
        options = self.options
        ids, user, signals, draw = self._draw(number, BLOCK)
        logit = self._logit(ids, signals)
        probability = (1 - options.noise) / _one_and_exp(-logit) + options.noise * options.base_rate
        label = draw.random(BLOCK) < probability
        end = min(BLOCK, options.rows - number * BLOCK)
        if user is not None:
            user = user.astype(np.int64)[:end] + number * (BLOCK // self._segment) * self._users
        return Block([i[:end] + np.int32(1) for i in ids], user, logit[:end], probability[:end], label[:end])

    @property
    def blocks(self) -> int:
        return -(-self.options.rows // BLOCK)

    # ---- inside -------------------------------------------------------------------------------

    def _generator(self, *where: object) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(mixed("synthetic", self.options.seed, *where)))

    def _draw(self, where: object, rows: int):
        """Ids from 0, users, raw behaviour signals, and the generator for what else is drawn."""
        draw = self._generator("rows", where)
        ids = [np.searchsorted(edges, draw.random(rows), "right").astype(np.int32) for edges in self._edges]
        user, signals = None, {}
        if self._users:
            user = self._draw_users(draw, rows)
            signals = self._signals(ids[0], user)
        return ids, user, signals, draw

    def _draw_users(self, draw: np.random.Generator, rows: int) -> np.ndarray:
        """Each row's user. Activity is exponential, so the numbers of earlier events are geometric: a row's user
        has Gamma(2) rows in proportion, and the row is any of them."""
        segments = -(-rows // self._segment)
        activity = draw.standard_exponential((segments, self._users))
        edges = np.cumsum(activity / activity.sum(1, keepdims=True), 1) + np.arange(segments)[:, None]
        segment = np.arange(rows) // self._segment
        user = np.searchsorted(edges.ravel(), segment + draw.random(rows), "right")
        user = np.minimum(user, (segment + 1) * self._users - 1)  # a sum of shares may end a little below 1
        # Sixteen bits are sorted by radix, several times faster.
        return user.astype(np.uint16 if segments * self._users <= 1 << 16 else np.int32)

    def _signals(self, item: np.ndarray, user: np.ndarray) -> dict[str, np.ndarray]:
        """Raw signals of each row's history, the newest ``max_history`` earlier events of its user. Events are drawn
        independently, so a history is exchangeable: given which items are in it, all orders are equally likely."""
        order = np.argsort(user, kind="stable")
        place = np.arange(order.size)
        first = np.maximum.accumulate(np.where(np.diff(user[order], prepend=-1) != 0, place, 0))
        begin = np.maximum(first, place - self.options.max_history)
        events, signals = item[order], {}

        def scatter(values: np.ndarray) -> np.ndarray:
            out = np.empty(order.size)
            out[order] = values
            return out

        if "sum" in self.options.behavior:
            total = np.concatenate([[0.0], np.cumsum(self.taste[events])])
            signals["sum"] = scatter(total[place] - total[begin])
        if "order" in self.options.behavior:
            # Steps around the circle, +1 to the next class, -1 to the one before: the reversed history has the
            # opposite sum, so that nothing which treats it like its reverse (bags, pools, attention) can see it.
            at = self.place[events]
            step = (at[1:] - at[:-1] + 1) % CIRCLE - 1
            total = np.concatenate([[0, 0], np.cumsum(step)])  # total[p]: steps between events 0..p-1
            signals["order"] = scatter(np.where(place > begin, total[place] - total[np.minimum(begin + 1, place)], 0))
        if "target" in self.options.behavior:
            # How often the target's kind occurs beyond chance, in units of chance: mean 0 given the target alone,
            # and given the history alone.
            kind = self.kind[events]
            count = np.zeros((order.size + 1, KINDS), np.int32)
            count[place + 1, kind] = 1
            count = np.cumsum(count, 0, dtype=np.int32)
            seen = count[place, kind] - count[begin, kind]
            signals["target"] = scatter(seen / self.kind_share[kind] - (place - begin))
        return signals

    def _logit(self, ids: list[np.ndarray], signals: dict[str, np.ndarray]) -> np.ndarray:
        options = self.options
        logit = np.full(ids[0].size, self.intercept)
        for interaction in options.interactions:
            product = np.full(ids[0].size, interaction.strength)
            for f in interaction.fields:
                product *= (self.sign[f] + options.heredity)[ids[f]]
            logit += product
        if options.main:
            share = options.main / np.sqrt(options.fields)
            for own, i in zip(self.own, ids, strict=True):
                logit += (share * own)[i]
        for name, signal in signals.items():
            logit += options.behavior_strength * self._scale[name] * signal
        return logit


def _zipf(size: int, exponent: float) -> np.ndarray:
    """Zipf's law in steps of two ids, which are equally frequent."""
    weight = (np.arange(size) // 2 + 1.0) ** -exponent
    return weight / weight.sum()


def _signs(probability: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Levels +a and -a at random, but one of each in every pair of equally frequent ids; 0 for an id without a partner."""
    pairs = probability.size // 2
    plus = draw.integers(2, size=pairs) * 2.0 - 1
    level = np.zeros(probability.size)
    level[: 2 * pairs : 2], level[1 : 2 * pairs : 2] = plus, -plus
    return _standard(level, probability)


def _classes(size: int, count: int, draw: np.random.Generator) -> np.ndarray:
    """A class for each id, at random, but one of each among neighbours in frequency: classes are about equally
    frequent, however skewed the ids are."""
    groups = np.tile(np.arange(count), (-(-size // count), 1))
    return draw.permuted(groups, axis=1).ravel()[:size]


def _standard(level: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Shifted and scaled to mean 0 and variance 1 under ``probability``."""
    level = level - level @ probability
    return level / np.sqrt(np.square(level) @ probability)


def _one_and_exp(x: np.ndarray) -> np.ndarray:
    """``1 + e^x``; infinite where that is too large, which is right for a sigmoid."""
    with np.errstate(over="ignore"):
        return 1 + np.exp(x)


def _intercept(logit: np.ndarray, base_rate: float) -> float:
    """What to add to the logits so that their mean probability is ``base_rate``, by bisection."""
    low, high = -60.0, 60.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / _one_and_exp(-logit - middle)) < base_rate else (low, middle)
    return (low + high) / 2
