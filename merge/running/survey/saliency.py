"""How active each part of each layer is, told from the statistics on data that a merge was made with.

Of statistics with a number for each channel all numbers are taken, of those with one for each entry the
beginnings of four pieces, evenly spread, of Gram matrices the diagonal (mean squares of the channels).
"""

from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.arch.roles import role_of
from merge.checkpoint.index import ModelIndex
from merge.contract.informed import KINDS
from merge.running.statistics import StatisticsFolder
from merge.running.survey.spots import Spot, spot_of

DIAGONAL = 512
"""Channels of a Gram matrix that are read at most."""
PIECES, PIECE = 4, 1024
QUANTILES = {"low": 0.1, "median": 0.5, "high": 0.9}


def saliency(
    needed: Mapping[str, Sequence[str]], models: Mapping[str, ModelIndex], folders: Mapping[str, Path]
) -> list[dict[str, Any]]:
    """For each model and kind of statistic: mean and quantiles by part of each layer (``cells``) and by layer
    and class (``layers``), as plain JSON. Raises ``StatisticsInvalid`` and ``NotFinite``.
    """
    found = []
    for key in sorted(needed):
        with StatisticsFolder(folders[key], key) as held:
            found += [_of_kind(held, models[key], key, kind) for kind in needed[key]]
    return found


def _of_kind(held: StatisticsFolder, model: ModelIndex, key: str, kind: str) -> dict[str, Any]:
    shared = held.manifest.shared if KINDS[kind].layout != "entry" else {}
    names = [name.removeprefix(f"{kind}/") for name in held.names if name.startswith(f"{kind}/")]
    pooled: dict[tuple[Spot, str], list[Tensor]] = {}
    also: dict[Spot, set[str]] = {}
    for name in sorted(names):
        spot = spot_of(name) or Spot("", -1, name.removesuffix(".weight"))
        owner = shared.get(name)
        if owner is not None:
            also.setdefault(spot_of(owner) or Spot("", -1, owner), set()).add(spot.part)
            continue
        values = _values(held, kind, name)
        if values.numel():
            pooled.setdefault((spot, _role(name, model)), []).append(values)
    of_layers: dict[tuple[str, int, str], list[Tensor]] = {}
    for (spot, role), parts in pooled.items():
        if spot.layer >= 0:
            of_layers.setdefault((spot.tower, spot.layer, role), []).extend(parts)
    dead = [count for name, count in held.manifest.dead_channels.items() if name not in shared]
    return {
        "model": key,
        "kind": kind,
        "tokens": held.manifest.tokens,
        "dead_channels": sum(dead),
        "cells": [
            {**_place(spot), "class": role, "also": sorted(also.get(spot, set()) - {spot.part})}
            | _told(torch.cat(parts))
            for (spot, role), parts in sorted(pooled.items(), key=lambda each: each[0])
        ],
        "layers": [
            {"tower": tower, "layer": layer, "class": role} | _told(torch.cat(parts))
            for (tower, layer, role), parts in sorted(of_layers.items())
        ],
    }


def _place(spot: Spot) -> dict[str, Any]:
    return {"tower": spot.tower, "layer": spot.layer if spot.layer >= 0 else None, "part": spot.part}


def _role(name: str, model: ModelIndex) -> str:
    """The class of a tensor; of a tied head, which is stored under another name, by its name alone."""
    known = model.tensors.get(name)
    return role_of(name, known.shape if known is not None else (1, 1), model.config)


def _values(held: StatisticsFolder, kind: str, name: str) -> Tensor:
    stored, shape = f"{kind}/{name}", held.names[f"{kind}/{name}"]
    total, layout = prod(shape), KINDS[kind].layout
    if layout == "square":
        width = shape[-1]
        channels = total // width
        wanted = [place * channels // min(channels, DIAGONAL) for place in range(min(channels, DIAGONAL))]
        return torch.cat([held.read(stored, at * width + at % width, 1) for at in wanted])
    if layout == "channel" or total <= PIECES * PIECE:
        return held.read(stored, 0, total)
    firsts = [(total - PIECE) * place // (PIECES - 1) for place in range(PIECES)]
    return torch.cat([held.read(stored, first, PIECE) for first in firsts])


def _told(values: Tensor) -> dict[str, Any]:
    at = torch.tensor(list(QUANTILES.values()), dtype=torch.float64)
    wide = values.to(torch.float64)
    ordered = wide.sort().values
    found = ordered[(at * (ordered.numel() - 1)).round().long()]
    numbers = {"mean": wide.mean(), **dict(zip(QUANTILES, found, strict=True)), "most": ordered[-1]}
    return {name: float(f"{float(value):.6g}") for name, value in numbers.items()}
