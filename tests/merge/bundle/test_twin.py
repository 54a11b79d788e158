"""Twin bundles: the merge, and what each source has beside it, cut to a share of every matrix's rank."""

import json
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import tiny
from tests.merge.bundle.conftest import IDS, Shop, weights

HALF = {"method": "task_arithmetic", "scale": 0.3}


def test_the_whole_rank_gives_every_source_back(shop: Shop) -> None:
    shop.make(shop.recipe("twin", steps=(HALF,), keep=1.0), "bundle")
    for place, member in enumerate(IDS):
        got, want = shop.member("bundle", member), shop.weights(f"expert{place + 1}")
        assert max(float((got[name] - want[name]).abs().max()) for name in want) < 1e-6


def test_members_come_back_where_transformers_has_other_names_than_the_files(tmp_path: Path) -> None:
    """It calls the router of a Mixtral ``mlp.gate``, which no name in the files is like."""
    tiny.family(tmp_path, 2, tiny.moe, dtype=torch.float32, layers=1, hidden=8)
    shop = Shop(tmp_path)
    sources = [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}]
    shop.make(shop.recipe("twin", steps=(HALF,), keep=1.0, sources=sources), "bundle")
    got, want = shop.member("bundle", "b"), shop.weights("expert2")
    assert max(float((got[name] - want[name]).abs().max()) for name in want) < 1e-6


def test_a_member_that_is_the_merge_comes_back(shop: Shop) -> None:
    one = [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2", "weight": 0.0}]
    shop.make(shop.recipe("twin", steps=("linear",), keep=1.0, sources=one), "bundle")
    got, want = shop.member("bundle", "a"), shop.weights("expert1")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_bias_of_a_head_comes_back(tmp_path: Path) -> None:
    tiny.family(tmp_path, 2, tiny.vit, dtype=torch.float32)
    shop = Shop(tmp_path)
    sources = [{"id": "a", "model": "expert1"}, {"id": "b", "model": "expert2"}]
    shop.make(shop.recipe("twin", steps=(HALF,), sources=sources), "bundle")
    got, want = shop.member("bundle", "b"), shop.weights("expert2")
    assert torch.allclose(got["classifier.bias"], want["classifier.bias"])


def test_the_shared_model_is_the_merge(shop: Shop) -> None:
    shop.make(shop.recipe("twin", steps=(HALF,)), "bundle")
    base = shop.weights("base")
    taus = [{n: t - base[n] for n, t in shop.weights(f"expert{i}").items()} for i in (1, 2, 3)]
    shared = weights(shop.root / "bundle/shared")
    for name in base:
        want = base[name] + 0.3 * torch.stack([tau[name] for tau in taus]).sum(0)
        assert torch.allclose(shared[name], want, atol=1e-6), name


def test_what_is_lost_of_a_matrix_is_the_tail_of_its_singular_values(shop: Shop) -> None:
    shop.make(shop.recipe("twin", steps=(HALF,), keep=0.25), "bundle")
    shared, expert = weights(shop.root / "bundle/shared"), shop.weights("expert2")
    got = shop.member("bundle", "b")
    for name in expert:
        lost = float((got[name] - expert[name]).norm())
        exclusive = expert[name] - shared[name]
        if exclusive.dim() == 1:
            assert lost < 1e-5, name
            continue
        values = torch.linalg.svdvals(exclusive)
        kept = int(0.25 * min(exclusive.shape))
        assert lost == pytest.approx(float(values[kept:].norm()), rel=1e-4), name


def test_the_folder_takes_the_merge_and_its_low_rank_parts(shop: Shop) -> None:
    shop.make(shop.recipe("twin", steps=(HALF,), keep=0.1), "bundle")
    base = shop.weights("base")
    most = 0
    for tensor in base.values():
        kept = max(1, int(0.1 * min(tensor.shape)))
        most += 4 * (kept * sum(tensor.shape) if tensor.dim() == 2 else tensor.numel())
    for member in IDS:
        path = shop.root / "bundle/adapters" / member / "adapter_model.safetensors"
        size = sum(tensor.numel() * tensor.element_size() for tensor in load_file(path).values())
        assert size == most


def test_a_plain_server_loads_the_merge_and_swaps_the_adapters(shop: Shop) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    shop.make(shop.recipe("twin", steps=(HALF,), keep=0.25), "bundle")
    ids = torch.arange(12).view(2, 6)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(shop.root / "bundle/shared")
        served = peft.PeftModel.from_pretrained(model, shop.root / "bundle/adapters/a", adapter_name="a")
        served.load_adapter(shop.root / "bundle/adapters/b", adapter_name="b")
        for member in ("a", "b"):
            served.set_adapter(member)
            shop.member("bundle", member)
            alone = AutoModelForCausalLM.from_pretrained(shop.root / f"bundle-{member}0")
            assert torch.allclose(served(ids).logits, alone(ids).logits, atol=1e-4), member


def test_it_goes_on_member_by_member_and_gives_the_same_bytes(shop: Shop) -> None:
    from merge.errors import Stopped

    recipe = shop.recipe("twin", steps=(HALF,))
    shop.make(recipe, "whole", threads=2)
    done: list[str] = []
    with pytest.raises(Stopped):
        shop.make(
            recipe,
            "cut",
            on_shard=lambda each: done.append(each.file),
            should_stop=lambda: "adapters/a/adapter_model.safetensors" in done,
        )
    shop.make(recipe, "cut")
    for path in (shop.root / "whole").rglob("*.safetensors"):
        assert path.read_bytes() == (shop.root / "cut" / path.relative_to(shop.root / "whole")).read_bytes()
    assert json.loads((shop.root / "cut/bundle.json").read_bytes()) == shop.manifest("whole")
