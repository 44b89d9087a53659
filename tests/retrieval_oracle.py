"""What retrieval data must come out as, in plain Python, from events (user, item, time) in the order of the file."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np

from ameir_fast.data import Dataset

PARTS = ("train", "valid", "test")


def expected(events: list[tuple], split: str, max_history: int = 50, all_items: bool = False, min_count: int = 1):
    """Rows of each part, ``(item, history)`` with ``None`` for items without an id, in stored order; rows left out by
    reason.
    """
    by_user = defaultdict(list)
    for place, (user, item, time) in enumerate(events):
        by_user[user].append((time, place, item))
    rows, part_of = [], {}
    for timeline in by_user.values():
        timeline.sort()
        for k, (time, place, item) in enumerate(timeline):
            rows.append((time, place, item, [i for t, _, i in timeline[:k] if t < time]))
            if split == "leave_one_out":
                left = len(timeline) - k
                part_of[place] = {1: 2, 2: 1}.get(left, 0) if len(timeline) > 2 else 0
    rows.sort(key=lambda row: row[:2])
    if split == "time":
        times = [row[0] for row in rows]
        ends = [near_end(times, share) for share in (0.8, 0.9)]
        part_of = {row[1]: (k >= ends[0]) + (k >= ends[1]) for k, row in enumerate(rows)}
    counts = Counter(item for _, place, item, _ in rows if all_items or part_of[place] == 0)
    known = {item for item, count in counts.items() if count >= min_count}
    found, dropped = {part: [] for part in PARTS}, Counter()
    for _, place, item, history in rows:
        if not history:
            dropped["history shorter than 1"] += 1
        elif item not in known:
            dropped["unknown item"] += 1
        else:
            shown = tuple(i if i in known else None for i in history[-max_history:])
            found[PARTS[part_of[place]]].append((item, shown))
    return found, dropped


def near_end(times: list, share: float) -> int:
    """Where a part ends: never among equal times, at the nearer end of them, the earlier where both are as near."""
    at = round(share * len(times))
    if times[at - 1] != times[at]:
        return at
    first = times.index(times[at])
    last = len(times) - times[::-1].index(times[at])
    return first if at - first <= last - at else last


def prepared(directory) -> dict[str, list[tuple]]:
    """The same from a prepared directory."""
    data = Dataset.open(directory)
    tokens = data.tokens("item")
    found = {}
    for part in PARTS:
        rows = []
        for batch in data.batches(part, 4096):
            offsets = batch.history_offsets.tolist()
            events = batch.history[:, 0].tolist()
            for item, a, b in zip(batch.items.tolist(), offsets, offsets[1:], strict=False):
                rows.append((tokens[item], tuple(tokens[i] for i in events[a:b])))
        found[part] = rows
        assert len(rows) == data.size(part)
    return found


def check(directory, statistics: dict, events: list[tuple], split: str, **options) -> None:
    """That a prepared directory holds what it must."""
    found, dropped = expected(events, split, **options)
    assert prepared(directory) == found
    assert {k: v for k, v in statistics["dropped"].items() if k in ("history shorter than 1", "unknown item")} == {
        "history shorter than 1": dropped["history shorter than 1"], "unknown item": dropped["unknown item"]}
    assert statistics["users"] == len({user for user, _, _ in events})
    assert statistics["items"] == len({item for _, item, _ in events})
    assert statistics["rows"] == sum(map(len, found.values()))


def k_core(events: list[tuple], k: int) -> list[tuple]:
    """Events whose user and item have ``k`` of them at least, whatever is taken away."""
    while True:
        users, items = Counter(e[0] for e in events), Counter(e[1] for e in events)
        left = [e for e in events if users[e[0]] >= k and items[e[1]] >= k]
        if len(left) == len(events):
            return left
        events = left


def random_events(seed: int, users: int = 40, items: int = 25, count: int = 500, days: int = 30) -> list[tuple]:
    """Events with many equal times, some exactly repeated, users and items that are rare; not sorted."""
    rng = np.random.default_rng(seed)
    events = []
    for _ in range(count):
        user = int(users * rng.random() ** 2)
        events.append((f"u{user}", f"i{int(items * rng.random() ** 2)}", int(rng.integers(days))))
        if rng.random() < 0.1:
            events.append(events[rng.integers(len(events))])
    return events
