"""What mergekit and we are both asked to merge: cases as plain data, and inputs made of whole numbers.

``bench/record_mergekit.py`` runs the cases in an environment that has mergekit and writes what comes out to
``agreement.json``; ``test_agreement.py`` compares ours with it. Needs nothing but Python.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

RECORDED = Path(__file__).with_name("agreement.json")


@dataclass(frozen=True)
class Case:
    """One merge: our chain and mergekit's method with its parameters, on ``sources`` models and a base.

    ``based`` says whether either is handed the base, ``weights`` are the sources', ``together`` is how much
    the sources change in common, beside what each changes alone.
    """

    steps: tuple[tuple[str, Mapping[str, Any]], ...]
    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    sources: int = 3
    shape: tuple[int, ...] = (12, 16)
    weights: tuple[float, ...] | None = None
    based: bool = True
    together: float = 0.0


def values(seed: int, count: int) -> list[float]:
    """``count`` different fractions in (-1, 1), by a congruence that runs through all residues of a prime."""

    def states() -> Iterator[int]:
        state = 1 + seed * 7919 % 65536
        while True:
            state = state * 75 % 65537
            yield state

    return [(2 * state - 65537) / 65536 for state in islice(states(), count)]


def inputs(case: Case) -> tuple[list[float], list[list[float]]]:
    """The base and the sources, flat: the base in (-1, 1), changes up to a sixteenth."""
    count = prod(case.shape)
    base = values(0, count)
    changes = [values(1 + place, count) for place in range(case.sources)]
    common = [case.together * value for value in values(99, count)]
    return base, [
        [b + (d + c) / 16 for b, d, c in zip(base, change, common, strict=True)] for change in changes
    ]


UNIT = {"weight": 1.0}
MERGEKIT_TIES = {"density": 1.0, "on_tie": "plus"}
CASES: Mapping[str, Case] = {
    "trim_sum": Case((("trim", {"density": 0.3}), ("ties", {"density": 1.0, "on_tie": "plus"})), "ties",
                     {**UNIT, "density": 0.3}),
    "trim_rescaled": Case((("trim", {"density": 0.3, "rescale": "l1"}), ("ties", MERGEKIT_TIES)), "ties",
                          {**UNIT, "density": 0.3, "rescale": True}),
    "breadcrumbs": Case((("breadcrumbs", {"density": 0.7, "gamma": 0.1}), ("task_arithmetic", {})),
                        "breadcrumbs", {**UNIT, "density": 0.7, "gamma": 0.1}),
    "breadcrumbs_rescaled": Case(
        (("breadcrumbs", {"density": 0.5, "rescale": "l1"}), ("task_arithmetic", {"scale": 0.5})),
        "breadcrumbs", {**UNIT, "density": 0.5, "rescale": True, "lambda": 0.5}),
    "breadcrumbs_shrunk": Case(
        (("breadcrumbs", {"density": 0.8, "gamma": 0.5, "overlap": "shrink_gamma"}), ("task_arithmetic", {})),
        "breadcrumbs", {**UNIT, "density": 0.8, "gamma": 0.5}),
    "breadcrumbs_ties": Case(
        (("breadcrumbs", {"density": 0.6, "gamma": 0.02}), ("ties", {**MERGEKIT_TIES, "normalize": False})),
        "breadcrumbs_ties", {**UNIT, "density": 0.6, "gamma": 0.02}),
    "sce": Case((("sce", {"on_tie": "plus"}),), "sce"),
    "sce_half": Case((("sce", {"density": 0.5, "on_tie": "plus"}),), "sce", {"select_topk": 0.5}),
    "sce_two": Case((("sce", {"density": 0.1, "on_tie": "plus"}),), "sce", {"select_topk": 0.1}, sources=2),
    "sce_equal": Case((("sce", {"equal_below": 1e-6, "on_tie": "plus"}),), "sce", {}, sources=8),
    "ram": Case((("ram", {"epsilon": 0.03}),), "ram", {"epsilon": 0.03}),
    "ram_default": Case((("ram", {}),), "ram"),
    "ramplus_tl": Case((("ramplus_tl", {"epsilon": 0.03}),), "ramplus_tl", {"epsilon": 0.03}),
    "ramplus_tl_strong": Case((("ramplus_tl", {"epsilon": 0.05, "r": 0.5, "alpha": 2.0}),), "ramplus_tl",
                              {"epsilon": 0.05, "r": 0.5, "alpha": 2.0}, sources=5),
    "arcee_fusion": Case((("arcee_fusion", {}),), "arcee_fusion", sources=1),
    "arcee_fusion_vector": Case((("arcee_fusion", {}),), "arcee_fusion", sources=1, shape=(150,)),
    "nuslerp": Case((("nuslerp", {}),), "nuslerp", {"weight": [0.3, 0.9]}, sources=2, weights=(0.3, 0.9),
                    based=False),
    "nuslerp_deltas": Case((("nuslerp", {}),), "nuslerp", {"weight": [2.0, 0.5]}, sources=2,
                           weights=(2.0, 0.5)),
    "nuslerp_rows": Case((("nuslerp", {"along": "rows"}),), "nuslerp",
                         {"weight": [1.0, 3.0], "nuslerp_flatten": False}, sources=2, weights=(1.0, 3.0)),
    "nuslerp_columns": Case((("nuslerp", {"along": "columns"}),), "nuslerp",
                            {"weight": [1.0, 3.0], "nuslerp_flatten": False, "nuslerp_row_wise": True},
                            sources=2, weights=(1.0, 3.0), based=False),
    "nuslerp_columns_deltas": Case(
        (("nuslerp", {"along": "columns"}),), "nuslerp",
        {"weight": [1.0, 3.0], "nuslerp_flatten": False, "nuslerp_row_wise": True}, sources=2,
        weights=(1.0, 3.0)),
    "nuslerp_vector": Case((("nuslerp", {"along": "columns"}),), "nuslerp",
                           {"weight": [1.0, 3.0], "nuslerp_flatten": False, "nuslerp_row_wise": True},
                           sources=2, weights=(1.0, 3.0), shape=(150,)),
    "multislerp_flat": Case((("multislerp_flat", {}),), "multislerp", {"weight": [1.0, 2.0, 0.5]},
                            weights=(1.0, 2.0, 0.5), based=False),
    "multislerp_flat_deltas": Case((("multislerp_flat", {}),), "multislerp", {"weight": [1.0, 2.0, 0.5]},
                                   weights=(1.0, 2.0, 0.5)),
    "multislerp_flat_sum": Case((("multislerp_flat", {"normalize": False}),), "multislerp",
                                {"weight": [0.5, 0.4, 0.5], "normalize_weights": False},
                                weights=(0.5, 0.4, 0.5)),
    "karcher": Case((("karcher", {}),), "karcher", based=False),
    "karcher_many": Case((("karcher", {"max_iter": 50, "tol": 1e-8}),), "karcher",
                         {"max_iter": 50, "tol": 1e-8}, sources=8, based=False),
    "model_stock": Case((("model_stock", {}),), "model_stock", together=1.0),
    "model_stock_many": Case((("model_stock", {}),), "model_stock", sources=8, together=0.5),
    "model_stock_rows": Case((("model_stock", {"along": "rows"}),), "model_stock", {"filter_wise": True},
                             together=3.0),
    "nearswap": Case((("nearswap", {"t": 0.03}),), "nearswap", {"t": 0.03}, sources=1),
}  # fmt: skip
"""By name. mergekit computes them in float64, so that only the meaning can differ."""
