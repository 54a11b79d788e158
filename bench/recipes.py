"""The recipes that are timed, in our form and in mergekit's where it has the method."""

from dataclasses import dataclass, field
from math import inf
from typing import Any

from bench.family import LAYERS

TASK = {"weight": 0.4}
SPARSE = {"weight": 0.4, "density": 0.5}


@dataclass(frozen=True)
class Timed:
    """``experts`` sources, with the base read or not. ``theirs`` is the method's name in mergekit, ``each``
    and ``overall`` are its parameters there. ``floor`` and ``faster`` are the bars: at most so many times the
    floor, at least so many times mergekit.
    """

    based: bool
    experts: int
    steps: list[dict[str, Any]]
    theirs: str | None
    floor: float
    faster: float = 0.0
    each: dict[str, Any] = field(default_factory=dict)
    overall: dict[str, Any] = field(default_factory=dict)
    slow: bool = False
    """Decomposes whole matrices: ``bench.spectral`` has the bar, timed here only when asked for."""
    layers: int = LAYERS
    """Of the family, whose layers are all alike: time on matrices grows with their number."""


def _added(method: str, **settings: Any) -> list[dict[str, Any]]:
    return [{"method": method, **settings}, {"method": "task_arithmetic", "scale": 0.4}]


def _slow(method: str, layers: int = 4, **settings: Any) -> Timed:
    return Timed(True, 3, [{"method": method, **settings}], None, inf, slow=True, layers=layers)


_ADDED = [{"method": "task_arithmetic", "scale": 0.4}]

RECIPES: dict[str, Timed] = {
    "passthrough": Timed(False, 1, [{"method": "passthrough"}], "passthrough", 1.4, 8),
    "linear": Timed(False, 3, [{"method": "linear"}], "linear", 1.4, 8, {"weight": 0.333}),
    "slerp": Timed(False, 2, [{"method": "slerp", "t": 0.4}], "slerp", 1.4, 8, {}, {"t": 0.4}),
    "nuslerp": Timed(False, 2, [{"method": "nuslerp"}], "nuslerp", 1.4, 8, {"weight": 0.5}),
    "task_arithmetic": Timed(
        True, 3, [{"method": "task_arithmetic", "scale": 0.4}], "task_arithmetic", 1.4, 8, TASK
    ),
    "dare": Timed(True, 3, _added("dare", density=0.5), "dare_linear", 1.4, 8, SPARSE),
    "ties": Timed(True, 3, [{"method": "ties", "density": 0.5}], "ties", 3, 40, SPARSE),
    "ties_global": Timed(True, 3, [{"method": "ties", "density": 0.5, "scope": "global"}], None, 4.5),
    "breadcrumbs": Timed(
        True, 3, _added("breadcrumbs", density=0.9), "breadcrumbs", 3, 40, {"weight": 0.4, "density": 0.9}
    ),
    "della": Timed(True, 3, _added("della", density=0.5), "della", 3, 40, SPARSE),
    "sce": Timed(True, 3, [{"method": "sce", "density": 0.1}], "sce", 3, 40, {}, {"select_topk": 0.1}),
    "ram": Timed(True, 3, [{"method": "ram"}], "ram", 3, 6),
    "model_stock": Timed(True, 3, [{"method": "model_stock"}], "model_stock", 3, 6),
    "karcher": Timed(False, 3, [{"method": "karcher"}], "karcher", 3, 6),
    "consensus_ta": Timed(True, 3, [{"method": "consensus_ta", "scale": 0.4}], None, 1.4),
    "magmax": Timed(True, 3, [{"method": "magmax"}], None, 1.4),
    "emr": Timed(True, 3, [{"method": "emr"}], None, 1.4),
    "expo": Timed(True, 1, [{"method": "expo"}], None, 1.4),
    "unlearn": Timed(True, 1, [{"method": "unlearn"}], None, 1.4),
    "unlearn_top": Timed(True, 1, [{"method": "unlearn", "top": 0.1}], None, 3),
    "layer_swap": Timed(False, 2, [{"method": "layer_swap"}], None, 1.4),
    "localize_and_stitch": Timed(True, 3, [{"method": "localize_and_stitch"}], None, 4.5),
    "trim": Timed(True, 3, _added("trim", density=0.5), None, 3),
    "multislerp": Timed(True, 3, [{"method": "multislerp"}], None, 3),
    "multislerp_flat": Timed(True, 3, [{"method": "multislerp_flat"}], "multislerp", 3),
    "ramplus_tl": Timed(True, 3, [{"method": "ramplus_tl"}], None, 3),
    "nearswap": Timed(True, 1, [{"method": "nearswap"}], "nearswap", 1.4, 0, {}, {"t": 0.1}),
    "arcee_fusion": Timed(True, 1, [{"method": "arcee_fusion"}], None, 4.5),
    "norm_repair": Timed(True, 3, [*_ADDED, {"method": "norm_repair"}], None, 3),
    "clip_outliers": Timed(True, 3, [*_ADDED, {"method": "clip_outliers"}], None, 3),
    "pcb": Timed(True, 3, [{"method": "pcb"}], None, 4.5),
    "pcb_tensor": Timed(True, 3, [{"method": "pcb", "scope": "tensor"}], None, 3),
    "widen": Timed(True, 3, [{"method": "widen"}], None, 3),
    **{name: _slow(name) for name in ("tsv_m", "iso_c", "iso_cts", "wudi", "optmerge", "opcm", "knots")},
    "tsv_m_reweighted": _slow("tsv_m", variant="reweighted_experimental"),
    "doge": _slow("doge", layers=1),
}
