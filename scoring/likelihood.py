"""Log-likelihoods of rows of tokens under a causal language model, batch by batch."""

import math
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from scoring.errors import ModelUnusable, ScoreNotFinite
from scoring.model import LoadedModel
from scoring.windows import Pass, Row, batches, passes

LOGIT_ENTRIES = 32 << 20  # float32 logits held at a time: 128 MiB
UNKNOWN_WINDOW = 1024


def longest(loaded: LoadedModel, window: int) -> int:
    """Tokens of context at most: what is asked for, or what the model takes."""
    return max(8, min(window, loaded.positions or UNKNOWN_WINDOW))


def grouped(loaded: LoadedModel, rows: Sequence[Row], batch_tokens: int) -> list[list[Pass]]:
    """What to feed to measure every row, in groups that fit."""
    budget = max(1, min(batch_tokens, LOGIT_ENTRIES // (loaded.vocabulary or 1)))
    return batches(passes(rows), budget)


def measured(
    loaded: LoadedModel, rows: Sequence[Row], groups: Sequence[Sequence[Pass]]
) -> Generator[int, None, list[float]]:
    """Log-likelihoods, in nats, of the scored part of every row (0 where nothing is scored); yields how many
    rows each forward pass has measured.
    """
    likelihoods = [0.0] * len(rows)
    for group in groups:
        found = log_likelihoods(loaded, rows, group)
        for position, value in found.items():
            likelihoods[position] = value
        yield len(found)
    return likelihoods


def log_likelihoods(loaded: LoadedModel, rows: Sequence[Row], group: Sequence[Pass]) -> dict[int, float]:
    """Summed log-likelihood, in nats, of the scored part of each row of a group of passes; one forward
    pass.
    """
    width = max(len(each.ids) for each in group)
    ids = torch.zeros(len(group), width, dtype=torch.long)
    mask = torch.zeros(len(group), width, dtype=torch.long)
    wanted: set[int] = set()
    for line, each in enumerate(group):
        ids[line, : len(each.ids)] = torch.tensor(each.ids)
        mask[line, : len(each.ids)] = 1
        within_vocabulary(loaded, [rows[index] for index in each.rows])
        for index in each.rows:
            wanted.update(range(rows[index].first - 1, len(rows[index].ids) - 1))
    positions = sorted(wanted)
    logits = loaded.logits(ids, mask, positions)
    place = {position: k for k, position in enumerate(positions)}
    values = {
        index: _row_likelihood(logits[line], place[rows[index].first - 1], rows[index])
        for line, each in enumerate(group)
        for index in each.rows
    }
    if not all(map(math.isfinite, values.values())):
        raise ScoreNotFinite(f"{loaded.folder.name} answers with NaN or infinity; its weights are broken")
    return values


def within_vocabulary(loaded: LoadedModel, rows: Sequence[Row]) -> None:
    """Raises ``ModelUnusable`` if the tokenizer gives a token that the embedding has no row for."""
    most = max((max(row.ids) for row in rows), default=0)
    if loaded.vocabulary is not None and most >= loaded.vocabulary:
        message = (
            f"the tokenizer of {loaded.folder.name} gives token {most}, "
            f"but the embedding has {loaded.vocabulary} rows; take the tokenizer that belongs to the model"
        )
        raise ModelUnusable("token_out_of_range", message)


def _row_likelihood(logits_TV: Tensor, begin: int, row: Row) -> float:  # noqa: N803
    predicted = logits_TV[begin : begin + row.scored]
    wanted = torch.tensor(row.ids[row.first :], device=predicted.device)
    chosen = predicted.gather(1, wanted[:, None])[:, 0]
    return float((chosen - predicted.logsumexp(dim=1)).double().sum())
