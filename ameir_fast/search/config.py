"""SearchConfig: every number that decides a search, in one frozen, JSON-able place."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace

from ..errors import InputError
from ..ops import Backend
from ..space.choices import FIXED_ACTIVATIONS

VERSION = 1
_SWITCHES = ("inherit", "mlp_inherit", "inherit_retraining", "race_together", "mlp_race_together",
             "plain_trains_fully")
_RACES = ("race_epochs", "mlp_race_epochs")


@dataclass(frozen=True)
class SearchConfig:
    """Settings of a search; ``ameir-fast search --settings`` prints them.

    Training options are shared by everything that is compared. Epochs may be fractions.
    """

    # what is searched
    embedding_dim: int = 8
    blocks: int = 3
    mlp_layers: int = 2
    interactions: int = 5                   # most that step 2 finds
    seed: int = 0
    backend: str | None = None              # of the operations: "reference", "cpp" or "triton"; None: the device's own
    # training, shared by all models
    batch_size: int = 512
    learning_rate: float = 2e-3
    inherited_learning_rate: float = 1e-3   # for models that start from the supernet's weights
    inherit_retraining: bool = False        # found models start from the supernet's weights (on small data worse)
    weight_decay: float = 0.0
    embedding_l2: float = 0.05              # × Σ |e|² over a sample's looked-up rows
    dropout: float = 0.3
    block_dropout: float = 0.0              # of what a behaviour block adds to its input
    product_scale: float = 1.0              # initial weights of an order-r product: x this^(r-1), in a model of its own
    item_scale: float = 0.0                 # retrieval: models start at this times the newest item
                                            # (twice that for each identity layer); 0: at random
    mlp_activation: str = "relu"            # of the MLP by hand [200, 80] in found models; or "identity"
    unknown_rate: float = 0.0               # share of ids replaced by "unknown" while training
    epochs: float = 3.0                     # longest training of one model from scratch
    inherited_epochs: float = 1.0           # and of one that starts from the supernet's weights
    evaluate_every: float = 0.25            # epochs between validations
    patience: int = 4                       # validations without a better one before training stops
    ranked_rows: int = 20_000               # most validation rows that a model is judged by in training (retrieval)
    negatives: int = 4                      # per positive (retrieval)
    runs: int = 2                           # full trainings per variant; validation picks one
    # ranking
    sampler: str = "fair"                   # or "uniform"
    validation_subset: int = 4096
    top_k: int = 5                          # re-evaluated on all of validation
    finalists: int = 16                     # of step 1's race
    race_epochs: tuple[float, ...] = (0.5, 1.0)  # its rounds; the last ``runs`` get full trainings
    race_together: bool = False             # a round in one pass over the data, with one embedding: pays where that is large
    inherit: bool = True                    # its rounds start from the supernet's weights
    plain_trains_fully: bool = False        # the all-zero path gets a full training too, whatever the short ones say of it
    mlp_finalists: int = 12                 # the same of step 3's race
    mlp_race_epochs: tuple[float, ...] = (1.0,)
    mlp_race_together: bool = True          # a round of step 3's race in one pass over the data, with one embedding and one front
    mlp_inherit: bool = False               # shared weights favour MLPs that adapt fast, identity layers
    max_parameters: int | None = None       # of step 3's result, outside the embedding; None: those of the all-zero path
    # step 1
    warmup_epochs: float = 1.0              # on the all-zero path
    behavior_epochs: float = 3.0
    paths_per_step: int = 8                 # sampled paths over one lookup
    path_rows: str = "part"                 # of the batch that each path sees; or "all": the mean over the paths
    behavior_children: int = 200
    # step 2
    interaction_warmup_epochs: float = 1.0
    cycles: int = 4
    keep_interactions: int = 50
    updates_per_interaction: int = 50
    interactions_per_step: int = 16         # each on its own part of the batch
    interaction_ranking: str | None = None  # by rows ("crosses": crosses.py), or by shared weights ("shared", the paper's);
                                            # None: by rows where there are clicks and a warm-up
    # step 3
    mlp_epochs: float = 2.0
    mlp_children: int | None = None         # all, where there are fewer; None: all of up to three layers, else 2000

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name in ("backend", "max_parameters", "mlp_children", "sampler", "interaction_ranking", "mlp_activation", "path_rows",
                          *_SWITCHES, *_RACES):
                continue
            if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < math.inf:
                raise InputError(f"config: {f.name} is {value!r}, not a finite number >= 0")
            if f.type == "int" and not isinstance(value, int):
                raise InputError(f"config: {f.name} is {value!r}, not an integer")
        for name in ("embedding_dim", "mlp_layers", "batch_size", "epochs", "inherited_epochs", "evaluate_every", "runs", "finalists",
                     "mlp_finalists", "validation_subset", "behavior_children", "interactions_per_step", "paths_per_step",
                     "top_k", "keep_interactions", "ranked_rows", "product_scale"):
            if getattr(self, name) <= 0:
                raise InputError(f"config: {name} is {getattr(self, name)!r}, not positive")
        if self.product_scale > 100:
            raise InputError(f"config: product_scale is {self.product_scale!r}, above 100")
        if not 0 <= self.dropout < 1 or not 0 <= self.block_dropout < 1 or not 0 <= self.unknown_rate < 1:
            raise InputError("config: dropout, block_dropout and unknown_rate lie in [0, 1)")
        if self.backend not in (None, *(b.value for b in Backend)):
            raise InputError(f"config: backend is {self.backend!r}, none of {', '.join(b.value for b in Backend)}")
        if self.sampler not in ("fair", "uniform"):
            raise InputError(f"config: sampler is {self.sampler!r}, neither 'fair' nor 'uniform'")
        if self.path_rows not in ("part", "all"):
            raise InputError(f"config: path_rows is {self.path_rows!r}, neither 'part' nor 'all'")
        if self.interaction_ranking not in (None, "shared", "crosses"):
            raise InputError(f"config: interaction_ranking is {self.interaction_ranking!r}, neither 'shared' nor "
                             "'crosses'")
        if self.interaction_ranking == "crosses" and not self.interaction_warmup_epochs:
            raise InputError("config: interaction_ranking 'crosses' needs interaction_warmup_epochs above 0")
        if self.mlp_activation not in FIXED_ACTIVATIONS:
            raise InputError(f"config: mlp_activation is {self.mlp_activation!r}, none of {', '.join(FIXED_ACTIVATIONS)}")
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"config: {name} is {getattr(self, name)!r}, not true or false")
        for name in ("max_parameters", "mlp_children"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise InputError(f"config: {name} is {value!r}, not an integer >= 1")
        for name in _RACES:
            value = getattr(self, name)
            if not isinstance(value, (list, tuple)) or any(isinstance(e, bool) or not isinstance(e, (int, float)) for e in value):
                raise InputError(f"config: {name} is {value!r}, not a list of numbers")
            epochs = tuple(map(float, value))
            object.__setattr__(self, name, epochs)
            if not epochs:
                raise InputError(f"config: {name} is empty; it needs at least one length in epochs")
            if list(epochs) != sorted(set(epochs)) or any(not 0 < e < math.inf for e in epochs):
                raise InputError(f"config: {name} {list(epochs)} do not rise from above 0")
        # Found models have as many full trainings as hand-made ones. The fixed MLP, which may be too large to win,
        # is one of step 3's finalists.
        for name, least in (("finalists", self.runs), ("mlp_finalists", self.runs + 1)):
            if getattr(self, name) < least:
                raise InputError(f"config: {name} is {getattr(self, name)}, but runs={self.runs} needs at least {least}")

    def to_dict(self) -> dict:
        return {"version": VERSION, **asdict(self), **{name: list(getattr(self, name)) for name in _RACES}}

    @classmethod
    def for_task(cls, task: str) -> SearchConfig:
        """The defaults for data of a task, ``"ctr"`` or ``"retrieval"``."""
        return cls(**(RETRIEVAL if task == "retrieval" else {}))

    @classmethod
    def from_dict(cls, data: dict) -> SearchConfig:
        """Inverse of ``to_dict``; missing keys take their defaults, unknown ones raise ``InputError``."""
        if data.get("version", VERSION) != VERSION:
            raise InputError(f"config: version {data['version']!r} is not supported (this is version {VERSION})")
        return cls().changed(**{k: v for k, v in data.items() if k != "version"})

    def changed(self, /, **changes) -> SearchConfig:
        """A copy with other values; ``InputError`` names a setting that does not exist."""
        known = {f.name for f in fields(self)}
        for key in changes:
            if key not in known:
                raise InputError(f"config: unknown setting {key!r}; known: {', '.join(sorted(known))}")
        return replace(self, **changes)


RETRIEVAL = dict(embedding_dim=32, learning_rate=0.005, inherited_learning_rate=0.0025, embedding_l2=0.0, negatives=64, item_scale=10.0,
                 mlp_activation="identity", epochs=12.0, evaluate_every=1.0, patience=2, runs=1, finalists=10, race_epochs=(1.0, 6.0), inherit=False,
                 plain_trains_fully=True)
"""Defaults that differ for retrieval, whose tables are larger and whose rows say less each: with those of clicks a
model stays at the level of popularity. With few negatives most items are never told from the wanted one. An MLP that
starts at random, or bends, keeps users' vectors out of the space of the items for many epochs, where models without one
are from the beginning. Who is ahead after a few epochs is not after twelve: a race's last short round is long, and
begins as a full training does; and the plain path, which learns slowest and may end first, is tried in full
(docs/evaluation.md)."""

QUICK = dict(behavior_children=64, behavior_epochs=1.0, mlp_epochs=1.0, epochs=1.0, inherited_epochs=0.5,
             top_k=2, finalists=4, race_epochs=(0.25, 0.5), mlp_finalists=3, mlp_race_epochs=(0.5,), runs=1, cycles=2,
             keep_interactions=12, updates_per_interaction=10, mlp_children=200)
"""Changes for a first look in a minute or so; its results are not meant to be quoted."""
