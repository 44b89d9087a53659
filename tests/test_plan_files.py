"""Files of plans and models: what is written is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import ameir_fast as af
from ameir_fast import storage
from tests.helpers import make_schema, random_arch, random_batch, random_schema
from tests.test_plan import SETS, arch_of, pair

pytestmark = pytest.mark.skipif(not SETS, reason="the native plan is not there")


def test_a_plan_is_saved_and_loaded(tmp_path):
    schema, k = random_schema(3)
    plan = pair(schema, random_arch(schema, k, 3), k)[0].compile()
    plan.save(tmp_path / "plan")
    assert sorted(f.name for f in (tmp_path / "plan").iterdir()) == ["plan.json", "plan.safetensors"]
    again, batch = af.Plan.load(tmp_path / "plan"), random_batch(schema, 50, 1)
    plan_half = plan._model.compile(dtype="bfloat16")
    plan_half.save(tmp_path / "half")
    half = af.Plan.load(tmp_path / "half")
    assert half.dtype == "bfloat16" and half.fold_bytes == plan_half.fold_bytes and torch.equal(half(batch), plan_half(batch))
    assert torch.equal(again(batch), plan(batch)) and again.arch == plan.arch and again.dtype == "float32"


def edit(directory: Path, change) -> None:
    about = json.loads((directory / "plan.json").read_text())
    change(about)
    (directory / "plan.json").write_text(json.dumps(about))


def with_bytes(directory: Path, data: bytes) -> None:
    """Another file of weights, with the checksum that goes with it."""
    (directory / "plan.safetensors").write_bytes(data)
    edit(directory, lambda about: about.update(sha256=hashlib.sha256(data).hexdigest()))


def rewrite(directory: Path, tensors: dict, metadata: dict | None = None) -> None:
    with_bytes(directory, safetensors.torch.save(tensors, {"version": "1", "about": "{}"} if metadata is None else metadata))


def with_tensor(name: str, change):
    def damage(directory: Path) -> None:
        tensors = safetensors.torch.load_file(directory / "plan.safetensors")
        tensors[name] = change(tensors.get(name))
        rewrite(directory, tensors)
    return damage


def made_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def resized(size: int):
    return lambda d: edit(d, lambda about: about["schema"]["vocabularies"][0].update(size=size))


@pytest.mark.parametrize("damage, says", [
    (lambda d: (d / "plan.safetensors").write_bytes(b"x" * 100), "plan.safetensors"),
    (lambda d: (d / "plan.safetensors").unlink(), "plan.safetensors: no such file"),
    (lambda d: edit(d, lambda about: about.pop("dtype")), "plan.json: entry 'dtype' is missing"),
    (lambda d: edit(d, lambda about: about.update(dtype="int4")), "dtype 'int4'"),
    (lambda d: edit(d, lambda about: about.update(sha256="0")), "checksum differs from the one in plan.json"),
    (lambda d: made_a_directory(d / "plan.safetensors"), "plan.safetensors: is a directory"),
    (lambda d: made_a_directory(d / "plan.json"), "plan.json: is a directory"),
    (lambda d: (d / "plan.json").write_text("[" * 100_000), "plan.json: not valid JSON"),
    (lambda d: (d / "plan.json").write_text('{"version": 1' + "0" * 5000 + "}"), "plan.json: not valid JSON"),
    (lambda d: (d / "plan.json").write_bytes(b"\xff\xfe"), "plan.json: not valid JSON"),
    *((lambda d, version=version: edit(d, lambda about: about.update(version=version)), "version .* is not supported")
      for version in (True, 1.0, 2, None, "1")),
    *((lambda d, k=k: edit(d, lambda about: about.update(embedding_dim=k)), "embedding_dim is .*, not an integer >= 1")
      for k in (0, -1, "4", None, 4.0, [4], True)),
    (lambda d: edit(d, lambda about: about.update(embedding_dim=2**20)), "tensor .* has shape"),
    (lambda d: edit(d, lambda about: about.update(embedding_dim=2**70)), "plan.json: describes no model that could be built"),
    (lambda d: edit(d, lambda about: about.update(fold_bytes="2")), "fold_bytes is '2'"),
    (lambda d: edit(d, lambda about: about["schema"].update(max_history=2**24)), "max_history 16777216 is not"),
    (lambda d: edit(d, lambda about: about["schema"].update(max_history=2**70)), "max_history"),
    (resized(2**31), "tensor 'embedding.weight' has shape"),
    (resized(2**31 + 1), "has size 2147483649, not an integer of 1 to"),
    (lambda d: edit(d, lambda about: about["architecture"]["mlp"][0].update(ratio=None, width=2**40)), "tensor .* has shape"),
    (lambda d: edit(d, lambda about: about["architecture"]["mlp"][0].update(ratio=None, width=2**62)), "describes no model"),
    *((with_tensor("head.weight", lambda t, kind=kind: t.to(kind)), "tensor 'head.weight' is of type")
      for kind in (torch.int32, torch.bool, torch.uint8, torch.complex64, torch.float8_e4m3fn)),
    (with_tensor("head.weight", lambda t: t[:, 1:].contiguous()), "tensor 'head.weight' has shape"),
    (with_tensor("more", lambda _: torch.zeros(2)), "tensor 'more' belongs to another architecture"),
    (lambda d: rewrite(d, {}), "tensor .* is missing"),
    (lambda d: rewrite(d, {}, {"version": "9\n1"}), r"version '9\\n1' is not supported"),
    *((lambda d, data=data: with_bytes(d, data), "truncated or not a safetensors file")
      for data in (b"", b"\xff" * 8, (2**63).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{",
                   (57).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}   ' + b"\0" * 8)),
    (lambda d: rewrite(d, {}, {"version": "1", "about": "[" * 100_000}), "plan.safetensors: not valid JSON"),
])
def test_damaged_files_are_named(tmp_path, damage, says):
    pair(make_schema(seed=5), arch_of("conv1"), 4)[0].compile().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(af.InputError, match=says) as error:
        af.Plan.load(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_a_file_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    """Its checksum was another one's."""
    first, second = (pair(make_schema(seed=5), arch_of("conv1"), 4, seed)[0] for seed in (0, 1))
    first.compile().save(tmp_path / "plan")
    second.compile().save(tmp_path / "other")

    def swapped(path, *rest):
        os.replace(tmp_path / "other" / "plan.safetensors", path)
        return safetensors.safe_open(path, *rest)

    monkeypatch.setattr(storage, "safe_open", swapped)
    with pytest.raises(af.InputError, match="plan.safetensors: another file took its place"):
        af.Plan.load(tmp_path / "plan")


def test_a_path_below_a_file(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(af.InputError, match="Not a directory"):
        af.Plan.load(tmp_path / "file")


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_keeps_its_precision(kind, tmp_path):
    model = pair(make_schema(seed=5), arch_of("bi_gru", "self_attn2"), 4)[0].to(kind)
    model.save(tmp_path)
    again = af.Model.load(tmp_path)
    assert {t.dtype for t in again.state_dict().values()} == {kind} and not again.training
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in model.state_dict().items())
    assert all(p.requires_grad for p in again.parameters())


def test_loading_draws_no_random_numbers(tmp_path):
    pair(make_schema(seed=5), arch_of("conv1"), 4)[0].compile().save(tmp_path)
    before = torch.random.get_rng_state()
    af.Plan.load(tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_pickled_plan_takes_the_best_instructions_of_where_it_is_read():
    model = pair(make_schema(seed=5), arch_of("conv1"), 4)[0]
    assert model.compile().__reduce__()[1][2] is None
    assert pickle.loads(pickle.dumps(model.compile(instruction_set=SETS[-1]))).instruction_set == SETS[-1]


def test_a_service_starts_without_the_compiler():
    """Importing PyTorch's compiler takes as long as PyTorch itself."""
    code = "import sys, ameir_fast; from ameir_fast import model, plan, ops; print('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == ["False"]
