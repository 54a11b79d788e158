"""AIM from a recipe alone, measuring included, on all kinds of models: the formula on what comes out."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from merge.learn.statistics import Statistics, read_statistics
from tests.merge.learn import models
from tests.merge.test_gather import TEXT, folders, merge, tensors

KINDS = ("bert", "classifier", "t5", "bart", "vit", "clip", "mixtral", "qwen_moe", "gpt_oss", "albert")
OMEGA = 0.2
EMBEDDINGS = ("embed", "shared", "relative_attention_bias")


def family(root: Path, kind: str) -> Path:
    """A base of that kind, and two models whose every float differs a little."""
    models.make(root / "base", kind)
    for number in (1, 2):
        shutil.copytree(root / "base", root / f"expert{number}")
        generator = torch.Generator().manual_seed(number)
        for path in (root / f"expert{number}").glob("*.safetensors"):
            own = load_file(path)
            for name, each in own.items():
                if each.is_floating_point() and name != "final_logits_bias":  # a buffer, the same in all
                    each += 0.05 * torch.randn(each.shape, generator=generator)
            save_file(own, path, {"format": "pt"})
    (root / "texts.txt").write_text(TEXT)
    return root


def factor_of(known: Statistics, name: str, like: Tensor) -> Tensor | None:
    """What AIM leaves of each entry's change, in float64."""
    activity = known.get("mean_abs_input", name)
    if activity is None:
        return None
    whole = activity.double()
    share = whole / whole.amax(-1, keepdim=True).clamp(min=1e-300)
    shape = [1] * like.dim()
    shape[known.manifest.axis[name]] = share.shape[-1]
    if share.dim() == 2:
        shape[0] = share.shape[0]
    return 1 - share.view(shape) * (1 - OMEGA)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_that_has_inputs_is_held_back_by_them(tmp_path: Path, kind: str) -> None:
    root, output = family(tmp_path, kind), {"dtype": {"output": "float32"}}
    assert merge(root, "plain", ["linear"], **output) == 0
    assert merge(root, "held", ["linear", {"method": "aim", "omega": OMEGA}], **output) == 0
    (folder,) = folders(root)
    known = read_statistics(folder)
    base, plain, held = (tensors(root / name) for name in ("base", "plain", "held"))
    matrices = []
    for name, start in base.items():
        factor = factor_of(known, name, start)
        if factor is None:
            assert torch.equal(held[name], plain[name]), name
            continue
        assert torch.allclose(held[name], start + (plain[name] - start) * factor, atol=1e-6), name
        matrices += [name] if start.dim() > 1 else []
    inside = {name for name, each in base.items() if each.dim() > 1 and not name.endswith("bias")}
    missed = inside - set(matrices)
    assert matrices and all(any(word in name for word in EMBEDDINGS) for name in missed), missed
