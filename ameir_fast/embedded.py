"""What a batch looks up in the embedding matrix, looked up before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Embedded:
    """``fields`` [B, N, K], ``history`` [ΣT, N_a, K], ``bags`` [*, K] of a batch's ids, and ``items`` [B, n, K] of
    those that it scores; ``None`` where there are none. Of multi-categorical fields, ``fields`` holds rows that nobody
    reads.

    A forward pass that finds it in its batch reads it in place of the matrix, so that gradients are those of every
    occurrence of a row and as large as the batch.
    """

    fields: Tensor
    history: Tensor | None = None
    bags: Tensor | None = None
    items: Tensor | None = None

    @classmethod
    def of(cls, occurrences: Tensor, rows: Sequence[Tensor | None]) -> Embedded:
        """The parts of ``occurrences`` [n, K], which lie in it one after the other in the shapes of ``rows``
        (``forward.rows_read``)."""
        present = [part for part in rows if part is not None]
        pieces = iter(occurrences.split([part.numel() for part in present]))
        return cls(*(None if part is None else next(pieces).unflatten(0, part.shape) for part in rows))

    def split(self, rows: Sequence[int], elements: Sequence[int], ids: Sequence[int]) -> list[Embedded]:
        """Consecutive parts of so many rows, history elements and ids of bags."""
        sizes = rows, elements, ids, rows
        pieces = [[None] * len(rows) if part is None else part.split(list(size))
                  for part, size in zip((self.fields, self.history, self.bags, self.items), sizes, strict=True)]
        return [Embedded(*parts) for parts in zip(*pieces, strict=True)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Embedded:
        return Embedded(*(None if part is None else function(part)
                          for part in (self.fields, self.history, self.bags, self.items)))
