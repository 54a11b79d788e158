"""Pictures: no one is in two splits, packages' formats are read as they are, experts leave heads alone."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from quality import images, vision
from quality.candidates import candidate
from quality.classifiers import split_rows
from quality.images import SIDE, SIZES, ImageTask, enlarged, pixels
from quality.runner import Runner
from quality.vision import Items, Training, VisionBench

ROWS = [(number.to_bytes(2, "big") * (SIDE * SIDE // 2), number % 3) for number in range(5000)]


def test_splits_have_their_sizes_and_no_picture_twice() -> None:
    splits = split_rows("task", ROWS + ROWS, None, SIZES)
    pictures = [picture for rows in splits.values() for picture, _ in rows]
    assert {split: len(rows) for split, rows in splits.items()} == SIZES
    assert len(set(pictures)) == len(pictures) and splits == split_rows("task", ROWS, None, SIZES)


def test_a_set_s_own_test_part_is_what_is_tested() -> None:
    own = ROWS[:700]
    splits = split_rows("task", ROWS, own, SIZES)
    assert set(splits["test"]) <= set(own) and not set(own) & {*splits["train"], *splits["validation"]}


def test_grey_values_become_pixels_from_minus_one_to_one() -> None:
    pictures, labels = pixels([(bytes([0, 255] * (SIDE * SIDE // 2)), 4)])
    assert pictures.shape == (1, 1, SIDE, SIDE) and labels.tolist() == [4]
    assert pictures[0, 0, 0, :3].tolist() == [-1.0, 1.0, -1.0]


def test_a_small_picture_is_three_times_as_large_with_an_edge() -> None:
    large = torch.tensor(list(enlarged(range(64)))).view(SIDE, SIDE)
    assert large[2:-2, 2:-2][::3, ::3].flatten().tolist() == list(range(64))
    assert set(large[2:5, 5:8].flatten().tolist()) == {1} and not large[:2].any() and not large[:, -2:].any()


def test_fashion_mnist_is_read_from_its_own_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = SIDE * SIDE
    inside = tmp_path / "usr/share/datasets/fashion-mnist"
    inside.mkdir(parents=True)
    for part, labels in (("train", [0, 1, 6]), ("t10k", [4, 9])):
        head = struct.pack(">IIII", 2051, len(labels), SIDE, SIDE)
        grey = b"".join(bytes([10 * label]) * size for label in labels)
        (inside / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + grey))
        head = struct.pack(">II", 2049, len(labels))
        (inside / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(head + bytes(labels)))
    monkeypatch.setattr(images, "debian", lambda package, folder, holds: tmp_path)
    train, test = images.MAKERS["tops"](tmp_path)
    assert list(train) == [(bytes(size), 0), (bytes([60]) * size, 4)]
    assert list(test or ()) == [(bytes([40]) * size, 3)]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VisionBench]:
    """Two sets of noise, bright or dark, and trainings of a few steps."""
    drawn = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    pictures = torch.rand(60, 1, SIDE, SIDE, generator=drawn) + labels.view(-1, 1, 1, 1) - 1
    splits = dict.fromkeys(("train", "validation", "test"), (pictures, labels))
    made = {name: ImageTask(name, 2, splits) for name in ("one", "two")}
    monkeypatch.setattr(vision, "image_tasks", lambda sources, names: made)
    training = Training(base_steps=2, expert_steps=3, batch=8, warm_up=1)
    yield VisionBench(tmp_path, ("one", "two"), training, Items(10, 10), lambda _: None)


def test_experts_differ_from_the_base_and_heads_are_in_no_model(bench: VisionBench) -> None:
    family = bench.family(0)
    heads = load_file(bench.folder / "heads.safetensors")
    assert set(heads) == {"one.weight", "one.bias", "two.weight", "two.bias"}
    base = load_file(family.base / "model.safetensors")
    for folder in family.experts.values():
        tuned = load_file(folder / "model.safetensors")
        assert tuned.keys() == base.keys() and not any(
            "head" in name or "classifier" in name for name in base
        )
        assert any(not torch.equal(tuned[name], base[name]) for name in base)
    assert bench.family(0) == family


@pytest.mark.parametrize("name", ["linear", "regmean"])
def test_a_merge_of_image_models_is_measured_on_pictures_and_scored(bench: VisionBench, name: str) -> None:
    tried = Runner(bench, (0,), lambda _: None).tried(candidate(name), 0.9 if name == "regmean" else None)
    assert tried.why_not is None and all(0 <= value <= 100 for value in tried.headlines)
    assert {len(items) for seed in tried.items for items in seed.values()} == {10}
