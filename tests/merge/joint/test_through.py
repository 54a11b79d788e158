"""RegMean++: every layer is measured on what comes out of the merged layers before it, and merged for it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.checkpoint.index import index_folder
from merge.learn.collect import files_sha256
from merge.learn.statistics import Statistics, read_statistics
from merge.learn.walk import Stage
from tests import tiny
from tests.merge.joint import references
from tests.merge.learn import models
from tests.merge.test_gather import family, folders, merge, tensors

PLAIN: dict[str, Any] = {"dtype": {"output": "float32"}}


def measured(root: Path) -> dict[str, Statistics]:
    """The Gram matrices through the merged layers, by the weights' digest of the model."""
    found = [read_statistics(folder) for folder in folders(root)]
    return {each.manifest.model_sha256: each for each in found if each.manifest.kinds == ("gram_merged",)}


def layer_inputs(root: Path, expert: str, layers: int) -> dict[str, Tensor]:
    """What each linear layer of an expert is given when the result's layers stand before its own: float64."""
    load: Any = transformers.LlamaForCausalLM.from_pretrained
    merged = load(root / "out", dtype=torch.float64).eval()
    own = load(root / expert, dtype=torch.float64).eval()
    (batch,) = models.batches(root / expert, references.texts(root))
    found: dict[str, Tensor] = {}
    for number in range(layers):
        theirs = merged.model.layers[number]
        merged.model.layers[number] = own.model.layers[number]
        seen = models.inputs_of_linears(merged, (batch,))
        merged.model.layers[number] = theirs
        found |= {path: x for path, x in seen.items() if path.startswith(f"model.layers.{number}.")}
    last = models.inputs_of_linears(merged, (batch,))
    return {**found, "lm_head": last["lm_head"]}


@pytest.mark.parametrize(
    "steps",
    [["regmean_pp"], ["activation_trim", "regmean_pp", "aim"]],
    ids=["alone", "with steps around it"],
)
def test_what_is_measured_comes_through_the_layers_of_the_result(tmp_path: Path, steps: list[Any]) -> None:
    root = family(tmp_path, layers=2)
    assert merge(root, "out", steps, **PLAIN) == 0
    grams = list(measured(root).values())
    assert len(grams) == 2
    for expert in ("expert1", "expert2"):
        wanted = {
            path: (x.T @ x / len(x)).float()
            for path, x in layer_inputs(root, expert, 2).items()
            if not path.endswith("norm")
        }
        assert len(wanted) == 2 * 7 + 1
        fits = [
            all(close(each.get("gram_merged", f"{path}.weight"), gram) for path, gram in wanted.items())
            for each in grams
        ]
        assert sorted(fits) == [False, True], expert


def close(found: Tensor | None, wanted: Tensor) -> bool:
    return found is not None and torch.allclose(
        found, wanted, rtol=1e-3, atol=1e-5 * float(wanted.abs().max())
    )


def test_the_result_solves_the_normal_equations_of_what_was_measured(tmp_path: Path) -> None:
    root = family(tmp_path, layers=2)
    assert merge(root, "out", [{"method": "regmean_pp", "alpha": 0.5, "ridge": 1e-9}], **PLAIN) == 0
    experts, made = [tensors(root / name) for name in ("expert1", "expert2")], tensors(root / "out")
    known = [each for name in ("expert1", "expert2") for each in measured_of(root, name)]
    for name, found in made.items():
        grams = [each.get("gram_merged", name) for each in known]
        if grams[0] is None or grams[1] is None:
            assert torch.allclose(found, (experts[0][name] + experts[1][name]) / 2, atol=1e-7), name
            continue
        shrunk = [0.5 * g.double() + 0.5 * g.double().diagonal().diag() for g in grams if g is not None]
        residual = sum((found - expert[name]) @ gram for expert, gram in zip(experts, shrunk, strict=True))
        scale = sum(float((expert[name] @ gram).norm()) for expert, gram in zip(experts, shrunk, strict=True))
        assert isinstance(residual, Tensor) and float(residual.norm()) < 1e-5 * scale, name


def measured_of(root: Path, expert: str) -> list[Statistics]:
    return [measured(root)[files_sha256(root / expert, index_folder(root / expert))]]


@pytest.mark.parametrize("make", [tiny.llama, tiny.gpt2, tiny.moe], ids=["llama", "gpt2", "moe"])
def test_identical_models_return_themselves(tmp_path: Path, make: Callable[..., Path]) -> None:
    root = family(tmp_path, make)
    shutil.rmtree(root / "expert2")
    shutil.copytree(root / "expert1", root / "expert2")
    assert merge(root, "out", ["regmean_pp"]) == 0
    assert all(
        torch.equal(found, tensors(root / "expert1")[name]) for name, found in tensors(root / "out").items()
    )


def test_with_one_layer_and_one_embedding_it_is_regmean(tmp_path: Path) -> None:
    root = family(tmp_path, layers=1)
    shared = load_file(root / "base" / "model.safetensors")["model.embed_tokens.weight"]
    for expert in ("expert1", "expert2"):
        own = load_file(root / expert / "model.safetensors")
        save_file({**own, "model.embed_tokens.weight": shared}, root / expert / "model.safetensors")
    assert merge(root, "one", ["regmean"], **PLAIN) == merge(root, "two", ["regmean_pp"], **PLAIN) == 0
    one, two = tensors(root / "one"), tensors(root / "two")
    for name, found in one.items():
        assert torch.equal(found, two[name]) or name == "lm_head.weight", name
    assert not torch.equal(one["lm_head.weight"], two["lm_head.weight"]), "the head reads the merged layer"


def test_layers_after_the_first_see_the_merge(tmp_path: Path) -> None:
    root = family(tmp_path, layers=2)
    assert merge(root, "one", ["regmean"], **PLAIN) == merge(root, "two", ["regmean_pp"], **PLAIN) == 0
    one, two = (tensors(root / name)["model.layers.1.mlp.down_proj.weight"] for name in ("one", "two"))
    assert not torch.allclose(one, two, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "t5", "mixtral", "gemma2"])
def test_other_architectures_go_through(tmp_path: Path, kind: str) -> None:
    """Encoders, encoder-decoders, listed and stacked experts: two models that differ, in and out."""
    for name in ("base", "expert1", "expert2"):
        models.make(tmp_path / name, kind)
    for number in (1, 2):
        path = tmp_path / f"expert{number}" / "model.safetensors"
        moved = {
            name: value + 0.01 * number * torch.ones_like(value).cumsum(-1).sin()
            for name, value in load_file(path).items()
        }
        save_file(moved, path, {"format": "pt"})
    (tmp_path / "texts.txt").write_text("A few words to walk through all of the layers.\n\n" * 8)
    assert merge(tmp_path, "out", ["regmean_pp"]) == 0
    assert all(bool(found.isfinite().all()) for found in tensors(tmp_path / "out").values())


def test_a_run_that_is_cut_off_anywhere_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = family(tmp_path, layers=2)
    assert merge(root, "once", ["regmean_pp"]) == 0
    shutil.rmtree(root / "statistics")
    run, ran = Stage.run, [0]

    class Cut(BaseException):
        pass

    def counted(stage: Stage, **options: Any) -> None:
        ran[0] += 1
        if ran[0] % 4 == 0:
            raise Cut
        run(stage, **options)

    monkeypatch.setattr(Stage, "run", counted)
    for _ in range(9):
        try:
            assert merge(root, "often", ["regmean_pp"]) == 0
            break
        except Cut:
            assert not (root / "often").exists()
    assert ran[0] > 8
    for name in ("model.safetensors", "config.json"):
        assert (root / "once" / name).read_bytes() == (root / "often" / name).read_bytes()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"slices": [{"sources": [{"id": "a", "layers": [0, 1]}, {"id": "b", "layers": [0, 1]}]}]}, "slices"),
        ({"result": {"form": "adapter", "rank": 2}}, "form adapter"),
        ({"steps": [{"method": "trim", "scope": "global"}, "regmean_pp"]}, "set scope to another value"),
        ({"tokenizer": {"source": "union"}}, "vocabularies"),
    ],
    ids=["slices", "adapter", "global", "tokenizer"],
)
def test_recipes_it_does_not_work_with_are_refused_before_anything_is_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: dict[str, Any], says: str
) -> None:
    root = family(tmp_path, layers=2)
    if "tokenizer" in more:
        tiny.write_tokenizer(root / "expert2", ["<new>"])
    assert merge(root, "out", more.pop("steps", ["regmean_pp"]), **more) == 2
    said = capsys.readouterr().err
    assert says in said and "RegMean++" in said and not (root / "statistics").exists()
