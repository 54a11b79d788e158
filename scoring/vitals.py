"""Signs of life of a language model: how surprised it is by common texts, how undecided, how repetitive.

Beside those of its parents they tell a broken merge, whose files look perfectly well, from a sound one.
"""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoring.check_report import CheckFinding, Vitals
from scoring.embedding import padded
from scoring.errors import ScoreNotFinite
from scoring.gaps import fills_gaps, gaps
from scoring.likelihood import grouped, longest, within_vocabulary
from scoring.model import LoadedModel
from scoring.scorers.exact_match import continued
from scoring.settings import ExactMatchSettings
from scoring.windows import Pass, Row, text_rows

VERSION = 2
"""Goes up whenever the same model and texts would give other numbers."""
TEXTS, CHARACTERS, WINDOW, BATCH_TOKENS = 8, 240, 256, 2048
PROMPTS = ("The", "1, 2, 3,")
WRITTEN, GRAM = 16, 3
LOSS_MARGIN = 0.25
"""How much worse than its worst parent, relatively, a result may predict common texts."""
LEAST_ENTROPY = 0.2
"""Share of its surest parent's entropy that a result must have."""
REPEATS, REPEATS_MORE = 0.8, 0.4
"""A result repeats itself if that much of what it writes is repetition, and more than of its parents."""


def sample(texts: Sequence[str]) -> tuple[str, ...]:
    """What is used of a set of texts: the beginnings of the first few."""
    return tuple(text[:CHARACTERS] for text in texts[:TEXTS])


def digest(texts: Sequence[str], *, writes: bool) -> str:
    """sha256 (hex) of what vitals depend on besides the model."""
    told = json.dumps(["vitals", VERSION, writes, *sample(texts)]).encode()
    return hashlib.sha256(told).hexdigest()


def has_vitals(loaded: LoadedModel) -> bool:
    """Whether a model predicts tokens of texts: the next one, masked ones, or the rest of what it reads."""
    return loaded.tokenizer is not None and (loaded.causal or fills_gaps(loaded))


def vitals_of(loaded: LoadedModel, texts: Sequence[str], *, writes: bool = True) -> Vitals | None:
    """The vitals of a model that has some; None where no token of the texts can be scored.

    Only a causal model that ``writes`` has a repetition. Raises ``ScoreNotFinite`` and ``ModelUnusable``.
    """
    length = longest(loaded, WINDOW)
    if not loaded.causal:
        return _of_gaps(loaded, sample(texts), length)
    rows = [row for row in text_rows(loaded.tokenizer, sample(texts), length) if row.scored > 0]
    nats = entropy = 0.0
    for group in grouped(loaded, rows, BATCH_TOKENS):
        surprise, undecided = _surprise(loaded, rows, group)
        nats, entropy = nats + surprise, entropy + undecided
    tokens = sum(row.scored for row in rows)
    read = {row.item for row in rows}
    size = sum(len(text.encode()) for item, text in enumerate(sample(texts)) if item in read)
    if not tokens:
        return None
    written = _repetition(loaded) if writes else None
    return Vitals(nats / math.log(2) / size, entropy / tokens, written)


def _of_gaps(loaded: LoadedModel, texts: Sequence[str], length: int) -> Vitals | None:
    nats = entropy = size = 0.0
    tokens = 0
    for gap in gaps(loaded, texts, length):
        surprise, undecided = _told(loaded, gap.logits, gap.wanted)
        nats, entropy, size = nats + surprise, entropy + undecided, size + gap.size
        tokens += len(gap.wanted)
    return Vitals(nats / math.log(2) / size, entropy / tokens) if tokens else None


def _surprise(loaded: LoadedModel, rows: Sequence[Row], group: Sequence[Pass]) -> tuple[float, float]:
    """Nats and entropies of the scored tokens of a group, as ``_told``."""
    within_vocabulary(loaded, [rows[index] for each in group for index in each.rows])
    ids, mask = padded(loaded, group)
    logits = loaded.logits(ids, mask, range(ids.shape[1]))
    nats = entropy = 0.0
    for line, each in enumerate(group):
        for index in each.rows:
            row = rows[index]
            wanted = torch.tensor(row.ids[row.first :], device=logits.device)
            surprise, undecided = _told(loaded, logits[line, row.first - 1 : len(row.ids) - 1], wanted)
            nats, entropy = nats + surprise, entropy + undecided
    return nats, entropy


def _told(loaded: LoadedModel, logits: Tensor, wanted: Tensor) -> tuple[float, float]:
    """Nats of the wanted tokens, and the sum of the entropies, each a share of the most there can be."""
    logs = logits.log_softmax(dim=1)
    nats = -float(logs.gather(1, wanted[:, None]).double().sum())
    entropy = -float((logs.exp() * logs).double().sum()) / math.log(logs.shape[1])
    if not math.isfinite(nats) or not math.isfinite(entropy):
        raise ScoreNotFinite(f"{loaded.folder.name} answers with NaN or infinity; its weights are broken")
    return nats, entropy


def _repetition(loaded: LoadedModel) -> float:
    asked = ExactMatchSettings(max_new_tokens=WRITTEN, stop=(), normalise="none")
    tokenizer: Any = loaded.tokenizer
    shares = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        if ids and (loaded.vocabulary is None or max(ids) < loaded.vocabulary):
            text = continued(loaded, [ids], asked)[0]
            shares.append(repetition(tokenizer(text, add_special_tokens=False)["input_ids"]))
    return math.fsum(shares) / len(shares) if shares else 0.0


def repetition(ids: Sequence[int]) -> float:
    """Share of the runs of three tokens that were there before.

    >>> repetition([1, 2, 3, 4, 5]), repetition([7] * 8)
    (0.0, 0.8333333333333334)
    """
    runs = [tuple(ids[at : at + GRAM]) for at in range(len(ids) - GRAM + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def repeats(result: Vitals) -> bool:
    """Whether so much of what a model writes is repetition that its parents must be heard."""
    return result.repetition is not None and result.repetition >= REPEATS


def compare(
    result: Vitals, parents: Mapping[str, Vitals], margin: float | None = LOSS_MARGIN
) -> list[CheckFinding]:
    """What the result's vitals say beside its parents'; nothing without parents. ``margin`` is relative to
    the worst parent's bits per byte; None leaves the loss aside.
    """
    if not parents:
        return []
    found = []
    worst = max(parents, key=lambda name: parents[name].bits_per_byte)
    bits, bound = result.bits_per_byte, parents[worst].bits_per_byte
    if margin is not None and not bits <= bound * (1 + margin):
        message = (
            f"the result takes {bits:.3f} bits a byte of common texts, more than {margin:.0%} worse than its "
            f"worst parent ({worst}: {bound:.3f}); lower the factors of the merge, or look at its layers"
        )
        found.append(CheckFinding("error", "loss_much_worse", message))
    elif bits > bound:
        message = f"the result takes {bits:.3f} bits a byte of common texts, its worst parent {bound:.3f}"
        found.append(CheckFinding("warning", "loss_worse_than_parents", message))
    least = min(each.entropy for each in parents.values())
    if not result.entropy >= LEAST_ENTROPY * least:
        message = (
            f"the result is nearly always sure of the next token (entropy {result.entropy:.3f}, its parents' "
            f"{least:.3f} or more): its weights are too large"
        )
        found.append(CheckFinding("error", "overconfident", message))
    written = [each.repetition for each in parents.values() if each.repetition is not None]
    if repeats(result) and written and (result.repetition or 0.0) >= max(written) + REPEATS_MORE:
        message = (
            f"the result repeats itself ({result.repetition:.0%}; its parents at most {max(written):.0%})"
        )
        found.append(CheckFinding("error", "repeats_itself", message))
    return found
