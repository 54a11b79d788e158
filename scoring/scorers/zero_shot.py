"""Classification without a trained head: the class whose name is nearest to the text (arXiv:2103.00020).

A head is one vector of length one a class; a text's logits are its cosines with them over the temperature.
"""

import torch
from torch import Tensor

from scoring.embedding import class_loss, embedded, tokenised
from scoring.errors import ModelUnusable
from scoring.model import LoadedModel
from scoring.scorers.classification import class_scores
from scoring.scorers.prepared import BATCH_TOKENS, How, Measuring, Prepared
from scoring.tasks import ZeroShotTask


def prepare(loaded: LoadedModel, task: ZeroShotTask, how: How, head: Tensor | None = None) -> Prepared:
    """Texts (and, without a ``head`` of shape [classes, features], class names) in tokens."""
    asked = task.settings
    rows = tokenised(loaded, [asked.prefix + item.text for item in task.items])
    names = [] if head is not None else tokenised(loaded, _names(task))
    labels = [item.label for item in task.items]

    def measure(loaded: LoadedModel) -> Measuring:
        made = (
            head
            if head is not None
            else (yield from embedded(loaded, names, asked.pooling, how.batch_tokens))
        )
        vectors = yield from embedded(loaded, rows, asked.pooling, how.batch_tokens)
        if made.shape != (len(asked.classes), vectors.shape[1]):
            shape = f"{list(made.shape)}, not [{len(asked.classes)}, {vectors.shape[1]}]"
            raise ModelUnusable("head_does_not_fit", f"the head of set {task.name!r} has the shape {shape}")
        logits = vectors @ made.float().T / asked.temperature
        right = [float(int(row.argmax()) == label) for row, label in zip(logits, labels, strict=True)]
        losses = [class_loss(row, int(label)) for row, label in zip(logits, labels, strict=True)]
        return class_scores(task.name, right, losses, how.per_example)

    return Prepared(len(rows) + len(names), measure)


def head_of(loaded: LoadedModel, task: ZeroShotTask) -> Tensor:
    """The class names' vectors, [classes, features]: a head that other models can be given."""
    making = embedded(loaded, tokenised(loaded, _names(task)), task.settings.pooling, BATCH_TOKENS)
    while True:
        try:
            next(making)
        except StopIteration as done:
            vectors: Tensor = done.value
            return vectors.to(torch.float32)


def _names(task: ZeroShotTask) -> list[str]:
    return [
        task.settings.prefix + task.settings.template.replace("{}", name) for name in task.settings.classes
    ]
