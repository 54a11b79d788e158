"""Exact match: what a model writes after a prompt, greedily, is one of the right answers to the letter."""

import re
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoring.errors import ScoreNotFinite
from scoring.likelihood import longest
from scoring.model import LoadedModel
from scoring.score import mean_score
from scoring.scorers.prepared import How, Measuring, Prepared
from scoring.settings import ExactMatchSettings
from scoring.tasks import ExactMatchTask
from scoring.windows import Pass, batches, start_token, starts_by_itself

WINDOW = 2048
ARTICLES = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str, how: str) -> str:
    """What of a text is compared (``ExactMatchSettings``).

    >>> normalised(" The  answer, 42! ", "words"), normalised(" 42 ", "strip")
    ('answer 42', '42')
    """
    if how == "none":
        return text
    if how == "strip":
        return text.strip()
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def prepare(loaded: LoadedModel, task: ExactMatchTask, how: How) -> Prepared:
    """Prompts in tokens, those of one length together, so that none needs padding."""
    asked = task.settings
    room = max(1, longest(loaded, how.window or WINDOW) - asked.max_new_tokens)
    tokenizer: Any = loaded.tokenizer
    start, own = start_token(tokenizer), starts_by_itself(tokenizer)
    rows = []
    for index, prompt in enumerate(task.prompts):
        ids = list(tokenizer(prompt.prompt, add_special_tokens=False, verbose=False)["input_ids"])
        if start is not None and (own or not ids):
            ids = [start, *ids]
        rows.append(Pass(tuple(ids[-room:]), (index,)))
    groups = batches(rows, how.batch_tokens, even=True)

    def measure(loaded: LoadedModel) -> Measuring:
        right = [0.0] * len(task.prompts)
        for group in groups:
            texts = continued(loaded, [each.ids for each in group], asked)
            for each, text in zip(group, texts, strict=True):
                index = each.rows[0]
                wanted = {normalised(answer, asked.normalise) for answer in task.prompts[index].answers}
                right[index] = float(normalised(text, asked.normalise) in wanted)
            yield len(group)
        return [mean_score(task.name, "exact_match", right, how.per_example)]

    return Prepared(len(rows), measure)


@dataclass
class _Line:
    """What is written after one prompt."""

    new: list[int] = field(default_factory=list)
    text: str = ""
    ended: bool = False

    def write(self, token: int, ends: set[int], tokenizer: Any, stops: Sequence[str]) -> None:
        """Adds a token; a stop string and what follows it are cut off."""
        if self.ended:
            return
        if token in ends:
            self.ended = True
            return
        self.new.append(token)
        self.text = tokenizer.decode(self.new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found = [place for place in (self.text.find(stop) for stop in stops) if place >= 0]
        if found:
            self.text, self.ended = self.text[: min(found)], True


def continued(loaded: LoadedModel, prompts: Sequence[Sequence[int]], asked: ExactMatchSettings) -> list[str]:
    """What is written after prompts of equal length, always the likeliest token, the first of equals.

    Sampling settings that come with a model are left aside.
    """
    lines = [_Line() for _ in prompts]
    ends = _ends(loaded)
    whole = torch.tensor([list(each) for each in prompts], device=loaded.device)
    fed, past = whole, None
    room = longest(loaded, sys.maxsize) - whole.shape[1] + 1
    for _ in range(min(asked.max_new_tokens, max(room, 1))):
        logits, past = _next(loaded, fed, whole, past)
        if not bool(torch.isfinite(logits).all()):
            raise ScoreNotFinite(f"{loaded.folder.name} answers with NaN or infinity; its weights are broken")
        chosen = logits.argmax(dim=1)
        for line, token in zip(lines, chosen.tolist(), strict=True):
            line.write(token, ends, loaded.tokenizer, asked.stop)
        if all(line.ended for line in lines):
            break
        whole = torch.cat([whole, chosen[:, None]], dim=1)
        fed = whole if past is None else chosen[:, None]
    return [line.text for line in lines]


def _next(loaded: LoadedModel, fed: Tensor, whole: Tensor, past: Any) -> tuple[Tensor, Any]:
    mask = torch.ones_like(whole)
    with torch.inference_mode():
        if loaded.keeps_a_past:
            out = loaded.model(input_ids=fed, attention_mask=mask, past_key_values=past, use_cache=True)
            return out.logits[:, -1].float(), out.past_key_values
    return loaded.logits(whole, mask, [whole.shape[1] - 1])[:, 0], None


def _ends(loaded: LoadedModel) -> set[int]:
    """Tokens that end an answer, by the tokenizer, the config and the settings of generation: chat models
    often name the end of a turn in the last alone.
    """
    tellers = (loaded.tokenizer, loaded.model.config, getattr(loaded.model, "generation_config", None))
    told = [getattr(each, "eos_token_id", None) for each in tellers]
    flat = [each for one in told for each in (one if isinstance(one, list) else [one])]
    return {each for each in flat if isinstance(each, int)}
