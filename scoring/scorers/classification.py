"""Classification of texts by the head that a model has of its own."""

from collections.abc import Sequence

import torch

from scoring.embedding import class_loss, padded, reads_padding, tokenised
from scoring.errors import ModelUnusable, ScoreNotFinite
from scoring.model import LoadedModel
from scoring.score import Score, mean_score
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.tasks import ClassificationTask, Labelled
from scoring.windows import Pass, batches

HEAD = "ForSequenceClassification"


def prepare(loaded: LoadedModel, task: ClassificationTask, how: How) -> Prepared:
    """Texts in tokens, labels as the classes of the head."""
    if not loaded.architecture.endswith(HEAD):
        message = f"{loaded.folder.name} is a {loaded.architecture}, which has no classification head"
        raise ModelUnusable("no_classification_head", f"{message}; score it with zero_shot")
    labels = [_class_of(loaded, item, task.name) for item in task.items]
    rows = tokenised(loaded, [item.text for item in task.items])
    groups = [[each] for each in rows]
    if _pads(loaded, rows):
        groups = batches(rows, how.batch_tokens, even=reads_padding(loaded))

    def measure(loaded: LoadedModel) -> Measuring:
        right, losses = [0.0] * len(labels), [0.0] * len(labels)
        for group in groups:
            for each, logits in zip(group, _logits(loaded, group), strict=True):
                index = each.rows[0]
                right[index] = float(int(logits.argmax()) == labels[index])
                losses[index] = class_loss(logits, labels[index])
            yield len(group)
        return class_scores(task.name, right, losses, how.per_example)

    return Prepared(len(rows), measure)


def class_scores(task: str, right: list[float], losses: list[float], per_example: bool) -> list[Score]:
    """Accuracy, and the mean cross-entropy in nats."""
    return [
        mean_score(task, "accuracy", right, per_example),
        mean_score(task, "log_loss", losses, per_example),
    ]


def _pads(loaded: LoadedModel, rows: Sequence[Pass]) -> bool:
    """Whether texts of unequal length can go together: a decoder finds its last token by the padding's id,
    and a summary of the last place (XLNet's) would be one of the padding. Encoder-decoders look for the last
    end of a text, and want as many in each (one may say ``</s>``).
    """
    config = loaded.model.config.get_text_config()
    if getattr(config, "summary_type", None) == "last":
        return False
    end = getattr(config, "eos_token_id", None)
    if loaded.model.config.is_encoder_decoder and len({each.ids.count(end) for each in rows}) > 1:
        return False
    pad = getattr(config, "pad_token_id", None)
    return pad is not None and pad == getattr(loaded.tokenizer, "pad_token_id", None)


def _logits(loaded: LoadedModel, group: Sequence[Pass]) -> torch.Tensor:
    ids, mask = padded(loaded, group)
    try:
        with torch.inference_mode():
            logits: torch.Tensor = loaded.model(input_ids=ids, attention_mask=mask).logits.float().cpu()
    except ValueError as error:  # of the model's own code, about the tokens
        message = f"{loaded.folder.name} is a {loaded.architecture} that cannot read item {group[0].rows[0]}"
        raise ModelUnusable("text_unread", f"{message}: {error}") from error
    if not bool(torch.isfinite(logits).all()):
        raise ScoreNotFinite(f"{loaded.folder.name} answers with NaN or infinity; its weights are broken")
    return logits


def _class_of(loaded: LoadedModel, item: Labelled, task: str) -> int:
    names = {str(name): int(index) for index, name in loaded.model.config.id2label.items()}
    count = int(loaded.model.config.num_labels)
    label = names.get(item.label, -1) if isinstance(item.label, str) else item.label
    if not 0 <= label < count:
        known = ", ".join(list(names)[:8])
        message = (
            f"set {task!r} has the label {item.label!r}; {loaded.folder.name} has {count} classes: {known}"
        )
        raise ModelUnusable("label_unknown", message)
    return label
