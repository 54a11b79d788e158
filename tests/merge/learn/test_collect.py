"""Statistics collected block by block are those of a plain run of the whole model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.llama.modeling_llama import LlamaModel

from merge.checkpoint.index import index_folder
from merge.errors import ModelNotRun
from merge.learn import outside
from merge.learn.collect import Progress, collect
from merge.learn.samples import Samples, samples_of
from merge.learn.skeleton import Skeleton
from merge.learn.statistics import Statistics, read_statistics
from merge.learn.towers import block_lists
from merge.learn.trees import tensors_in
from tests.merge.learn import models

KINDS = ("mean_abs_input", "input_second_moment", "gram", "activation_norm", "routing_counts")


@pytest.mark.parametrize("kind", models.MAKERS)
def test_statistics_are_those_of_the_whole_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        outside, "LARGE_BYTES", 2000
    )  # rows of embeddings, heads left out: the paths of large models
    folder = models.make(tmp_path / "model", kind)
    given = models.samples()
    index = index_folder(folder)
    manifest = collect(folder, index, given, KINDS, tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    seen = models.inputs_of_linears(models.whole(folder), models.batches(folder, given))
    targets = Skeleton(index).targets
    checked = 0
    for name, target in targets.items():
        module = target.parameter.removesuffix(".weight")
        if target.expert is not None or not target.parameter.endswith(".weight") or module not in seen:
            continue
        rows = seen[module]
        checked += 1
        assert manifest.counted[name] == rows.shape[0]
        torch.testing.assert_close(
            found.get("mean_abs_input", name), rows.abs().mean(0).float(), rtol=2e-5, atol=1e-6
        )
        torch.testing.assert_close(
            found.get("input_second_moment", name), rows.square().mean(0).float(), rtol=2e-5, atol=1e-6
        )
        assert index.tensors[name].shape[manifest.axis[name]] == rows.shape[1]
        if len(index.tensors[name].shape) == 2:
            gram = (rows.T @ rows / rows.shape[0]).float()
            torch.testing.assert_close(found.get("gram", name), gram, rtol=1e-4, atol=1e-5)
    assert checked >= 4
    _check_norms(found, kind, folder, given)


def _check_norms(found: Statistics, kind: str, folder: Path, given: Samples) -> None:
    """The mean length of what leaves each block, over its tokens."""
    model, lengths = models.whole(folder), {}

    def keep(path: str) -> Any:
        return lambda *told: lengths.setdefault(path, []).append(
            next(tensors_in(told[-1])).double().flatten(0, -2).norm(dim=1)
        )

    for path, blocks in block_lists(model):
        for number, block in enumerate(blocks):
            block.register_forward_hook(keep(f"{path}.{number}"))
    with torch.no_grad():
        for batch in models.batches(folder, given):
            model(**batch.inputs)
    measured = {name: found.get("activation_norm", name) for name in found.names("activation_norm")}
    assert set(measured) == (set() if kind == "albert" else set(lengths))
    for name, value in measured.items():
        assert float(value) == pytest.approx(float(torch.cat(lengths[name]).mean()), rel=1e-4), name


def test_a_tied_head_that_is_not_stored_is_measured_under_its_own_name(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "tied")
    index = index_folder(folder)
    assert "lm_head.weight" not in index.tensors
    manifest = collect(folder, index, models.samples(), ["mean_abs_input"], tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    seen = models.inputs_of_linears(models.whole(folder), models.batches(folder, models.samples()))
    head = found.get("mean_abs_input", "lm_head.weight")
    torch.testing.assert_close(head, seen["lm_head"].abs().mean(0).float(), rtol=2e-5, atol=1e-6)
    assert found.get("mean_abs_input", "model.embed_tokens.weight") is None
    assert manifest.axis["lm_head.weight"] == 1
    assert "model.embed_tokens.weight" in manifest.unmeasured


@pytest.mark.parametrize("kind", ["mixtral", "qwen_moe", "gpt_oss"])
def test_experts_are_measured_on_the_tokens_that_were_sent_to_them(kind: str, tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", kind)
    index, given = index_folder(folder), models.samples()
    manifest = collect(folder, index, given, KINDS, tmp_path / "out")
    found = read_statistics(tmp_path / "out")
    routed: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    model = models.whole(folder)
    for path, module in model.named_modules():
        if path.endswith("mlp.experts"):
            module.register_forward_pre_hook(
                lambda _, args, path=path: routed.setdefault(path, []).append((args[0], args[1]))
            )
    with torch.no_grad():
        for batch in models.batches(folder, given):
            model(**batch.inputs)
    routers = found.names("routing_counts")
    assert len(routers) == len(routed) == 2
    for path, calls in routed.items():
        rows = torch.cat([states.reshape(-1, states.shape[-1]) for states, _ in calls])
        chosen = torch.cat([experts for _, experts in calls])
        counts = torch.tensor([int((chosen == expert).sum()) for expert in range(4)])
        layer = path.split(".")[2]
        (router,) = (name for name in routers if name.split(".")[2] == layer)
        assert torch.equal(found.get("routing_counts", router), counts)
        for name, target in Skeleton(index).targets.items():
            if target.parameter == f"{path}.gate_up_proj":
                experts = range(4) if target.expert is None else [target.expert]
                wanted = torch.stack(
                    [rows[(chosen == e).any(1)].abs().sum(0) / max(counts[e], 1) for e in experts]
                )
                measured = found.get("mean_abs_input", name)
                assert measured is not None
                torch.testing.assert_close(measured, wanted.view(measured.shape), rtol=1e-4, atol=1e-6)
                width, axis = rows.shape[1], manifest.axis[name]
                assert index.tensors[name].shape[axis] == width


def test_experts_whose_stack_is_called_weight_are_measured_each(tmp_path: Path) -> None:
    """JetMoE's; as wide as high, all were measured as one, along the wrong axis."""
    folder = models.make(tmp_path / "model", "jetmoe")
    index, given = index_folder(folder), models.samples()
    manifest = collect(folder, index, given, KINDS, tmp_path / "out")
    model, seen = models.whole(folder), dict[str, list[list[torch.Tensor]]]()
    for path, module in model.named_modules():
        if type(module).__name__ == "JetMoeParallelExperts":
            module.register_forward_pre_hook(
                lambda _, args, path=path: seen.setdefault(path, []).append(args[0].split(args[1]))
            )
    with torch.no_grad():
        for batch in models.batches(folder, given):
            model(**batch.inputs)
    assert len(seen) == 8
    for path, calls in seen.items():
        wanted = torch.stack([torch.cat(rows).abs().mean(0) for rows in zip(*calls, strict=True)])
        found = read_statistics(tmp_path / "out").get("mean_abs_input", f"{path}.weight")
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        assert manifest.axis[f"{path}.weight"] == 2


def test_stacks_that_are_stored_turned_around_are_measured_along_their_own_axes(tmp_path: Path) -> None:
    """As those of Qwen3-VL's mixtures are, which Transformers turns while it loads them."""
    folder = models.make(tmp_path / "model", "qwen3_vl_moe")
    index, given, kinds = index_folder(folder), models.samples(), ["mean_abs_input", "fisher"]
    collect(folder, index, given, kinds, tmp_path / "plain")
    tensors = load_file(folder / "model.safetensors")
    stacks = [name for name in tensors if ".experts." in name]
    turned = {name: value.mT.contiguous() if name in stacks else value for name, value in tensors.items()}
    save_file(turned, folder / "model.safetensors", {"format": "pt"})
    manifest = collect(folder, index_folder(folder), given, kinds, tmp_path / "turned")
    plain, found = (read_statistics(tmp_path / name) for name in ("plain", "turned"))
    for name in stacks:
        own = found.get("mean_abs_input", name)
        assert own is not None and torch.equal(own, plain.get("mean_abs_input", name))  # type: ignore[arg-type]
        assert manifest.axis[name] == 1 == plain.manifest.axis[name] - 1
        assert turned[name].shape[1] == own.shape[1]
        assert torch.equal(found.get("fisher", name).mT, plain.get("fisher", name))  # type: ignore[union-attr, arg-type]


def test_channels_that_are_never_anything_but_zero_are_counted(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = models.make(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"][[2, 5, 7]] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    manifest = collect(folder, index_folder(folder), models.samples(), ["mean_abs_input"], tmp_path / "out")
    assert manifest.dead_channels["model.layers.0.self_attn.q_proj.weight"] == 3
    assert manifest.dead_channels["model.layers.1.self_attn.q_proj.weight"] == 0


def test_sums_are_float32_under_a_callers_autocast_too(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index, given, kinds = index_folder(folder), models.samples(documents=3), ["gram", "grad_weight"]
    collect(folder, index, given, kinds, tmp_path / "plain")
    with torch.autocast("cpu", torch.bfloat16):
        collect(folder, index, given, kinds, tmp_path / "auto")
    plain, auto = ((tmp_path / name / "statistics.safetensors").read_bytes() for name in ("plain", "auto"))
    assert plain == auto


def test_the_order_of_the_texts_does_not_matter(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    index, texts = (
        index_folder(folder),
        [f"{number} {'abcdefghij'[number:]:.<22}"[:24] for number in range(6)],
    )
    for name, order in (("forth", texts), ("back", texts[::-1])):
        collect(folder, index, samples_of(order, tokens=24), ["mean_abs_input", "gram"], tmp_path / name)
    forth, back = (read_statistics(tmp_path / name) for name in ("forth", "back"))
    assert forth.manifest.digest != back.manifest.digest and forth.manifest.documents == 6
    for kind in forth.manifest.kinds:
        for name in forth.names(kind):
            torch.testing.assert_close(forth.get(kind, name), back.get(kind, name), rtol=1e-5, atol=1e-6)


def test_progress_goes_on_over_all_passes(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "llama")
    told: list[Progress] = []
    kinds = ["mean_abs_input", "fisher", "grad_weight"]
    given = models.samples(documents=4)
    collect(folder, index_folder(folder), given, kinds, tmp_path / "out", on_progress=told.append)
    shares = [each.share for each in told]
    assert shares == sorted(shares) and shares[-1] == 1.0
    assert {each.turns for each in told} == {3} and {each.turn for each in told} == {0, 1, 2}
    assert all(each.tokens_per_second > 0 for each in told)


def test_channels_of_pictures_are_their_second_axis(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "segmenter")
    index, seen = index_folder(folder), dict[str, list[torch.Tensor]]()
    manifest = collect(folder, index, models.samples(), ["mean_abs_input"], tmp_path / "out")
    found, model = read_statistics(tmp_path / "out"), models.whole(folder)
    kinds = (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)
    paths = [path for path, each in model.named_modules() if isinstance(each, kinds)]
    for path in paths:
        model.get_submodule(path).register_forward_pre_hook(
            lambda _, args, path=path: seen.setdefault(path, []).append(args[0].abs().double())
        )
    with torch.no_grad():
        for batch in models.batches(folder, models.samples()):
            model(**batch.inputs)
    assert {type(model.get_submodule(path)) for path in seen} == set(kinds)
    makers = Skeleton(index).makers
    for path, given in seen.items():
        (name,) = makers[f"{path}.weight"]
        wanted = torch.cat([each.movedim(1, -1).flatten(0, -2) for each in given]).mean(0).float()
        torch.testing.assert_close(found.get("mean_abs_input", name), wanted, rtol=1e-4, atol=1e-6)
        turned = isinstance(model.get_submodule(path), nn.ConvTranspose2d | nn.BatchNorm2d)
        assert manifest.axis[name] == (0 if turned else 1)


def test_a_model_that_draws_numbers_draws_the_same_in_every_call(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "masked_autoencoder")
    index = index_folder(folder)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for name in "ab":
        collect(folder, index, models.samples(), ["mean_abs_input"], tmp_path / name)
    assert torch.equal(torch.get_rng_state(), before)
    a, b = ((tmp_path / name / "statistics.safetensors").read_bytes() for name in "ab")
    assert a == b


def test_a_model_that_fails_block_by_block_is_run_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = models.make(tmp_path / "model", "llama")
    forward = LlamaModel.forward

    def all_at_once(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.layers[1].mlp.up_proj.weight.is_meta:
            raise IndexError("of the model's own")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(LlamaModel, "forward", all_at_once)
    made = collect(folder, index_folder(folder), models.samples(), ["mean_abs_input"], tmp_path / "out")
    assert "model.layers.1.mlp.up_proj.weight" in made.axis
    monkeypatch.setattr(LlamaModel, "forward", lambda *_, **__: [][1])
    with pytest.raises(ModelNotRun, match=r"fails when it is run .*\(IndexError: list index out of range\)"):
        collect(folder, index_folder(folder), models.samples(), ["mean_abs_input"], tmp_path / "none")


def test_other_rules_of_a_tokenizer_are_other_statistics(tmp_path: Path) -> None:
    folder = models.make(tmp_path / "model", "gpt2")

    def digest(name: str) -> str:
        return collect(folder, index_folder(folder), models.samples(), ["gram"], tmp_path / name).digest

    first = digest("first")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert digest("template") == first
    document = json.loads((folder / "tokenizer.json").read_text())
    document["normalizer"] = {"type": "Lowercase"}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert digest("lowercase") != first
