"""What is found of a model's modules: sums over tokens, and the statistics that they come to.

Products and sums of a batch are float32, totals float64 (Grams: float32).
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from merge.errors import NotFinite

_PIECE_ROWS = 128


@dataclass
class Meter:
    """Running sums over the tokens one module (or one expert) was given."""

    width: int
    kinds: frozenset[str]
    device: torch.device
    tokens: int = 0
    absolute: Tensor | None = None
    squares: Tensor | None = None
    gram: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Adds inputs (tokens, width), float32."""
        self.tokens += rows.shape[0]
        if "mean_abs_input" in self.kinds:
            self.absolute = _added(self.absolute, rows, torch.abs)
        if "gram" in self.kinds:
            if self.gram is None:
                self.gram = torch.zeros(self.width, self.width, device=self.device)
            self.gram.addmm_(rows.t(), rows)
        if "input_second_moment" in self.kinds:
            self.squares = _added(self.squares, rows, torch.square)

    def means(self) -> dict[str, Tensor]:
        """The statistics asked for, float32 on the CPU: zeros where no token came."""
        share = 1 / max(self.tokens, 1)
        found: dict[str, Tensor] = {}
        for kind, total in (
            ("mean_abs_input", self.absolute),
            ("input_second_moment", self.squares),
            ("gram", self.gram),
        ):
            if kind in self.kinds:
                shape = (self.width, self.width) if kind == "gram" else (self.width,)
                found[kind] = torch.zeros(shape) if total is None else (total * share).float().cpu()
        return found

    def dead(self) -> int:
        """Channels that were never anything but zero."""
        if self.absolute is not None:
            seen = self.absolute
        elif self.squares is not None:
            seen = self.squares
        elif self.gram is not None:
            seen = self.gram.diagonal()
        else:
            return self.width
        return int((seen == 0).sum())


@dataclass
class Findings:
    """What one stage gave: tensors by ``<kind>/<tensor>`` and the facts of the manifest about them."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    axis: dict[str, int] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    counted: dict[str, int | list[int]] = field(default_factory=dict)
    dead_channels: dict[str, int] = field(default_factory=dict)


def _added(total: Tensor | None, rows: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The total (float64) and the column sums of the changed rows, in pieces that stay in the cache."""
    if total is None:
        total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    ones = torch.ones(_PIECE_ROWS, device=rows.device)
    for piece in torch.split(rows, _PIECE_ROWS):
        total.add_(torch.mv(change(piece).t(), ones[: piece.shape[0]]))
    return total


def finite(value: Tensor, kind: str, name: str) -> Tensor:
    """A statistic of a module as it is; raises ``NotFinite`` naming both."""
    if not bool(value.isfinite().all()):
        raise NotFinite(
            f"{kind} of {name} came out with NaN or infinity: what this module is given on the calibration "
            "data (or its gradients) is not finite, or too large to be summed."
        )
    return value
