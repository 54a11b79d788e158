"""What is differentiated: a loss of one text, by the kind of statistic.

``fisher``: labels are drawn from the model's own distribution at every position, with a generator of the
text's own; (gradient of the sum of their log-probabilities)^2 / positions, mean over texts: the diagonal
Fisher information of one position. ``fisher_argmax``: the same of the likeliest labels, which is not the
Fisher information but takes no draw. ``fisher_exact``: the expectation itself, sum over positions and labels
of p (gradient of log p)^2 / positions, one label of one position (a ``term``) after the other. Regressions
give a number at each position: all three are the square of its gradient.
``grad_weight``: (gradient of the language-model loss x weight)^2, mean over texts (arXiv:2508.03140), the
labels being the tokens that follow; where nothing follows (encoders, classifiers) drawn ones.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merge.errors import ModelNotRun
from merge.learn.batches import Batch
from merge.learn.labels import EXACT
from merge.learn.skeleton import Skeleton

ARGMAX = "fisher_argmax"
FOLLOWING = "grad_weight"


@dataclass(frozen=True)
class Loss:
    """The loss of ``kind`` of each of ``batches`` (of one text each, numbered from ``first``); of the exact
    Fisher information its ``term``-th part.
    """

    kind: str
    skeleton: Skeleton
    batches: Sequence[Batch]
    seed: int
    first: int = 0
    term: int = 0

    def of(self, result: Any, sequence: int) -> Tensor:
        """The log-likelihood (Fisher) or the loss (grad_weight), a scalar, of what the model gave."""
        logits = logits_of(result, self.skeleton.index.label)
        rows, positions = rows_of(logits, self.skeleton), logits.shape[:-1].numel()
        if rows.shape[1] == 1:
            return self._of_numbers(rows)
        if self.kind == EXACT:
            return self._part(rows, positions)
        labels = self._following(sequence, logits) if self.kind == FOLLOWING else None
        if labels is not None:
            rows, positions = logits[0, :-1].float(), logits.shape[1] - 1
        elif self.kind == ARGMAX:
            labels = rows.detach().argmax(dim=-1)
        else:
            labels = self._drawn(rows, sequence)
        chosen: Tensor = torch.log_softmax(rows, dim=-1).gather(1, labels[:, None]).sum()
        loss: Tensor = -chosen / positions if self.kind == FOLLOWING else chosen / positions**0.5
        return loss

    def _of_numbers(self, numbers: Tensor) -> Tensor:
        """What a regression gives, to be squared: the Fisher information of a number with an error of one."""
        if self.kind == FOLLOWING:
            raise ModelNotRun(
                f"{self.skeleton.index.label} gives a number and no probabilities, so texts have no loss: "
                "take a method that needs none."
            )
        found: Tensor = numbers.sum() / numbers.numel() ** 0.5
        return found

    def _part(self, rows: Tensor, positions: int) -> Tensor:
        """Its gradient's square is p (gradient of log p)^2 / positions, p that of one label."""
        position, label = divmod(self.term, rows.shape[1])
        chosen: Tensor = torch.log_softmax(rows[position], dim=-1)[label]
        part: Tensor = chosen * (chosen.detach() / 2).exp() / positions**0.5
        return part

    def _drawn(self, rows: Tensor, sequence: int) -> Tensor:
        key = hashlib.sha256(f"labels:{self.seed}:{self.first + sequence}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "little"))
        shares = torch.softmax(rows.detach().double().cpu(), dim=-1)
        return torch.multinomial(shares, 1, generator=generator)[:, 0].to(rows.device)

    def _following(self, sequence: int, logits: Tensor) -> Tensor | None:
        inputs = self.batches[sequence].inputs
        ids = inputs.get("decoder_input_ids", inputs.get("input_ids"))
        writes = self.skeleton.module.can_generate() and logits.dim() == 3
        if not writes or ids is None or ids.shape[1] != logits.shape[1] or ids.shape[1] < 2:
            return None
        return ids[0, 1:].to(logits.device)


def rows_of(logits: Tensor, skeleton: Skeleton) -> Tensor:
    """Logits as (choices, labels) of which each choice is for one label, float32. Where a text has several
    labels at once, each of them is a choice of its own: not to have it, or to have it.
    """
    rows = logits.reshape(-1, logits.shape[-1]).float()
    if getattr(skeleton.config, "problem_type", None) != "multi_label_classification":
        return rows
    having = rows.reshape(-1, 1)
    return torch.cat([torch.zeros_like(having), having], dim=1)


def logits_of(result: Any, label: str) -> Tensor:
    """What a model gave, (..., labels); raises ``ModelNotRun`` where nothing of it is for labels."""
    for name in ("logits", "prediction_logits"):
        found = getattr(result, name, None)
        if isinstance(found, Tensor):
            return found.movedim(1, -1) if found.dim() == 4 else found  # of pictures' points: channels second
    if isinstance(getattr(result, "start_logits", None), Tensor):
        return torch.stack([result.start_logits, result.end_logits], dim=1)
    raise ModelNotRun(
        f"{label} gives no probabilities (it has no head), so there is nothing to differentiate: Fisher "
        f"information and grad_weight need a model with a head."
    )
