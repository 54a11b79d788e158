"""What is differentiated: a loss of one text, by the kind of statistic.

``fisher``: labels are drawn from the model's own distribution at every position, with a generator of the
text's own; (gradient of the sum of their log-probabilities)^2 / positions, mean over texts: the diagonal
Fisher information of one position. ``fisher_argmax``: the same of the likeliest labels, which is not the
Fisher information but takes no draw. ``fisher_exact``: the expectation itself, sum over positions and labels
of p (gradient of log p)^2 / positions, one label of one position (a ``term``) after the other.
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
        rows = logits.reshape(-1, logits.shape[-1]).float()
        if self.kind == EXACT:
            return self._part(rows)
        labels = self._following(sequence, logits) if self.kind == FOLLOWING else None
        if labels is not None:
            rows = logits[0, :-1].float()
        elif self.kind == ARGMAX:
            labels = rows.detach().argmax(dim=-1)
        else:
            labels = self._drawn(rows, sequence)
        chosen: Tensor = torch.log_softmax(rows, dim=-1).gather(1, labels[:, None]).sum()
        positions = rows.shape[0]
        loss: Tensor = -chosen / positions if self.kind == FOLLOWING else chosen / positions**0.5
        return loss

    def _part(self, rows: Tensor) -> Tensor:
        """Its gradient's square is p (gradient of log p)^2 / positions, p that of one label."""
        position, label = divmod(self.term, rows.shape[1])
        chosen: Tensor = torch.log_softmax(rows[position], dim=-1)[label]
        part: Tensor = chosen * (chosen.detach() / 2).exp() / rows.shape[0] ** 0.5
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


def logits_of(result: Any, label: str) -> Tensor:
    """What a model gave that is as wide as there are labels; raises ``ModelNotRun`` where nothing is."""
    for name in ("logits", "prediction_logits", "start_logits"):
        found = getattr(result, name, None)
        if isinstance(found, Tensor):
            return found
    raise ModelNotRun(
        f"{label} gives no probabilities (it has no head), so there is nothing to differentiate: Fisher "
        f"information and grad_weight need a model with a head."
    )
