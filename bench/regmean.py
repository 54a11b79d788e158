"""RegMean at the shape of a 1B model: what of its time are Gram matrices, what solving, and how near both
come to the arithmetic alone, by BLAS, in the same run on one thread. Seconds are of CPU.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.learn import make, samples_of_words
from bench.spectral import seconds_of
from merge.checkpoint.index import index_folder
from merge.learn.batches import Batch, batches_of
from merge.learn.collect import collect
from merge.learn.samples import Samples
from merge.learn.skeleton import Skeleton
from merge.plan import make_plan
from merge.recipe.recipe import recipe_from
from merge.run import run

SHAPE = {"hidden_size": 2048, "intermediate_size": 5632, "heads": 32, "kv": 4}
SOURCES = ("a", "b")
BUDGET = 8 << 30
LAYERS_OF_1B = 22
_WIDE, _INNER = SHAPE["hidden_size"], SHAPE["intermediate_size"]
_NARROW = _WIDE * SHAPE["kv"] // SHAPE["heads"]
LAYER = ((_WIDE, (_WIDE, _NARROW, _NARROW)), (_WIDE, (_WIDE,)), (_WIDE, (_INNER, _INNER)), (_INNER, (_WIDE,)))
"""Of each system of a layer the inputs, and the outputs of the matrices that have them."""
HEAD = ((_WIDE, (32000,)),)
LAYER_GRAMS, HEAD_GRAMS = ([width for width, _ in systems] for systems in (LAYER, HEAD))


def regmean(blocks: int, layers: int) -> None:
    """Prints a table of two lines, as Markdown; ``layers`` of the 22 of such a model are made."""
    torch.set_num_threads(1)
    samples = samples_of_words(blocks)
    with tempfile.TemporaryDirectory() as root:
        folders = {
            key: make(Path(root) / key, {**SHAPE, "num_hidden_layers": layers}, filled=True, seed=number)
            for number, key in enumerate(SOURCES)
        }
        batches = batches_of(Skeleton(index_folder(folders["a"])), folders["a"], samples).every
        tokens = sum(batch.tokens for batch in batches)
        products = layers * _products(batches, LAYER_GRAMS) + _products(batches, HEAD_GRAMS)
        at_least = len(SOURCES) * (_forward(folders["a"], batches) + products)
        grams = _collected(folders, samples)
        solved = _merged(folders, Path(root), blocks)
        alone = layers * _solves(LAYER) + _solves(HEAD)
    print(f"{layers} of {LAYERS_OF_1B} layers, {len(SOURCES)} sources, {tokens} tokens each; seconds of CPU")
    print("| | s | the arithmetic alone, s | rate of BLAS reached |")
    print("|---|---|---|---|")
    print(f"| Gram matrices | {grams:.1f} | {at_least:.1f} | {at_least / grams:.2f} |")
    print(f"| merging (solves) | {solved:.1f} | {alone:.1f} | {alone / solved:.2f} |")


def _collected(folders: dict[str, Path], samples: Samples) -> float:
    def work() -> None:
        for folder in folders.values():
            out = folder.parent / f"{folder.name}.statistics"
            collect(folder, index_folder(folder), samples, ["gram"], out, model_sha256="0" * 64)

    return seconds_of(work)


def _merged(folders: dict[str, Path], root: Path, blocks: int) -> float:
    recipe = recipe_from(
        {"sources": [{"id": key, "model": key} for key in folders], "steps": ["regmean"]}
        | {"calibration": {"documents": blocks}}
    )
    plan = make_plan(
        recipe, {key: index_folder(folder, key) for key, folder in folders.items()}, budget=BUDGET
    )
    measured = {key: root / f"{key}.statistics" for key in folders}
    return seconds_of(
        lambda: run(
            plan, folders, root / "out", budget_bytes=BUDGET, threads=1, statistics=measured, survey="none"
        )
    )


def _forward(folder: Path, batches: tuple[Batch, ...]) -> float:
    """The blocks of the model, loaded whole, on all batches."""
    import transformers

    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()

    def work() -> None:
        with torch.no_grad():
            for batch in batches:
                model.model(**batch.inputs, use_cache=False)

    work()
    return seconds_of(work)


def _products(batches: tuple[Batch, ...], grams: Sequence[int]) -> float:
    """Gram matrices of these widths, float32."""
    total = 0.0
    for width in grams:
        gram = torch.zeros(width, width)
        rows = [torch.randn(batch.tokens, width) for batch in batches]
        total += seconds_of(lambda gram=gram, rows=rows: [gram.addmm_(x.t(), x) for x in rows])  # type: ignore[misc]
    return total


def _solves(systems: Sequence[tuple[int, tuple[int, ...]]]) -> float:
    """In float64, a Cholesky factor of each input, products and a solve for each matrix that reads it."""
    total = 0.0
    for width, outputs in systems:
        drawn = torch.randn(width, width, dtype=torch.float64)
        gram = drawn @ drawn.T
        gram.diagonal().add_(width)
        total += seconds_of(lambda gram=gram, outputs=outputs: _solved(gram, outputs))  # type: ignore[misc]
    return total


def _solved(gram: Tensor, outputs: tuple[int, ...]) -> None:
    factor = torch.linalg.cholesky(gram)
    for count in outputs:
        weights = torch.ones(len(gram), count, dtype=torch.float64)
        target = torch.zeros_like(weights)
        for _ in SOURCES:
            target.addmm_(gram, weights)
        torch.cholesky_solve(target, factor)
