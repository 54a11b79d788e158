"""How active the layers are, as the merge report tells it: the numbers of the statistics' files."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merge.checkpoint.header import TensorInfo
from merge.checkpoint.index import ModelIndex
from merge.errors import NotFinite
from merge.learn.statistics import MANIFEST, Manifest
from merge.running.survey.page import render_page
from merge.running.survey.plots import by_magnitude, chart
from merge.running.survey.saliency import PIECE, PIECES, saliency
from merge.running.survey.spots import Spot, labels_of, spot_of
from tests.merge import informed

CHANNELS = "mean_abs_input"
Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
GATE = "model.layers.1.mlp.gate_proj.weight"


def model_of(shapes: dict[str, tuple[int, ...]]) -> ModelIndex:
    infos = {
        name: TensorInfo(name, "F32", shape, "model.safetensors", 0, 0) for name, shape in shapes.items()
    }
    return ModelIndex("tiny", infos, {"model_type": "llama"}, None, {}, "")


def folder_of(path: Path, values: dict[str, Tensor], **facts: object) -> Path:
    folder = informed.write(path, values)
    kinds = tuple(sorted({name.partition("/")[0] for name in values}))
    manifest = Manifest("d", kinds, "m", None, "x", {}, tokens=64, documents=2, **facts)  # type: ignore[arg-type]
    (folder / MANIFEST).write_text(json.dumps(manifest.as_dict()))
    return folder


def test_mean_and_quantiles_of_the_channels_by_part_and_by_class(tmp_path: Path) -> None:
    values = {f"{CHANNELS}/{Q}": torch.arange(11.0), f"{CHANNELS}/{GATE}": torch.full((4,), 2.0)}
    folder = folder_of(tmp_path / "base", values, shared={K: Q}, dead_channels={Q: 1, K: 1})
    model = model_of({Q: (8, 11), K: (8, 11), GATE: (8, 4)})
    (told,) = saliency({"base": (CHANNELS,)}, {"base": model}, {"base": folder})
    assert (told["model"], told["kind"], told["tokens"]) == ("base", CHANNELS, 64)
    assert told["dead_channels"] == 1, "channels of a shared input are counted once"
    first, second = told["cells"]
    assert first == {
        "tower": "model.layers", "layer": 0, "part": "self_attn.q_proj", "also": ["self_attn.k_proj"],
        "class": "linear", "mean": 5.0, "low": 1.0, "median": 5.0, "high": 9.0, "most": 10.0,
    }  # fmt: skip
    assert (second["layer"], second["part"], second["mean"]) == (1, "mlp.gate_proj", 2.0)
    assert [(row["layer"], row["class"], row["median"]) for row in told["layers"]] == [
        (0, "linear", 5.0),
        (1, "linear", 2.0),
    ]


def test_experts_are_one_part_and_what_lies_outside_the_layers_is_told_apart(tmp_path: Path) -> None:
    names = [f"model.layers.0.mlp.experts.{number}.up_proj.weight" for number in range(2)]
    values = {f"{CHANNELS}/{name}": torch.full((4,), 1.0 + at) for at, name in enumerate(names)}
    values[f"{CHANNELS}/lm_head.weight"] = torch.ones(4)
    folder = folder_of(tmp_path / "base", values)
    model = model_of({**dict.fromkeys(names, (8, 4)), "model.embed_tokens.weight": (9, 4)})
    (told,) = saliency({"base": (CHANNELS,)}, {"base": model}, {"base": folder})
    outside, experts = told["cells"]
    assert (outside["layer"], outside["part"], outside["class"]) == (None, "lm_head", "head")
    assert (experts["part"], experts["mean"], experts["low"]) == ("mlp.experts.*.up_proj", 1.5, 1.0)
    assert len(told["layers"]) == 1


def test_of_a_gram_matrix_the_diagonal_is_told_and_of_entries_a_sample(tmp_path: Path) -> None:
    matrix = torch.full((3, 3), 100.0)
    matrix.diagonal().copy_(torch.tensor([1.0, 2.0, 3.0]))
    folder = folder_of(tmp_path / "gram", {f"gram/{Q}": matrix})
    (told,) = saliency({"a": ("gram",)}, {"a": model_of({Q: (5, 3)})}, {"a": folder})
    assert (told["cells"][0]["mean"], told["cells"][0]["most"]) == (2.0, 3.0)
    large = torch.zeros(10 * PIECE * PIECES)
    large[:PIECE] = 4.0
    folder = folder_of(tmp_path / "fisher", {f"fisher/{Q}": large.view(-1, PIECE)})
    (told,) = saliency({"a": ("fisher",)}, {"a": model_of({Q: (40, PIECE)})}, {"a": folder})
    assert told["cells"][0]["mean"] == 4.0 / PIECES, "the beginning and three other pieces"


def test_a_number_that_is_not_finite_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", {f"{CHANNELS}/{Q}": torch.tensor([1.0, float("nan")])})
    with pytest.raises(NotFinite, match=r"mean_abs_input/model\.layers\.0\.self_attn\.q_proj"):
        saliency({"a": (CHANNELS,)}, {"a": model_of({Q: (5, 2)})}, {"a": folder})


def test_the_page_plots_every_part_and_layer(tmp_path: Path) -> None:
    second = Q.replace("0", "1")
    values = {f"{CHANNELS}/{Q}": torch.tensor([0.01, 0.03]), f"{CHANNELS}/{second}": torch.tensor([1.0, 3.0])}
    folder = folder_of(tmp_path / "base", values)
    told = saliency({"base": (CHANNELS,)}, {"base": model_of({Q: (5, 2), second: (5, 2)})}, {"base": folder})
    survey = {"task_vectors_from": "base", "extent": "full", "entries_measured": 0, "groups": []}
    page = render_page({**survey, "saliency": told}, title="x")
    assert "layer 0, self_attn.q_proj: 0.02" in page and "layer 1, self_attn.q_proj: 2" in page
    assert "By layer: class linear" in page and "greatest" in page
    assert "Saliency" not in render_page(survey, title="x"), "a report of an earlier version has none"


@pytest.mark.parametrize(
    ("name", "spot"),
    [
        (
            "encoder.block.3.layer.0.SelfAttention.q.weight",
            Spot("encoder.block", 3, "layer.*.SelfAttention.q"),
        ),
        ("transformer.h.0.attn.c_attn.bias", Spot("transformer.h", 0, "attn.c_attn.bias")),
        ("lm_head.weight", None),
    ],
)
def test_a_part_is_named_within_its_layer(name: str, spot: Spot | None) -> None:
    assert spot_of(name) == spot


def test_lists_of_layers_are_named_only_where_there_are_several() -> None:
    assert labels_of(["h", "h"]) == {"h": ""}
    assert labels_of(["encoder", "decoder"]) == {"encoder": "encoder: ", "decoder": "decoder: "}


def test_a_logarithmic_axis_holds_zero_and_equal_numbers() -> None:
    plotted = chart("t", "a", [0, 1], {"x": [0.0, 0.0], "y": [5.0, 5.0]}, log=True)
    assert [text for _, text in plotted.y_ticks] == ["1", "10"]
    share, shown = by_magnitude([3.0, 3.0, 0.0])
    assert (share(3.0), share(0.0), list(shown)) == (0.5, 0.0, [3.0])
