"""FeatureSchema: which fields a data set has, and where their rows lie in the one embedding matrix.

Source: paper section 2.1, "Stage 0"; the JSON form is versioned.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from .errors import InputError

VERSION = 1
TASKS = ("ctr", "retrieval")
KINDS = ("categorical", "multi_categorical")
MOST_IDS = 2**31            # of a vocabulary: ids are int32
LONGEST_HISTORY = 2**20     # threads have scratch memory for the longest one


@dataclass(frozen=True)
class Vocabulary:
    """A named id range. ``size`` counts id 0, which is "unknown or missing"."""

    name: str
    size: int


@dataclass(frozen=True)
class Field:
    """A non-sequential field: one id (``categorical``) or a mean-pooled bag (``multi_categorical``)."""

    name: str
    kind: str
    vocabulary: str


@dataclass(frozen=True)
class BehaviorField:
    """One id of each element of the history."""

    name: str
    vocabulary: str


@dataclass(frozen=True)
class FeatureSchema:
    """Ordered fields of a data set.

    ``fields`` are the N non-sequential fields, ``behavior`` the N_a fields of a history element,
    ``target`` names the fields that describe the candidate item, one per behaviour field and matched
    to them by position (empty without a target). Row ``offset(vocabulary) + id`` of the embedding
    matrix belongs to local id ``id``; offsets are cumulative in ``vocabularies`` order.

    Raises ``InputError`` naming the offending entry when the parts do not fit together.
    """

    task: str
    max_history: int
    vocabularies: tuple[Vocabulary, ...]
    fields: tuple[Field, ...]
    behavior: tuple[BehaviorField, ...] = ()
    target: tuple[str, ...] = ()
    item: str | None = None
    version: int = field(default=VERSION)

    def __post_init__(self):
        if self.version != VERSION:
            raise InputError(f"schema: version {self.version!r} is not supported (this is version {VERSION})")
        if self.task not in TASKS:
            raise InputError(f"schema: task {self.task!r} is none of {', '.join(TASKS)}")
        if type(self.max_history) is not int or not 0 <= self.max_history <= LONGEST_HISTORY:
            raise InputError(f"schema: max_history {self.max_history!r} is not an integer of 0 to {LONGEST_HISTORY}")
        names = [v.name for v in self.vocabularies]
        _distinct("vocabulary", names)
        for v in self.vocabularies:
            if type(v.size) is not int or not 1 <= v.size <= MOST_IDS:
                raise InputError(f"schema: vocabulary {v.name!r} has size {v.size!r}, not an integer of 1 to 2^31")
        _distinct("field", [f.name for f in self.fields])
        _distinct("behavior field", [b.name for b in self.behavior])
        for f in self.fields:
            if f.kind not in KINDS:
                raise InputError(f"schema: field {f.name!r} has kind {f.kind!r}, none of {', '.join(KINDS)}")
        for f in (*self.fields, *self.behavior):
            if f.vocabulary not in names:
                raise InputError(f"schema: field {f.name!r} names the unknown vocabulary {f.vocabulary!r}")
        if self.behavior and self.max_history < 1:
            raise InputError("schema: behavior fields need max_history >= 1")
        if self.target:
            if self.task == "retrieval":
                raise InputError("schema: the retrieval task has no target fields")
            if len(self.target) != len(self.behavior):
                raise InputError(f"schema: {len(self.target)} target fields for {len(self.behavior)} behavior "
                                 "fields; they correspond one to one by position")
            kinds = {f.name: f.kind for f in self.fields}
            for name in self.target:
                if kinds.get(name) != "categorical":
                    raise InputError(f"schema: target {name!r} is not a categorical field")
        if self.task == "retrieval":
            if not self.behavior and not self.item:
                raise InputError("schema: the retrieval task needs \"item\" or a behavior field")
            if self.item_vocabulary not in names:
                raise InputError(f"schema: item names the unknown vocabulary {self.item!r}")

    # ---- sizes -------------------------------------------------------------------------------

    @property
    def num_fields(self) -> int:
        """N, the number of non-sequential fields."""
        return len(self.fields)

    @property
    def num_behavior(self) -> int:
        """N_a, the number of ids of a history element."""
        return len(self.behavior)

    @cached_property
    def num_embeddings(self) -> int:
        """F, the number of rows of the embedding matrix."""
        return sum(v.size for v in self.vocabularies)

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        places, start = {}, 0
        for v in self.vocabularies:
            places[v.name] = (start, v.size)
            start += v.size
        return places

    def offset(self, vocabulary: str) -> int:
        """First embedding row of a vocabulary."""
        return self._places[vocabulary][0]

    def size(self, vocabulary: str) -> int:
        """Number of ids of a vocabulary, id 0 included."""
        return self._places[vocabulary][1]

    @cached_property
    def field_offsets(self) -> tuple[int, ...]:
        return tuple(self.offset(f.vocabulary) for f in self.fields)

    @cached_property
    def field_sizes(self) -> tuple[int, ...]:
        return tuple(self.size(f.vocabulary) for f in self.fields)

    @cached_property
    def behavior_offsets(self) -> tuple[int, ...]:
        return tuple(self.offset(f.vocabulary) for f in self.behavior)

    @cached_property
    def behavior_sizes(self) -> tuple[int, ...]:
        return tuple(self.size(f.vocabulary) for f in self.behavior)

    @cached_property
    def multi_fields(self) -> tuple[int, ...]:
        """Positions of the multi-categorical fields, in schema order."""
        return tuple(i for i, f in enumerate(self.fields) if f.kind == "multi_categorical")

    @cached_property
    def target_positions(self) -> tuple[int, ...]:
        """Positions of the target fields, in ``target`` (= behaviour field) order."""
        where = {f.name: i for i, f in enumerate(self.fields)}
        return tuple(where[name] for name in self.target)

    @property
    def item_vocabulary(self) -> str | None:
        """Vocabulary of the items to retrieve; that of behaviour field 0 unless ``item`` says otherwise."""
        return self.item or (self.behavior[0].vocabulary if self.behavior else None)

    # ---- views and files ---------------------------------------------------------------------

    def select(self, fields: list[str] | None = None, behavior: bool = True) -> FeatureSchema:
        """The schema of a view with fewer fields; without behaviour there is no target either.

        Vocabularies that no field uses any more are dropped, so their embedding rows are not counted.
        """
        by_name = {f.name: f for f in self.fields}
        names = [f.name for f in self.fields] if fields is None else list(fields)
        for name in names:
            if name not in by_name:
                raise InputError(f"field {name!r} is not in the schema; it has {', '.join(by_name)}")
        kept = tuple(by_name[n] for n in names)
        kept_behavior = self.behavior if behavior else ()
        used = {f.vocabulary for f in (*kept, *kept_behavior)} | ({self.item} if self.item else set())
        if self.task == "retrieval":
            used.add(self.item_vocabulary)
        return FeatureSchema(
            task=self.task, max_history=self.max_history if behavior else 0,
            vocabularies=tuple(v for v in self.vocabularies if v.name in used),
            fields=kept, behavior=kept_behavior,
            target=self.target if behavior and set(self.target) <= set(names) else (),
            item=self.item_vocabulary if self.task == "retrieval" else self.item)

    def to_dict(self) -> dict:
        data = {
            "version": self.version, "task": self.task, "max_history": self.max_history,
            "vocabularies": [{"name": v.name, "size": v.size} for v in self.vocabularies],
            "fields": [{"name": f.name, "kind": f.kind, "vocabulary": f.vocabulary} for f in self.fields],
            "behavior": [{"name": b.name, "vocabulary": b.vocabulary} for b in self.behavior],
            "target": list(self.target),
        }
        if self.item is not None:
            data["item"] = self.item
        return data

    @classmethod
    def from_dict(cls, data: dict) -> FeatureSchema:
        """Inverse of ``to_dict``; ``InputError`` names a missing or unknown key."""
        if not isinstance(data, dict):
            raise InputError("schema: not a JSON object")
        if data.get("version") != VERSION or type(data["version"]) is not int:
            raise InputError(f"schema: version {data.get('version')!r} is not supported "
                             f"(this is version {VERSION})")
        known = {"version", "task", "max_history", "vocabularies", "fields", "behavior", "target", "item"}
        for key in data:
            if key not in known:
                raise InputError(f"schema: unknown key {key!r}")
        try:
            return cls(
                task=data["task"], max_history=data["max_history"],
                vocabularies=tuple(Vocabulary(v["name"], v["size"]) for v in data["vocabularies"]),
                fields=tuple(Field(f["name"], f["kind"], f["vocabulary"]) for f in data["fields"]),
                behavior=tuple(BehaviorField(b["name"], b["vocabulary"]) for b in data.get("behavior", ())),
                target=tuple(data.get("target", ())), item=data.get("item"))
        except (KeyError, TypeError) as error:
            raise InputError(f"schema: missing or malformed entry {error}") from None

    def save(self, path: str | Path) -> None:
        from .atomic import write_json
        write_json(Path(path), self.to_dict())

    @classmethod
    def load(cls, path: str | Path) -> FeatureSchema:
        return cls.from_dict(read_json(path))


def read_json(path: str | Path) -> dict:
    """A JSON file's content; ``InputError`` names a file that cannot be read or is not JSON."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise unreadable(path, error) from None
    return parse_json(data, path)


def parse_json(data: str | bytes, path: str | Path) -> dict:
    """``InputError`` names the file where ``data`` is not JSON in UTF-8, or nested more deeply than can be read."""
    try:
        return json.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error})") from None
    except RecursionError:
        raise InputError(f"{path}: not valid JSON (nested too deeply)") from None


def unreadable(path: str | Path, error: OSError) -> InputError:
    """What to raise for a file that could not be read."""
    if isinstance(error, FileNotFoundError):
        return InputError(f"{path}: no such file")
    if isinstance(error, IsADirectoryError):
        return InputError(f"{path}: is a directory, not a file")
    return InputError(f"{path}: {error.strerror or error}")


def _distinct(what: str, names: list[str]) -> None:
    seen = set()
    for name in names:
        if not isinstance(name, str) or not name:
            raise InputError(f"schema: a {what} has no name")
        if name in seen:
            raise InputError(f"schema: two {what} entries are named {name!r}")
        seen.add(name)
