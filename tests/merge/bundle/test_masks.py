"""tall and emr bundles, against references written from the papers' equations in float64."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.errors import Stopped
from merge.kernels.bits import unpack
from merge.recipe.results import BUNDLE_SETTINGS
from tests.merge.bundle.conftest import IDS, Shop, weights

Weights = dict[str, Tensor]


def changes(shop: Shop) -> tuple[Weights, list[Weights]]:
    """The base, and every expert's task vector."""
    base = shop.weights("base")
    experts = [shop.weights(f"expert{place + 1}") for place in range(len(IDS))]
    return base, [{name: expert[name] - base[name] for name in base} for expert in experts]


def far(ours: Weights, theirs: Weights) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)


@pytest.mark.parametrize("threshold", [0.2, 0.6, 1.0])
def test_a_tall_member_is_the_base_and_what_its_mask_takes_of_the_sum(shop: Shop, threshold: float) -> None:
    shop.make(shop.recipe("tall", threshold=threshold), "bundle")
    base, taus = changes(shop)
    for place, member in enumerate(IDS):
        want = {}
        for name in base:
            total, own = sum(tau[name] for tau in taus), taus[place][name]
            assert isinstance(total, Tensor)
            want[name] = base[name] + total * (own.abs() > threshold * (total - own).abs())
        got = shop.member("bundle", member)
        wrong = [float(((got[name] - want[name]).abs() > 1e-6).double().mean()) for name in want]
        assert max(wrong) < 1e-3  # entries on the threshold fall either way in float32
        lost = sum(float((got[name] - base[name] - taus[place][name]).square().sum()) for name in base)
        whole = sum(float(taus[place][name].square().sum()) for name in base)
        told = shop.manifest("bundle")["members"][member]
        assert told["error"] == pytest.approx((lost / whole) ** 0.5, rel=1e-3)
        assert told["scale"] == 1.0 and 0 < told["share"] < 1


def test_a_tall_bundle_of_one_source_gives_it_back_to_the_bit(shop: Shop) -> None:
    one = {"sources": [{"id": "a", "model": "expert1"}]}
    shop.make(shop.recipe("tall", **one), "bundle")
    base, expert = (load_file(shop.root / name / "model.safetensors") for name in ("base", "expert1"))
    out = shop.root / "bundle-a0"
    shop.member("bundle", "a")
    for name, tensor in load_file(out / "model.safetensors").items():
        assert torch.equal(tensor, base[name] + (expert[name] - base[name])), name


def reference_emr(base: Weights, taus: list[Weights], place: int, way: str) -> Weights:
    """tau_uni = gamma max |tau_i| that agree with gamma = sign(sum tau); M_i = tau_i gamma > 0; lambda_i."""
    parts, over, under = {}, 0.0, 0.0
    for name in base:
        stack = torch.stack([tau[name] for tau in taus])
        gamma = stack.sum(0).sign()
        unified = gamma * (stack * gamma).clamp(min=0).max(0).values
        parts[name] = unified * (stack[place] * gamma > 0)
        size = base[name].numel() if way == "tensors" else 1
        over += float(stack[place].abs().sum()) / size
        under += float(parts[name].abs().sum()) / size
    scale = 1.0 if way == "none" else over / under
    return {name: base[name] + scale * part for name, part in parts.items()}


@pytest.mark.parametrize("way", ["entries", "tensors", "none"])
def test_an_emr_member_is_the_base_and_its_rescaled_part_of_the_unified_vector(shop: Shop, way: str) -> None:
    shop.make(shop.recipe("emr", steps=("emr",), rescale=way), "bundle")
    base, taus = changes(shop)
    for place, member in enumerate(IDS):
        got = shop.member("bundle", member)
        assert far(got, reference_emr(base, taus, place, way)) < 1e-6
        if way == "entries":  # the rescaler gives back the mean size of a change
            ours = sum(float((got[name] - base[name]).abs().sum()) for name in base)
            theirs = sum(float(tau.abs().sum()) for tau in taus[place].values())
            assert ours == pytest.approx(theirs, rel=1e-6)


def test_eight_members_of_which_some_are_copies_and_one_is_the_base(shop: Shop) -> None:
    models = ["expert1", "expert2", "expert3", "expert1", "base", "expert2", "expert3", "expert1"]
    sources = [{"id": f"m{place}", "model": model} for place, model in enumerate(models)]
    base = shop.weights("base")
    taus = [{name: shop.weights(model)[name] - base[name] for name in base} for model in models]
    for kind, steps in (("tall", ("task_arithmetic",)), ("emr", ("emr",))):
        shop.make(shop.recipe(kind, steps=steps, sources=sources), kind)
        first, copied, still = (shop.member(kind, member) for member in ("m0", "m3", "m4"))
        assert all(torch.equal(first[name], copied[name]) for name in base)
        assert far(still, base) == 0
        if kind == "emr":
            assert far(first, reference_emr(base, taus, 0, "entries")) < 1e-6
        else:
            total = {name: torch.stack([tau[name] for tau in taus]).sum(0) for name in base}
            kept = {name: taus[0][name].abs() > 0.6 * (total[name] - taus[0][name]).abs() for name in base}
            wrong = {n: (first[n] - base[n] - total[n] * kept[n]).abs() > 1e-6 for n in base}
            assert max(float(each.double().mean()) for each in wrong.values()) < 1e-3


def test_a_bundle_takes_a_task_vector_and_a_bit_for_each_member(shop: Shop) -> None:
    shop.make(shop.recipe("tall", dtype={"output": "bfloat16"}), "bundle")
    entries = sum(tensor.numel() for tensor in shop.weights("base").values())
    content = (shop.root / "bundle/bundle.safetensors").read_bytes()
    size, header = len(content), int.from_bytes(content[:8], "little") + 8
    assert size - header <= 2 * entries + len(IDS) * (entries + 8 * 64) // 8
    assert (size - header) / (2 * entries) == pytest.approx(1 + len(IDS) / 16, rel=0.01)


@pytest.mark.parametrize("steps", [("task_arithmetic",), ("linear", "norm_repair"), ("tsv_m",)])
def test_threads_blocks_and_files_change_no_byte(shop: Shop, steps: tuple[str, ...]) -> None:
    recipe = shop.recipe("emr", steps=steps)
    shop.make(recipe, "one")
    shop.make(recipe, "two", threads=3, budget_bytes=84 << 20)
    shop.make(recipe | {"shard_bytes": 1 << 16}, "three")
    for name in ("bundle.safetensors", "bundle.json"):
        assert (shop.root / "one" / name).read_bytes() == (shop.root / "two" / name).read_bytes()
    parts = {}
    for path in sorted((shop.root / "three").glob("bundle-*.safetensors")):
        parts |= load_file(path)
    whole = load_file(shop.root / "one/bundle.safetensors")
    assert len(list((shop.root / "three").glob("bundle-*"))) > 2 and parts.keys() == whole.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert shop.manifest("three")["members"] == shop.manifest("one")["members"]


def test_an_interrupted_bundle_goes_on_where_it_was(shop: Shop) -> None:
    recipe = shop.recipe("emr") | {"shard_bytes": 1 << 16}
    shop.make(recipe, "whole")
    done: list[str] = []
    with pytest.raises(Stopped):
        told = {"on_shard": lambda each: done.append(each.file), "should_stop": lambda: len(done) > 1}
        shop.make(recipe, "cut", **told)
    again: list[bool] = []
    shop.make(recipe, "cut", on_shard=lambda each: again.append(each.reused))
    assert again.count(True) >= 2 and again.count(False) >= 1
    for path in (shop.root / "whole").glob("bundle*"):
        assert path.read_bytes() == (shop.root / "cut" / path.name).read_bytes(), path.name


def test_members_have_their_own_config_and_tokenizer(shop: Shop, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for path in (shop.root / "expert1").iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    config = json.loads((own / "config.json").read_text()) | {"eos_token_id": [257, 259]}
    (own / "config.json").write_text(json.dumps(config))
    said = json.loads((own / "tokenizer_config.json").read_text()) | {"chat_template": "{{ messages }}"}
    (own / "tokenizer_config.json").write_text(json.dumps(said))
    recipe = shop.recipe("tall")
    recipe["sources"][0]["model"] = "own"
    shop.make(recipe, "bundle")
    for member, template, ends in (("a", "{{ messages }}", [257, 259]), ("b", None, 257)):
        shop.member("bundle", member)
        out = shop.root / f"bundle-{member}0"
        assert json.loads((out / "config.json").read_text())["eos_token_id"] == ends
        assert json.loads((out / "tokenizer_config.json").read_text()).get("chat_template") == template
        assert (out / "tokenizer.json").is_file()


def test_excluded_tensors_stay_as_the_base_has_them(shop: Shop) -> None:
    shop.make(shop.recipe("tall", exclude=["class:embed", "class:norm"]), "bundle")
    base, got = shop.weights("base"), shop.member("bundle", "b")
    same = {name for name in base if torch.equal(base[name], got[name])}
    assert {name for name in base if "norm" in name or "embed" in name} == same
    assert shop.manifest("bundle")["left_out"]["embed"] == 1


def test_several_members_with_weights_add_up(shop: Shop) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    base = shop.weights("base")
    a, b = (shop.member("bundle", member) for member in ("a", "b"))
    got = shop.member("bundle", "a=0.5,b=-0.25")
    want = {name: base[name] + 0.5 * (a[name] - base[name]) - 0.25 * (b[name] - base[name]) for name in base}
    assert far(got, want) < 1e-6


def test_a_base_inside_makes_the_bundle_complete(shop: Shop) -> None:
    shop.make(shop.recipe("emr", steps=("emr",)), "named")
    want = shop.member("named", "c")
    report = shop.make(shop.recipe("emr", steps=("emr",), inside=True), "bundle")
    assert {"base/config.json", "base/model.safetensors"} <= {file.file for file in report.files}
    (shop.root / "base").unlink()
    assert far(shop.member("bundle", "c"), want) == 0


def test_a_member_is_a_source_like_any_other(shop: Shop) -> None:
    shop.make(shop.recipe("tall"), "bundle")
    a, b = (shop.member("bundle", member) for member in ("a", "b"))
    sources = [{"id": m, "model": "base", "adapter": "bundle", "member": m} for m in ("a", "b")]
    shop.make({"sources": sources, "steps": ["linear"]}, "mean")
    got = weights(shop.root / "mean")
    assert far(got, {name: (a[name] + b[name]) / 2 for name in a}) < 1e-6


def test_a_source_equal_to_the_base_gives_the_base(shop: Shop) -> None:
    recipe = shop.recipe("emr", steps=("emr",))
    recipe["sources"].append({"id": "still", "model": "base"})
    shop.make(recipe, "bundle")
    assert far(shop.member("bundle", "still"), shop.weights("base")) == 0


def test_every_setting_has_a_kind() -> None:
    assert set(BUNDLE_SETTINGS) == {"threshold", "rescale", "keep", "components"}


def test_tensors_of_odd_sizes_are_masked_entry_by_entry(tmp_path: Path) -> None:
    shapes: dict[str, tuple[int, ...]] = {"x": (3, 5), "y": (1,), "z": (9,)}
    draw = torch.Generator().manual_seed(0)
    for name in ("base", "expert1", "expert2", "expert3"):
        (tmp_path / name).mkdir()
        tensors = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    shop = Shop(tmp_path)
    shop.make(shop.recipe("emr", steps=("emr",)), "bundle")
    base, taus = changes(shop)
    for place, member in enumerate(IDS):
        assert far(shop.member("bundle", member), reference_emr(base, taus, place, "entries")) < 1e-5


def test_masks_of_rows_of_odd_lengths_are_whole_bytes_wherever_blocks_end(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(0)
    for name in ("base", "expert1", "expert2", "expert3"):
        (tmp_path / name).mkdir()
        tensors = {"x": torch.randn(60_000, 5, generator=draw)}
        save_file(tensors, tmp_path / name / "model.safetensors", {"format": "pt"})
    shop = Shop(tmp_path)
    shop.make(shop.recipe("tall", steps=("della", "linear"), threshold=0.4), "bundle")
    found = load_file(shop.root / "bundle/bundle.safetensors")
    _, taus = changes(shop)
    for member, tau in zip(IDS, taus, strict=True):
        far_off = tau["x"].abs() > 0.4 * (found["vector/x"] - tau["x"]).abs()
        bits = torch.empty(300_000)
        unpack(found[f"mask/{member}/x"], bits)
        assert (bits.view(60_000, 5).bool() != far_off).float().mean() < 1e-3


def test_a_member_beside_models_that_name_their_tensors_otherwise_is_still_itself(shop: Shop) -> None:
    shop.make(shop.recipe("tall", sources=[{"id": "a", "model": "expert1"}]), "bundle")
    base, expert = (load_file(shop.root / name / "model.safetensors") for name in ("base", "expert1"))
    (shop.root / "long").mkdir()
    (shop.root / "long" / "config.json").write_bytes((shop.root / "base" / "config.json").read_bytes())
    save_file({f"text.{name}": tensor for name, tensor in base.items()}, shop.root / "long/model.safetensors")
    member = {"id": "m", "model": "base", "adapter": "bundle", "member": "a"}
    sources = [{"id": "l", "model": "long", "weight": 0}, member]
    shop.make({"sources": sources, "steps": ["linear"]}, "out")
    for name, tensor in load_file(shop.root / "out" / "model.safetensors").items():
        assert torch.allclose(tensor, expert[name.removeprefix("text.")], atol=1e-6), name
