"""rmm bundles: LoRA adapters as their mean, a few directions and coefficients."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from merge.errors import PlanRefused
from tests import tiny
from tests.merge.bundle.conftest import Shop

COUNT, RANK = 6, 8
ALPHA = 8.0


def adapters(shop: Shop, count: int = COUNT, **options: Any) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """LoRAs on every projection; their factors B (out, r), with the scale in it, and A (r, in)."""
    shapes = {
        name.removesuffix(".weight"): (tensor.shape[0], tensor.shape[1])
        for name, tensor in shop.weights("base").items()
        if name.endswith("proj.weight")
    }
    found = []
    for number in range(count):
        folder = tiny.lora(
            shop.root / f"lora{number}", shapes, seed=number + 1, r=RANK, alpha=ALPHA, **options
        )
        read = load_file(folder / "adapter_model.safetensors")
        stem = "base_model.model."
        found.append(
            {
                name: (
                    read[f"{stem}{name}.lora_B.weight"].double() * ALPHA / RANK,
                    read[f"{stem}{name}.lora_A.weight"].double(),
                )
                for name in shapes
            }
        )
    return found


def recipe(components: int, count: int = COUNT) -> dict[str, Any]:
    sources = [{"id": f"a{n}", "model": "base", "adapter": f"lora{n}"} for n in range(count)]
    return {
        "base": "base",
        "sources": sources,
        "steps": ["linear"],
        "result": {"form": "bundle", "kind": "rmm", "components": components},
    }


def balanced(b: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """U sqrt(S) and sqrt(S) V' of the product, each row of the latter with its largest entry positive."""
    u, s, vh = torch.linalg.svd(b @ a, full_matrices=False)
    u, s, vh = u[:, :RANK], s[:RANK], vh[:RANK]
    signs = torch.stack([row[row.abs().argmax()].sign() for row in vh])
    return u * s.sqrt() * signs, s.sqrt()[:, None] * vh * signs[:, None]


def rebuilt(vectors: Tensor, components: int, place: int) -> Tensor:
    """One of the vectors (N, P, r) from the mean and leading directions at each of P positions, by loops."""
    out = torch.empty(vectors.shape[1:], dtype=torch.float64)
    for position in range(vectors.shape[1]):
        x = vectors[:, position].T
        mean = x.mean(1)
        basis = torch.linalg.svd(x - mean[:, None], full_matrices=False).U[:, :components]
        out[position] = basis @ (basis.T @ (x[:, place] - mean)) + mean
    return out


@pytest.mark.parametrize("components", [0, 1, 2])
def test_a_member_is_what_the_directions_hold_of_its_factors(shop: Shop, components: int) -> None:
    given = adapters(shop)
    shop.make(recipe(components), "bundle")
    base, got = shop.weights("base"), shop.member("bundle", "a3")
    squared = whole = 0.0
    for name in given[0]:
        pairs = [balanced(*each[name]) for each in given]
        left = rebuilt(torch.stack([pair[0] for pair in pairs]), components, 3)
        right = rebuilt(torch.stack([pair[1].T for pair in pairs]), components, 3).T
        assert torch.allclose(got[f"{name}.weight"] - base[f"{name}.weight"], left @ right, atol=1e-6), name
        b, a = given[3][name]
        squared += float((left @ right - b @ a).square().sum())
        whole += float((b @ a).square().sum())
    told = shop.manifest("bundle")["members"]["a3"]["error"]
    assert told == pytest.approx((squared / whole) ** 0.5, rel=1e-3)


def test_the_size_is_that_of_means_directions_and_coefficients(shop: Shop) -> None:
    given = adapters(shop)
    shop.make(recipe(2), "bundle")
    ours = sum(each.numel() for each in load_file(shop.root / "bundle/bundle.safetensors").values())
    theirs = sum(b.numel() + a.numel() for each in given for b, a in each.values())
    assert ours / theirs == pytest.approx((2 * (RANK + COUNT) + RANK) / (RANK * COUNT))


def test_equal_adapters_come_back_without_any_direction(shop: Shop) -> None:
    (given, *_) = adapters(shop, 1)
    for number in (1, 2):
        folder = shop.root / f"lora{number}"
        folder.mkdir()
        for path in (shop.root / "lora0").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
    shop.make(recipe(0, 3), "bundle")
    base, got = shop.weights("base"), shop.member("bundle", "a1")
    for name, (b, a) in given.items():
        assert torch.allclose(got[f"{name}.weight"] - base[f"{name}.weight"], b @ a, atol=1e-6)


def test_the_order_of_the_adapters_changes_coefficients_alone(shop: Shop) -> None:
    adapters(shop)
    shop.make(recipe(2), "one")
    turned = recipe(2)
    turned["sources"] = turned["sources"][::-1]
    shop.make(turned, "two")
    one, two = (load_file(shop.root / name / "bundle.safetensors") for name in ("one", "two"))
    for name in one:
        again = two[name].flip(-1) if "coefficients" in name else two[name]
        assert torch.allclose(one[name], again, atol=1e-5), name


def test_as_many_directions_as_save_nothing_are_refused(shop: Shop) -> None:
    adapters(shop)
    with pytest.raises(PlanRefused) as caught:
        shop.make(recipe(4), "bundle")
    assert [each.code for each in caught.value.findings if each.severity == "error"] == ["bundle_no_saving"]


def test_models_that_are_no_adapters_are_refused_by_name(shop: Shop) -> None:
    adapters(shop)
    asked = recipe(1)
    asked["sources"][1] = {"id": "a1", "model": "expert1"}
    with pytest.raises(PlanRefused, match="a1 is none"):
        shop.make(asked, "bundle")


def test_whole_modules_of_an_adapter_are_refused_unless_excluded(shop: Shop) -> None:
    saved = {"model.norm.weight": shop.weights("base")["model.norm.weight"].float()}
    adapters(shop, saved=saved, modules_to_save=["norm"])
    with pytest.raises(PlanRefused, match="modules_to_save or bias"):
        shop.make(recipe(1), "bundle")
    asked = recipe(1)
    asked["result"]["exclude"] = ["class:norm"]
    shop.make(asked, "bundle")
    assert json.loads(Path(shop.root / "bundle/bundle.json").read_bytes())["left_out"] == {"norm": 1}
