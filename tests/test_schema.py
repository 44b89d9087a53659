"""FeatureSchema: the JSON form of section 9.1, row offsets, and errors that name the offending entry."""

from __future__ import annotations

import copy
import json

import pytest

import ameir_fast as af
from tests.helpers import hand_schema, random_schema


def test_offsets_are_cumulative_in_vocabulary_order():
    schema = af.FeatureSchema.from_dict(hand_schema().dict)
    assert [schema.offset(n) for n in ("item", "rating", "tag", "city")] == [0, 5, 8, 12]
    assert schema.num_embeddings == 15
    assert (schema.num_fields, schema.num_behavior) == (3, 2)
    assert schema.field_offsets == (0, 8, 12) and schema.behavior_offsets == (0, 5)
    assert schema.field_sizes == (5, 4, 3) and schema.behavior_sizes == (5, 3)
    assert schema.multi_fields == (1,) and schema.target_positions == (0, 2)


@pytest.mark.parametrize("seed", range(20))
def test_json_round_trip(seed, tmp_path):
    data, _ = random_schema(seed)
    schema = af.FeatureSchema.from_dict(data)
    again = af.FeatureSchema.from_dict(json.loads(json.dumps(schema.to_dict())))
    assert again == schema and hash(again) == hash(schema)
    for key in ("version", "task", "max_history", "vocabularies", "fields", "behavior", "target"):
        assert schema.to_dict()[key] == data[key]
    schema.save(tmp_path / "schema.json")
    assert af.FeatureSchema.load(tmp_path / "schema.json") == schema


def test_item_defaults_to_the_first_behavior_vocabulary():
    data, _ = random_schema(3, task="retrieval")
    assert "item" not in data
    schema = af.FeatureSchema.from_dict(data)
    assert schema.item_vocabulary == data["behavior"][0]["vocabulary"]
    other = {**data, "item": data["vocabularies"][-1]["name"]}
    assert af.FeatureSchema.from_dict(other).item_vocabulary == other["item"]
    assert af.FeatureSchema.from_dict(other).to_dict()["item"] == other["item"]


def test_target_order_is_the_schema_order_of_target():
    data = hand_schema().dict
    data["target"] = ["city", "item"]
    assert af.FeatureSchema.from_dict(data).target_positions == (2, 0)


def broken(change) -> dict:
    data = copy.deepcopy(hand_schema().dict)
    change(data)
    return data


@pytest.mark.parametrize("change, names", [
    (lambda d: d.update(version=2), ["version", "2"]),
    (lambda d: d.pop("version"), ["version"]),
    (lambda d: d.update(task="rank"), ["task", "rank"]),
    (lambda d: d.update(max_history=-1), ["max_history"]),
    (lambda d: d.update(max_history=0), ["max_history"]),
    (lambda d: d.update(max_history="7"), ["max_history"]),
    (lambda d: d["vocabularies"][0].update(size=0), ["item"]),
    (lambda d: d["vocabularies"][0].update(size=2.5), ["item"]),
    (lambda d: d["vocabularies"][1].update(name="item"), ["item"]),
    (lambda d: d["fields"][2].update(name="item"), ["item"]),
    (lambda d: d["fields"][2].update(kind="numeric"), ["city", "numeric"]),
    (lambda d: d["fields"][2].update(vocabulary="nowhere"), ["city", "nowhere"]),
    (lambda d: d["behavior"][1].update(vocabulary="nowhere"), ["history_rating", "nowhere"]),
    (lambda d: d.update(target=["item"]), ["target"]),
    (lambda d: d.update(target=["item", "nowhere"]), ["target", "nowhere"]),
    (lambda d: d.update(target=["item", "tags"]), ["target", "tags"]),
    (lambda d: d.update(task="retrieval"), ["target"]),
    (lambda d: d.update(task="retrieval", target=[], item="nowhere"), ["item", "nowhere"]),
    (lambda d: d.pop("fields"), ["fields"]),
    (lambda d: d.update(labels=[]), ["labels"]),
    (lambda d: d["fields"][0].pop("kind"), ["kind"]),
], ids=lambda value: "-".join(value) if isinstance(value, list) else "change")
def test_errors_name_the_entry(change, names):
    with pytest.raises(ValueError) as error:
        af.FeatureSchema.from_dict(broken(change))
    for name in names:
        assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, [], "schema", 3])
def test_not_an_object(data):
    with pytest.raises(ValueError):
        af.FeatureSchema.from_dict(data)


def test_load_names_the_file(tmp_path):
    with pytest.raises(ValueError, match="absent.json"):
        af.FeatureSchema.load(tmp_path / "absent.json")
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    with pytest.raises(ValueError, match="bad.json"):
        af.FeatureSchema.load(bad)


def test_select_keeps_what_is_used():
    schema = af.FeatureSchema.from_dict(hand_schema().dict)
    flat = schema.select(["city", "tags"], behavior=False)
    assert [f.name for f in flat.fields] == ["city", "tags"]
    assert flat.behavior == () and flat.target == () and flat.num_behavior == 0
    assert flat.num_embeddings == 3 + 4
    assert schema.select() == schema
    with pytest.raises(ValueError, match="nowhere"):
        schema.select(["nowhere"])


def test_frozen_and_hashable():
    schema = af.FeatureSchema.from_dict(hand_schema().dict)
    assert len({schema, af.FeatureSchema.from_dict(hand_schema().dict)}) == 1
    with pytest.raises(AttributeError):
        schema.task = "retrieval"
