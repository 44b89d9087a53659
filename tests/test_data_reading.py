"""Dataset: orders, subsets, views, negatives, and the checks when a prepared directory is opened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_movielens, prepare_table
from tests import data_helpers as helpers


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    base = tmp_path_factory.mktemp("dataset")
    prepare_movielens(helpers.write_mini_movielens(base / "raw"), base / "ml", max_history=5)
    return base / "ml"


@pytest.fixture(scope="module")
def data(directory):
    return Dataset.open(directory)


@pytest.fixture(scope="module")
def retrieval(tmp_path_factory):
    base = tmp_path_factory.mktemp("retrieval")
    source = helpers.write_csv(base / "clicks.csv", helpers.make_clicks())
    schema = base / "schema.json"
    schema.write_text(json.dumps(helpers.RETRIEVAL_SCHEMA), encoding="utf-8")
    prepare_table(source, base / "out", schema)
    return Dataset.open(base / "out")


def joined(batches) -> dict[str, list]:
    """All rows of many batches, part by part, as plain lists."""
    found: dict[str, list] = {"fields": [], "label": [], "history": [], "bags": []}
    for batch in batches:
        found["fields"] += batch.fields.tolist()
        found["label"] += batch.label.tolist()
        found["history"] += helpers.histories(batch)
        found["bags"] += helpers.bags(batch)
    return found


def picked(found: dict[str, list], order) -> dict[str, list]:
    return {name: [values[k] for k in order] for name, values in found.items()}


@pytest.mark.parametrize("size", [1, 7, 64, 100_000])
def test_batches_hold_every_row_once_in_stored_order(data, size):
    batches = list(data.batches("train", size))
    assert [len(b) for b in batches[:-1]] == [min(size, data.size("train"))] * (len(batches) - 1)
    assert joined(batches) == joined([helpers.whole(data, "train")])


def test_types_and_checks_of_a_batch(data):
    batch = next(data.batches("valid", 16))
    assert batch.check(data.schema) is batch
    kinds = {
        "fields": torch.int32,
        "history": torch.int32,
        "history_offsets": torch.int64,
        "label": torch.float32,
        "bag_ids": torch.int32,
        "bag_offsets": torch.int64,
    }
    assert {name: getattr(batch, name).dtype for name in kinds} == kinds
    assert batch.items is None and batch.negatives is None
    assert next(data.batches("valid", 16, device="cpu")).fields.device.type == "cpu"


def test_the_permutation_is_a_function_of_seed_and_epoch_alone(directory, data):
    stored = joined([helpers.whole(data, "train")])
    first = joined(data.batches("train", 32, seed=3, epoch=1))
    assert first == joined(Dataset.open(directory).batches("train", 32, seed=3, epoch=1))
    # Not of the batch size, nor of what was read before.
    assert first == joined(data.batches("train", 50, seed=3, epoch=1))
    for other in ({"seed": 3, "epoch": 2}, {"seed": 4, "epoch": 1}, {"seed": 1, "epoch": 3}):
        assert first != joined(data.batches("train", 32, **other))
    assert first != stored
    assert sorted(map(repr, zip(*first.values(), strict=True))) == sorted(
        map(repr, zip(*stored.values(), strict=True))
    )


def test_start_batch_continues_where_an_epoch_was_left(data):
    every = list(data.batches("train", 32, seed=9))
    for start in (0, 1, 5, len(every) - 1, len(every), len(every) + 3):
        rest = list(data.batches("train", 32, seed=9, start_batch=start))
        assert joined(rest) == joined(every[start:])


def test_limit_is_one_nested_subset_of_the_split(directory, data):
    stored = joined([helpers.whole(data, "train")])
    keyed = [repr(row) for row in zip(*stored.values(), strict=True)]
    sizes = {}
    for limit in (10, 40, 10_000):
        rows = joined(data.batches("train", 16, limit=limit))
        assert rows == joined(Dataset.open(directory).batches("train", 3, limit=limit))
        assert len(rows["label"]) == min(limit, data.size("train"))
        sizes[limit] = {repr(row) for row in zip(*rows.values(), strict=True)}
        assert sizes[limit] <= set(keyed)
        shuffled = joined(data.batches("train", 16, limit=limit, seed=5))
        assert {repr(row) for row in zip(*shuffled.values(), strict=True)} == sizes[limit]
    assert sizes[10] <= sizes[40]


@pytest.mark.parametrize("limit", [None, 17])
def test_labels_come_in_the_order_of_the_batches(data, limit):
    for split in data.splits:
        labels = data.labels(split, limit=limit)
        assert labels.dtype == np.float32
        assert labels.tolist() == joined(data.batches(split, 8, limit=limit))["label"]


def test_batch_takes_any_rows(data):
    stored = joined([helpers.whole(data, "test")])
    rows = np.array([3, 0, 3, data.size("test") - 1])
    assert joined([data.batch("test", rows)]) == picked(stored, rows)
    assert len(data.batch("test", np.zeros(0, np.int64))) == 0
    for wrong in (-1, data.size("test")):
        with pytest.raises(InputError, match=str(wrong)):
            data.batch("test", np.array([0, wrong]))


def test_unknown_splits_and_fields_are_named(data):
    with pytest.raises(InputError, match="holdout"):
        data.size("holdout")
    with pytest.raises(InputError, match="holdout"):
        next(data.batches("holdout", 4))
    with pytest.raises(InputError, match="height"):
        data.select(fields=["item", "height"])
    with pytest.raises(InputError, match="batch_size"):
        next(data.batches("train", 0))


def test_views_show_the_same_rows(data):
    fields = ["weekday", "user", "item"]
    view = data.select(fields=fields, behavior=False)
    assert view.schema.behavior == () and view.schema.target == () and view.schema.max_history == 0
    assert [f.name for f in view.schema.fields] == fields
    batch = helpers.whole(view, "valid").check(view.schema)
    assert batch.history is None and batch.history_offsets is None and batch.bag_ids is None
    full = helpers.whole(data, "valid")
    names = [f.name for f in data.schema.fields]
    assert batch.fields[:, 0].equal(full.fields[:, names.index("weekday")])
    assert batch.fields[:, 2].equal(full.fields[:, names.index("item")])
    # A view has exactly the vocabularies it needs, and the one it came from is as it was.
    assert {v.name for v in view.schema.vocabularies} == {"weekday", "user", "item"}
    assert [f.name for f in data.schema.fields] == names and data.schema.behavior
    assert view.checksum == data.checksum and view.field_names == data.field_names
    # The history of a view without the target's fields has no target.
    assert data.select(fields=["gender"]).schema.target == ()


# ---- retrieval ---------------------------------------------------------------------------------------


def test_negatives_are_never_the_users_own(retrieval):
    offsets, own = retrieval.user_items()
    size = retrieval.schema.size("item")
    assert offsets.dtype == np.int64 and own.dtype == np.int32 and offsets[-1] == len(own)
    users = np.load(retrieval.directory / "columns" / "row_user.npy")
    begin = retrieval.splits["train"][0]
    seen = set()
    for number, batch in enumerate(retrieval.batches("train", 16, negatives=40)):
        assert batch.check(retrieval.schema).label is None
        assert batch.negatives.shape == (len(batch), 40) and batch.negatives.dtype == torch.int32
        for k in range(len(batch)):
            user = users[begin + 16 * number + k]
            mine = set(own[offsets[user] : offsets[user + 1]].tolist())
            drawn = set(batch.negatives[k].tolist())
            history = {i for (i,) in helpers.histories(batch)[k]} - {0}
            assert int(batch.items[k]) in mine and history <= mine
            assert not drawn & (mine | {0}) and max(drawn) < size
            seen |= drawn
    assert len(seen) > size // 3


def test_negatives_are_a_function_of_seed_epoch_and_batch(retrieval):
    def drawn(**options):
        return [b.negatives for b in retrieval.batches("train", 16, negatives=3, **options)]

    def equal(a, b):
        return all(x.equal(y) for x, y in zip(a, b, strict=True))

    first = drawn(seed=1, epoch=2)
    assert equal(first, drawn(seed=1, epoch=2))
    assert equal(first[2:], drawn(seed=1, epoch=2, start_batch=2))
    assert not equal(first, drawn(seed=1, epoch=3)) and not equal(first, drawn(seed=2, epoch=2))
    one, two = retrieval.batches("train", 4, limit=8, negatives=30)
    assert not one.negatives.equal(two.negatives)


def test_retrieval_has_items_and_no_labels(retrieval, data):
    batch = helpers.whole(retrieval, "test").check(retrieval.schema)
    assert batch.items.dtype == torch.int32 and batch.label is None and batch.negatives is None
    assert int(batch.items.min()) > 0
    with pytest.raises(InputError, match="label"):
        retrieval.labels("test")
    with pytest.raises(InputError, match="negatives"):
        next(data.batches("train", 4, negatives=2))


def test_the_training_items_of_a_user_are_those_of_the_training_rows(retrieval):
    """Nothing a user meets only after training is excluded from negatives: that would tell the future."""
    offsets, own = retrieval.user_items()
    users = np.load(retrieval.directory / "columns" / "row_user.npy")
    train = helpers.whole(retrieval, "train")
    begin, end = retrieval.splits["train"]
    wanted: dict[int, set[int]] = {}
    for user, item, history in zip(
        users[begin:end].tolist(), train.items.tolist(), helpers.histories(train), strict=True
    ):
        wanted.setdefault(user, set()).update({item}, (i for (i,) in history))
    # Histories in a batch are cut to the newest; those of one user together still cover all of them here.
    for user in range(len(offsets) - 1):
        assert set(own[offsets[user] : offsets[user + 1]].tolist()) == wanted.get(user, set()) - {0}


# ---- opening a prepared directory -------------------------------------------------------------------


@pytest.fixture
def copied(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def edited(path, change) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_missing_directory_and_missing_files_are_named(copied, tmp_path):
    with pytest.raises(InputError, match="nowhere"):
        Dataset.open(tmp_path / "nowhere")
    for name in (
        "columns/label.npy",
        "columns/events.history_item.npy",
        "schema.json",
        "statistics.json",
        "dataset.json",
    ):
        path = copied / name
        content = path.read_bytes()
        path.unlink()
        for verify in (True, False):
            with pytest.raises(InputError, match=path.name):
                Dataset.open(copied, verify=verify)
        path.write_bytes(content)
    Dataset.open(copied)


def test_truncated_columns_are_named_even_without_verifying(copied):
    for path in sorted((copied / "columns").glob("*.npy")):
        content = path.read_bytes()
        for length in (len(content) - 3, 20, 0):
            path.write_bytes(content[:length])
            with pytest.raises(InputError, match=path.name):
                Dataset.open(copied, verify=False)
        path.write_bytes(content)


def test_changed_bytes_are_named(copied):
    for name in ("columns/field.item.npy", "columns/history_end.npy", "schema.json", "statistics.json"):
        path = copied / name
        content = path.read_bytes()
        # A space for a space in JSON would be no change of meaning: what counts are the bytes.
        path.write_bytes(
            content[:-1] + bytes([content[-1] ^ 1]) if path.suffix == ".npy" else content + b"\n"
        )
        with pytest.raises(InputError, match=path.name.replace(".", r"\.")):
            Dataset.open(copied)
        path.write_bytes(content)


def test_columns_of_another_type_or_length_are_named(copied):
    path = copied / "columns" / "label.npy"
    labels = np.load(path)
    for wrong in (labels[:-1], labels.astype(np.float64), labels[:, None]):
        np.save(path, wrong)
        with pytest.raises(InputError, match="label.npy"):
            Dataset.open(copied, verify=False)


def test_pickles_are_never_read(copied):
    path = copied / "columns" / "label.npy"
    np.save(path, np.array([object()], dtype=object), allow_pickle=True)
    for verify in (True, False):
        with pytest.raises(InputError, match="label.npy"):
            Dataset.open(copied, verify=verify)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.pop("version"), "version"),
        (lambda d: d.pop("splits"), "splits"),
        (lambda d: d["splits"].update(valid=[0, 5]), "split"),
        (lambda d: d.update(rows=d["rows"] + 1), "row"),
        (lambda d: d["vocabularies"][1].update(size=3), "vocabulary|schema"),
        (lambda d: d.update(all_fields="none"), "all_fields"),
    ],
)
def test_a_wrong_description_is_one_clear_error(copied, change, message):
    edited(copied / "dataset.json", change)
    with pytest.raises(InputError, match=message) as caught:
        Dataset.open(copied)
    assert "\n" not in str(caught.value) and str(copied) in str(caught.value)


def test_dataset_json_that_is_no_json(copied):
    (copied / "dataset.json").write_text('{"version": 1,', encoding="utf-8")
    with pytest.raises(InputError, match="dataset.json"):
        Dataset.open(copied)


@pytest.mark.parametrize("change", ["changed", "missing"])
def test_vocabularies_are_checked_when_the_data_is_opened(copied, change):
    path = copied / "vocabularies" / "item.json"
    if change == "changed":
        path.write_text(path.read_text().replace("null", "null ", 1))
    else:
        path.unlink()
    with pytest.raises(InputError, match="item.json: (its checksum is not|no such file)"):
        Dataset.open(copied)
    assert len(Dataset.open(copied, verify=False))
