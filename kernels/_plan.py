"""Which fields make up which columns, as small integer tensors on the device, made once for each set of
interactions."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor


class Plan(NamedTuple):
    """Parts of h_0 after the dense columns: the fields, then the products.

    Attributes:
        fields, products: N and m.
        order: the highest number of factors of a product, at least 1.
        multi: number of multi-categorical fields.
        slots: int32 [N], place of each field among the multi-categorical ones, or -1.
        factors: int32 [m, order], fields of each product; -1 behind the last.
        bags: int32 [multi], the multi-categorical fields.
        involved: int32 [i], fields that are a factor of a product.
        starts: int32 [i + 1]; of involved field j, ``entries[starts[j]:starts[j + 1]]`` are its places in ``factors``,
            flat.
    """

    fields: int
    products: int
    order: int
    multi: int
    slots: Tensor
    factors: Tensor
    bags: Tensor
    involved: Tensor
    starts: Tensor
    entries: Tensor

    @property
    def parts(self) -> int:
        return self.fields + self.products


def plan_of(rows: Tensor, multi_fields: list[int], interaction_fields: list[int], orders: list[int]) -> Plan:
    """The plan of a lookup with ids ``rows`` [B, N]; nothing is copied to the device but the first time."""
    return _plan(rows.shape[1], tuple(multi_fields), tuple(interaction_fields), tuple(orders), rows.device)


@functools.lru_cache(maxsize=4096)  # a search goes through thousands of sets
def _plan(fields: int, multi_fields: tuple, factors: tuple, orders: tuple, device: torch.device) -> Plan:
    order = max(orders, default=1)
    table, places, start = [], {}, 0
    for number, count in enumerate(orders):
        mine = factors[start:start + count]
        start += count
        for place, field in enumerate(mine):
            places.setdefault(field, []).append(number * order + place)
        table.append([*mine, *[-1] * (order - count)])
    involved = sorted(places)
    starts = [0]
    for field in involved:
        starts.append(starts[-1] + len(places[field]))
    slots = [multi_fields.index(f) if f in multi_fields else -1 for f in range(fields)]

    def put(values: list) -> Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    return Plan(fields, len(orders), order, len(multi_fields), put(slots), put(table), put(list(multi_fields)),
                put(involved), put(starts), put([p for f in involved for p in places[f]]))
