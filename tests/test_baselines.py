"""Hand-made models: shapes, gradients, what they compute, and that none sees the future or the padding."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import ameir_fast as af
from ameir_fast import forward
from ameir_fast.baselines import FM, LR, AmeirI, DeepFM, GRU4Rec, NextItNet, Popularity, PooledDNN, SASRec
from ameir_fast.baselines.sequences import by_length
from ameir_fast.errors import InputError

K, ITEMS, LONGEST = 8, 30, 20
SEQUENCES = (GRU4Rec, SASRec, NextItNet)
RETRIEVAL = af.FeatureSchema.from_dict({
    "version": 1, "task": "retrieval", "max_history": LONGEST,
    "vocabularies": [{"name": "place", "size": 3}, {"name": "item", "size": ITEMS}, {"name": "rating", "size": 4}],
    "fields": [], "behavior": [{"name": "history_item", "vocabulary": "item"}], "target": []})
CTR = af.FeatureSchema.from_dict({
    "version": 1, "task": "ctr", "max_history": 5,
    "vocabularies": [{"name": "a", "size": 7}, {"name": "b", "size": 5}, {"name": "tag", "size": 6}],
    "fields": [{"name": "a", "kind": "categorical", "vocabulary": "a"},
               {"name": "tags", "kind": "multi_categorical", "vocabulary": "tag"},
               {"name": "b", "kind": "categorical", "vocabulary": "b"}],
    "behavior": [], "target": []})


def two_fields() -> af.FeatureSchema:
    about = RETRIEVAL.to_dict()
    return af.FeatureSchema.from_dict({**about, "item": "item",
                                       "behavior": [*about["behavior"], {"name": "rating", "vocabulary": "rating"}]})


def histories(lengths: list[int], seed: int = 0, fields: int = 1) -> af.Batch:
    g = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    columns = [torch.randint(0, ITEMS, (total,), generator=g), torch.randint(0, 4, (total,), generator=g)][:fields]
    offsets = torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int64)
    items = torch.randint(1, ITEMS, (len(lengths),), generator=g, dtype=torch.int32)
    return af.Batch(torch.zeros(len(lengths), 0, dtype=torch.int32), torch.stack(columns, 1).int(), offsets, items=items)


def make(kind, schema: af.FeatureSchema = RETRIEVAL, seed: int = 0):
    torch.manual_seed(seed)
    model = kind(schema, K).double()
    with torch.no_grad():
        model.embedding.weight.normal_()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
            norm.bias.normal_()  # so that nothing is zero by symmetry
    return model.eval()


LENGTHS = [3, 0, 20, 1, 7, 4, 5, 16, 2, 0, 9]


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequence_models_score_items(kind):
    model, batch = make(kind), histories(LENGTHS)
    scores = model(batch)
    assert scores.shape == (len(LENGTHS), ITEMS) and scores.isfinite().all()
    assert (scores[[1, 9]] == 0).all()  # nothing is known of an empty history
    some = torch.randint(0, ITEMS, (len(LENGTHS), 4), dtype=torch.int32)
    torch.testing.assert_close(model(batch, items=some), scores.gather(1, some.long()))
    torch.testing.assert_close(model(batch, items=lambda users, table: users @ table.t()), scores)
    assert model(histories([0, 0])).shape == (2, ITEMS)
    total, outside = model.parameter_counts()
    assert total == sum(p.numel() for p in model.parameters()) and total - outside == model.embedding.weight.numel()


@pytest.mark.parametrize("kind", SEQUENCES)
@pytest.mark.parametrize("fields", [1, 2])
def test_rows_alone_score_as_rows_together(kind, fields):
    """Jagged against padded: a row's scores do not depend on how far its neighbours make it be padded."""
    model, batch = make(kind, two_fields() if fields == 2 else RETRIEVAL), histories(LENGTHS, fields=fields)
    together = model(batch)
    alone = torch.cat([model(batch.slice(b, b + 1)) for b in range(len(batch))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)
    # And by hand: one padded tensor for all rows, with garbage in the padding.
    full = [b for b, length in enumerate(LENGTHS) if length]
    lengths = torch.tensor(LENGTHS)[full]
    inputs = forward.prepare(model.schema, model.embedding.weight, batch)
    padded = torch.full((len(full), LONGEST + 3, model.width), 7.0, dtype=torch.float64)
    for row, b in enumerate(full):
        padded[row, :LENGTHS[b]] = inputs.history[batch.history_offsets[b]:batch.history_offsets[b + 1]]
    last = model.states(padded, lengths)[torch.arange(len(full)), lengths - 1]
    users = forward.item_scores(model.schema, model.embedding.weight, model.project(last))
    torch.testing.assert_close(users, together[full], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", SEQUENCES)
def test_no_state_sees_the_future(kind):
    """Changing an element changes its own state and later ones, never an earlier one."""
    model = make(kind)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, LONGEST, model.width, generator=g, dtype=torch.float64)
    lengths = torch.tensor([LONGEST, LONGEST])
    states = model.states(x, lengths)
    for changed in (LONGEST - 1, 6):
        other = x.clone()
        other[:, changed] += torch.linspace(-1, 1, model.width)
        difference = (model.states(other, lengths) - states).abs().amax((0, 2))
        assert (difference[:changed] == 0).all() and difference[changed] > 1e-6
    # The newest element and old ones all count.
    x.requires_grad_()
    model.states(x, lengths)[:, -1, 0].sum().backward()
    assert (x.grad.abs().amax((0, 2)) > 0).all()


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequence_gradients(kind):
    model, batch = make(kind, seed=1), histories([2, 0, 5, 3])
    items = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]], dtype=torch.int32)
    names, values = zip(*model.named_parameters(), strict=True)

    def scores(*tensors):
        return torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), (batch, items))

    torch.autograd.gradcheck(scores, values, fast_mode=True)
    model(batch, items=items).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", SEQUENCES)
def test_dropout_draws_from_the_models_own_generator(kind):
    model, batch = make(kind), histories(LENGTHS)
    plain = model(batch)
    model.train()
    model.dropout, model.generator = 0.4, torch.Generator()

    def scores(seed):
        model.generator.manual_seed(seed)
        return model(batch)

    assert torch.equal(scores(1), scores(1)) and not torch.equal(scores(1), scores(2))
    assert not torch.allclose(scores(1), plain)


def test_groups_by_length():
    lengths = torch.tensor([0, 1, 4, 5, 8, 9, 50, 0, 16, 17])
    groups = [rows.tolist() for rows in by_length(lengths)]
    assert groups == [[1, 2], [3, 4], [5, 8], [9], [6]]


@pytest.mark.parametrize("kind", SEQUENCES)
def test_sequence_models_need_a_history_to_continue(kind):
    with pytest.raises(InputError, match=f"{kind.__name__} predicts the next item"):
        kind(CTR, K)


def test_popularity():
    counts = np.array([0, 5, 9, 0, 5])
    model, batch = Popularity(counts), histories([2, 0, 3])
    assert model(batch).tolist() == [counts.tolist()] * 3
    assert model(batch, items=torch.tensor([[2], [1], [3]])).tolist() == [[9], [5], [0]]
    assert model(batch, items=lambda users, table: users @ table.t()).tolist() == [counts.tolist()] * 3
    assert model.parameter_counts() == (0, 0)


# ---- click-through rates ----------------------------------------------------------------------------


def rows(seed: int = 0) -> af.Batch:
    g = torch.Generator().manual_seed(seed)
    fields = torch.stack([torch.randint(0, 7, (6,), generator=g), torch.zeros(6, dtype=torch.int64),
                          torch.randint(0, 5, (6,), generator=g)], 1).int()
    sizes = torch.tensor([2, 0, 1, 3, 1, 2])
    bags = torch.randint(0, 6, (int(sizes.sum()),), generator=g, dtype=torch.int32)
    return af.Batch(fields, bag_ids=bags, bag_offsets=torch.tensor([0, *sizes.cumsum(0)]))


def embedded(table: torch.Tensor, batch: af.Batch, b: int) -> list[torch.Tensor]:
    """e_0, e_1, e_2 of a row, looked up one id at a time."""
    bag = batch.bag_ids[batch.bag_offsets[b]:batch.bag_offsets[b + 1]].tolist()
    mean = sum((table[12 + i] for i in bag), torch.zeros_like(table[0])) / max(1, len(bag))
    return [table[int(batch.fields[b, 0])], mean, table[7 + int(batch.fields[b, 2])]]


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=g)
    return model.double().eval()


def by_hand(model, batch: af.Batch, pairs) -> torch.Tensor:
    """Logits from the definition, row by row: first order, pairs, and the MLP where the model has one."""
    logits = []
    for b in range(len(batch)):
        e = embedded(model.embedding.weight, batch, b)
        weights = e if isinstance(model, LR) else embedded(model.first_order, batch, b)
        logit = sum(w[0] for w in weights) + sum((e[i] * e[j]).sum() for i, j in pairs)
        if hasattr(model, "bias"):
            logit = logit + model.bias[0]
        if hasattr(model, "mlp"):
            h = torch.cat(e)
            for layer in model.mlp.values():
                h = torch.relu(layer.weight @ h + layer.bias)
            logit = logit + (model.head.weight @ h + model.head.bias)[0]
        logits.append(logit)
    return torch.stack(logits)


EVERY_PAIR = [(0, 1), (0, 2), (1, 2)]


@pytest.mark.parametrize(("build", "pairs", "outside"), [
    (lambda: LR(CTR), [], 1), (lambda: FM(CTR, K), EVERY_PAIR, 1),
    (lambda: DeepFM(CTR, K), EVERY_PAIR, 24 * 200 + 200 + 200 * 80 + 80 + 81),
    (lambda: AmeirI(CTR, ((0, 2),), K), [(0, 2)], 24 * 200 + 200 + 200 * 80 + 80 + 81)],
    ids=["LR", "FM", "DeepFM", "AMEIR-I"])
def test_field_models_by_definition(build, pairs, outside):
    model, batch = randomised(build()), rows()
    torch.testing.assert_close(model(batch), by_hand(model, batch, pairs), rtol=1e-10, atol=1e-10)
    total, own = model.parameter_counts()
    assert own == outside and total == sum(p.numel() for p in model.parameters())
    model(batch).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_wide_and_deep_adds_one_weight_per_id():
    model, batch = randomised(PooledDNN(CTR, K, wide=True)), rows(1)
    torch.testing.assert_close(model(batch), by_hand(model, batch, []), rtol=1e-10, atol=1e-10)
    narrow = randomised(PooledDNN(CTR, K))
    narrow.load_state_dict({k: v for k, v in model.state_dict().items() if k != "first_order"})
    first = torch.stack([sum(w[0] for w in embedded(model.first_order, batch, b)) for b in range(6)])
    torch.testing.assert_close(model(batch) - narrow(batch), first)


@pytest.mark.parametrize("kind", [PooledDNN, DeepFM, FM, LR])
def test_field_models_need_clicks(kind):
    with pytest.raises(InputError, match=f"{kind.__name__} predicts click-through rates"):
        kind(RETRIEVAL, K) if kind is not LR else LR(RETRIEVAL)


def test_fields_only():
    """Models of fields leave a history aside."""
    schema = af.FeatureSchema.from_dict({**CTR.to_dict(), "behavior": [{"name": "h", "vocabulary": "a"}]})
    batch = rows()
    with_history = replace(batch, history=torch.ones(2, 1, dtype=torch.int32),
                           history_offsets=torch.tensor([0, 1, 1, 1, 2, 2, 2]))
    for kind in (DeepFM, FM):
        model = randomised(kind(schema, K))
        assert torch.equal(model(with_history), model(batch))
