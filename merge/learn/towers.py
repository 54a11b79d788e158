"""The lists of blocks of a model, found from its module tree."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from merge.learn.states import States


@dataclass
class Tower:
    """A list of blocks: which are done, and what the last of them gave."""

    path: str
    now: States
    spare: States
    last: str | None = None


@dataclass
class Call:
    """One call of the model's forward: which batch, which block runs, which were called so far. Of a call
    that is watched, ``leaves`` are what done blocks gave; ``before`` is what stands for those before each
    tower's last.
    """

    batch: int = 0
    running: str | None = None
    seen: set[str] = field(default_factory=set)
    watched: bool = False
    leaves: dict[int, tuple[str, Tensor]] = field(default_factory=dict)
    before: dict[str, Any] = field(default_factory=dict)


def block_lists(module: nn.Module) -> Iterator[tuple[str, nn.ModuleList]]:
    """The outermost lists of modules with weights: the towers of blocks, with their paths."""
    found: list[str] = []
    for path, each in module.named_modules():
        if not isinstance(each, nn.ModuleList) or any(path.startswith(f"{above}.") for above in found):
            continue
        alike = len({type(block) for block in each}) == 1 or path.rpartition(".")[2] in _USUAL
        called = not any(isinstance(block, nn.ModuleList) for block in each)
        if len(each) and alike and called and all(any(True for _ in block.parameters()) for block in each):
            found.append(path)
            yield path, each


_USUAL = frozenset({"layers", "layer", "blocks", "block", "h"})
"""What a list of blocks of several kinds (attention and recurrence, dense and sparse) is called."""
