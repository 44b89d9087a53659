"""Batch: jagged layout, slicing, padding, and checks that name field, row and id."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import ameir_fast as af
from tests.helpers import hand_schema, random_batch, random_schema, select_rows


def hand_batch(**changes) -> af.Batch:
    """Three rows of ``hand_schema``: histories of length 2, 0, 3; bags of 2, 0, 1 tags."""
    parts = {
        "fields": torch.tensor([[1, 0, 2], [4, 0, 0], [0, 0, 1]], dtype=torch.int32),
        "history": torch.tensor([[1, 2], [4, 0], [0, 1], [3, 2], [2, 2]], dtype=torch.int32),
        "history_offsets": torch.tensor([0, 2, 2, 5]),
        "label": torch.tensor([1.0, 0.0, 1.0]),
        "bag_ids": torch.tensor([3, 1, 2], dtype=torch.int32),
        "bag_offsets": torch.tensor([0, 2, 2, 3])}
    parts.update(changes)
    return af.Batch(**parts)


def part_ids(value) -> str:
    """Test ids: what the error must name."""
    return (
        "-".join(value)
        if isinstance(value, list)
        else ",".join(value)
        if isinstance(value, dict)
        else "batch"
    )


def the_schema() -> af.FeatureSchema:
    return af.FeatureSchema.from_dict(hand_schema().dict)


def changed(name: str, index: tuple, value) -> af.Batch:
    tensor = getattr(hand_batch(), name).clone()
    tensor[index] = value
    return hand_batch(**{name: tensor})


def same(a: af.Batch, b: af.Batch) -> None:
    for f in dataclasses.fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert (x is None) == (y is None), f.name
        if x is not None:
            assert x.dtype == y.dtype and torch.equal(x, y), f.name


def test_a_good_batch_passes_unchanged():
    batch = hand_batch()
    same(batch.check(the_schema()), batch)
    assert len(batch) == 3


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_random_batches_pass(seed, rows):
    data, _ = random_schema(seed)
    batch = random_batch(data, rows, seed)
    same(batch.check(af.FeatureSchema.from_dict(data)), batch)


@pytest.mark.parametrize("batch, names", [
    (changed("fields", (1, 0), 5), ["item", "row 1", "5"]),
    (changed("fields", (2, 2), -1), ["city", "row 2", "-1"]),
    (changed("fields", (0, 2), 3), ["city", "row 0", "3"]),
    (changed("history", (0, 0), 5), ["history_item", "row 0", "5"]),
    (changed("history", (2, 1), 3), ["history_rating", "row 2", "3"]),
    (changed("history", (4, 1), -7), ["history_rating", "row 2", "-7"]),
    (changed("bag_ids", (1,), 4), ["tags", "row 0", "4"]),
    (changed("bag_ids", (2,), -2), ["tags", "row 2", "-2"]),
    (changed("fields", (0, 0), 2**31 - 1), ["item", "row 0", str(2**31 - 1)]),
    (changed("fields", (0, 0), -2**31), ["item", "row 0", str(-2**31)]),
], ids=part_ids)
def test_an_id_out_of_range_names_field_row_and_id(batch, names):
    with pytest.raises(ValueError) as error:
        batch.check(the_schema())
    for name in names:
        assert name in str(error.value), str(error.value)
    assert "\n" not in str(error.value)


def test_the_right_bag_of_several_multi_categorical_fields_is_named():
    """Row and field of a bag are ``k // n_multi`` and ``k % n_multi`` (9.2)."""
    data = hand_schema().dict
    data["fields"].append({"name": "more_tags", "kind": "multi_categorical", "vocabulary": "city"})
    batch = hand_batch(
        fields=torch.zeros(3, 4, dtype=torch.int32),
        bag_ids=torch.tensor([3, 2, 1, 0, 2, 3], dtype=torch.int32),
        bag_offsets=torch.tensor([0, 1, 2, 2, 4, 5, 6]),
    )
    # 3 is a tag and no city: the last bag is wrong, the first is not.
    with pytest.raises(ValueError) as error:
        batch.check(af.FeatureSchema.from_dict(data))
    for name in ("more_tags", "row 2", "3"):
        assert name in str(error.value), str(error.value)
    mapped = batch.check(af.FeatureSchema.from_dict(data), on_unknown="map")
    assert mapped.bag_ids.tolist() == [3, 2, 1, 0, 2, 0]


def test_map_turns_ids_out_of_range_into_zero_and_nothing_else():
    batch = hand_batch()
    wrong = hand_batch(
        fields=torch.tensor([[1, 0, 9], [-4, 0, 0], [0, 0, 1]], dtype=torch.int32),
        history=torch.tensor([[1, 3], [5, 0], [0, 1], [3, 2], [2, -1]], dtype=torch.int32),
        bag_ids=torch.tensor([7, 1, -2], dtype=torch.int32))
    before = [t.clone() for t in (wrong.fields, wrong.history, wrong.bag_ids)]
    mapped = wrong.check(the_schema(), on_unknown="map")
    assert mapped.fields.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    assert mapped.history.tolist() == [[1, 0], [0, 0], [0, 1], [3, 2], [2, 0]]
    assert mapped.bag_ids.tolist() == [0, 1, 0]
    for kept in ("history_offsets", "bag_offsets", "label"):
        assert torch.equal(getattr(mapped, kept), getattr(batch, kept))
    assert all(torch.equal(a, b) for a, b in zip(before, (wrong.fields, wrong.history, wrong.bag_ids)))
    mapped.check(the_schema())


def test_unknown_mode():
    with pytest.raises(ValueError, match="drop"):
        hand_batch().check(the_schema(), on_unknown="drop")


@pytest.mark.parametrize("mode", ["raise", "map"])
@pytest.mark.parametrize("changes, names", [
    ({"label": torch.tensor([1.0, float("nan"), 0.0])}, ["label", "row 1"]),
    ({"label": torch.tensor([1.0, 0.0, 0.5])}, ["label", "row 2"]),
    ({"label": torch.tensor([-1.0, 0.0, 1.0])}, ["label", "row 0"]),
    ({"label": torch.tensor([1.0, float("inf"), 1.0])}, ["label", "row 1"]),
    ({"label": torch.tensor([1.0, 0.0])}, ["label"]),
    ({"label": torch.tensor([1, 0, 1])}, ["label"]),
    ({"history_offsets": torch.tensor([0, 2, 1, 5])}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([-1, 2, 2, 5])}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([0, 2, 2, 6])}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([0, 2, 2, 4])}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([1, 2, 2, 5])}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([0, 2, 5])}, ["history_offsets"]),
    ({"history_offsets": torch.zeros(0, dtype=torch.int64)}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([0, 2, 2, 5], dtype=torch.int32)}, ["history_offsets"]),
    ({"history_offsets": torch.tensor([0, 1, 1, 5])}, ["row 2", "4", "3"]),
    ({"history": None}, ["history"]),
    ({"history_offsets": None}, ["history_offsets"]),
    ({"history": torch.zeros(5, 3, dtype=torch.int32)}, ["history"]),
    ({"history": torch.zeros(5, 2)}, ["history"]),
    ({"bag_offsets": torch.tensor([0, 2, 1, 3])}, ["bag_offsets"]),
    ({"bag_offsets": torch.tensor([0, 2, 2, 4])}, ["bag_offsets"]),
    ({"bag_offsets": torch.tensor([0, 2, 3])}, ["bag_offsets"]),
    ({"bag_ids": None}, ["bag_ids"]),
    ({"bag_offsets": None}, ["bag_offsets"]),
    ({"fields": torch.zeros(3, 2, dtype=torch.int32)}, ["fields"]),
    ({"fields": torch.zeros(3, 3)}, ["fields"]),
    ({"fields": torch.zeros(3, dtype=torch.int32)}, ["fields"]),
], ids=part_ids)
def test_wrong_shapes_offsets_and_labels_raise_in_both_modes(changes, names, mode):
    with pytest.raises(ValueError) as error:
        hand_batch(**changes).check(the_schema(), on_unknown=mode)
    for name in names:
        assert name in str(error.value), str(error.value)


def test_a_history_of_exactly_max_history_passes_and_one_more_raises():
    data = hand_schema().dict
    batch = random_batch(data, 4, 0, lengths=[3, 0, 3, 1])
    batch.check(af.FeatureSchema.from_dict(data))
    with pytest.raises(ValueError, match="row 2"):
        random_batch(data, 4, 0, lengths=[3, 0, 4, 1]).check(af.FeatureSchema.from_dict(data))


def test_retrieval_items_are_checked():
    data, _ = random_schema(3, task="retrieval")
    schema = af.FeatureSchema.from_dict(data)
    batch = random_batch(data, 4, 0)
    items = batch.items.clone()
    items[2] = schema.size(schema.item_vocabulary)
    with pytest.raises(ValueError, match="row 2"):
        dataclasses.replace(batch, items=items).check(schema)


@pytest.mark.parametrize("seed", range(12))
def test_slices_are_those_rows(seed):
    data, _ = random_schema(seed)
    batch = random_batch(data, 7, seed)
    schema = af.FeatureSchema.from_dict(data)
    for start, stop in [(0, 7), (2, 5), (6, 7), (3, 3), (0, 0), (7, 7), (4, 99)]:
        part = batch.slice(start, stop)
        same(part.check(schema), select_rows(batch, list(range(7))[start:stop]))
    same(batch.slice(0, 3).slice(1, 3), select_rows(batch, [1, 2]))
    assert len(random_batch(data, 0, 0).slice(0, 4)) == 0


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_padded_form_holds_the_same_elements(rows):
    data = hand_schema().dict
    batch = random_batch(data, rows, 5)
    padded, mask = batch.to_padded()
    longest = int(batch.history_offsets.diff().max()) if rows else 0
    assert padded.shape == (rows, longest, 2) and mask.shape == (rows, longest)
    for b in range(rows):
        row = batch.history[int(batch.history_offsets[b]):int(batch.history_offsets[b + 1])]
        assert torch.equal(padded[b][mask[b]], row)
        assert torch.equal(padded[b, :len(row)], row)  # oldest first, padding behind
        assert int(mask[b].sum()) == len(row) and not padded[b][~mask[b]].any()


def test_to_moves_every_part_and_keeps_types():
    batch = hand_batch()
    moved = batch.to("cpu")
    same(moved, batch)
    meta = batch.to("meta")
    for f in dataclasses.fields(batch):
        tensor = getattr(meta, f.name)
        assert tensor is None or tensor.device.type == "meta", f.name


def test_keyed_jagged_tensor_where_torchrec_is_installed():
    torchrec = pytest.importorskip("torchrec")
    batch = hand_batch()
    kjt = batch.to_keyed_jagged_tensor(the_schema())
    assert isinstance(kjt, torchrec.KeyedJaggedTensor)
    assert kjt["tags"].values().tolist() == [3, 1, 2] and kjt["tags"].lengths().tolist() == [2, 0, 1]
    assert kjt["history_rating"].values().tolist() == [2, 0, 1, 2, 2]
