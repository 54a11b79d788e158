"""What the benches of classifiers share: labelled items in splits, and the training of an expert."""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Thing = TypeVar("Thing")
Label = TypeVar("Label")


def split_rows(
    name: str,
    rows: Iterable[tuple[Thing, Label]],
    test: Iterable[tuple[Thing, Label]] | None,
    sizes: Mapping[str, int],
) -> dict[str, list[tuple[Thing, Label]]]:
    """Shuffled rows of every split, nothing twice; ``test`` is the set's own test part, where it has one."""
    rng = random.Random(f"split {name}")
    own = [] if test is None else list(dict(test).items())
    rng.shuffle(own)
    seen = {thing for thing, _ in own}
    rest = [row for row in dict(rows).items() if row[0] not in seen]
    rng.shuffle(rest)
    made = {}
    for split, count in sizes.items():
        source = own if split == "test" and own else rest
        made[split] = source[:count]
        del source[:count]
    return made


def descend(
    tuned: Sequence[Tensor],
    loss_of: Callable[[], Tensor],
    steps: int,
    rate: float,
    warm_up: int,
    decay: float,
) -> float:
    """AdamW on losses of one batch each, and the last of them; the rate falls with a cosine."""
    optimizer = torch.optim.AdamW(tuned, lr=rate, weight_decay=decay, fused=True)
    loss = torch.tensor(math.nan)
    for step in range(steps):
        for group in optimizer.param_groups:
            cosine = 0.5 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = rate * min(1.0, (step + 1) / warm_up) * cosine
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return loss.item()
