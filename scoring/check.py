"""Does a model folder work at all? It is loaded, its tokenizer tried, and a few tokens are generated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from scoring.check_report import CheckFinding, CheckReport, Vitals
from scoring.errors import ModelUnusable, ScoreNotFinite, ScoringStopped
from scoring.model import LoadedModel, fitting_threads, load, names, odd_weights
from scoring.template import render_chat
from scoring.trial import LACKING, PROBE, has_all, looks_ahead, text_ids, trial_inputs
from scoring.vitals import has_vitals, vitals_of

SAMPLES = (
    PROBE,
    "def add(a, b):\n    return a + b\n",
    "Numbers: 0 1 23 456; signs: (a) [b] {c} <d>, naïve café, 日本語.",
)
GENERATED = 16
CHAT = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "And of Italy?"},
]
STEPS = ("load", "tokenizer", "chat_template", "forward", "generate", "vitals")


class _Notes:
    def __init__(self) -> None:
        self.findings: list[CheckFinding] = []

    def error(self, code: str, message: str) -> None:
        self.findings.append(CheckFinding("error", code, message))

    def warn(self, code: str, message: str) -> None:
        self.findings.append(CheckFinding("warning", code, message))


def check_model(
    folder: Path,
    *,
    device: str = "cpu",
    texts: Sequence[str] = (),
    only_vitals: bool = False,
    writes: bool = True,
    on_progress: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> CheckReport:
    """Tries a model folder out, from local files and without any code of its own.

    On the first of ``texts`` the vitals of a model that predicts tokens are taken, which
    ``scoring.vitals.compare`` holds against those of its parents; with ``only_vitals`` nothing else is tried,
    and unless the model ``writes`` nothing is generated for them. ``on_progress`` is called with each name of
    STEPS as that step begins; ``should_stop`` is asked at the same moments and raises ScoringStopped. What is
    wrong with the model is in the report, never an exception.
    """

    def begin(step: str) -> None:
        if should_stop():
            raise ScoringStopped(f"the check of {folder.name} was asked to stop")
        on_progress(step)

    begin("load")
    try:
        loaded = load(folder, device=device, dtype="auto")
    except ModelUnusable as error:
        return CheckReport((CheckFinding("error", error.reason, str(error)),))
    with fitting_threads(loaded):
        loaded = replace(loaded, causal=loaded.causal and not looks_ahead(loaded))
        if only_vitals:
            begin("vitals")
            notes = _Notes()
            vitals = _take_vitals(loaded, texts, notes, writes)
            return CheckReport(tuple(notes.findings), vitals=vitals)
        return _try_out(loaded, texts, begin)


def _try_out(loaded: LoadedModel, texts: Sequence[str], begin: Callable[[str], None]) -> CheckReport:
    notes = _Notes()
    whole = _check_tensors(loaded, notes)
    begin("tokenizer")
    round_trip = _check_tokenizer(loaded, notes)
    begin("chat_template")
    rendered = _check_template(loaded, notes, bool(round_trip))
    begin("forward")
    finite = _check_forward(loaded, notes) if whole else False
    begin("generate")
    prompt, generated = _check_generation(loaded, notes) if finite else (None, None)
    begin("vitals")
    vitals = _take_vitals(loaded, texts, notes) if finite else None
    return CheckReport(
        findings=tuple(notes.findings),
        architecture=loaded.architecture,
        parameters=loaded.parameters,
        causal=loaded.causal,
        round_trip=round_trip,
        chat_template=rendered,
        finite=finite,
        prompt=prompt,
        generated=generated,
        vitals=vitals,
    )


def _check_tensors(loaded: LoadedModel, notes: _Notes) -> bool:
    """Whether all weights are numbers. A forward pass need not tell: attention over a few tokens may drop
    NaN, and no trial input goes through every module. Matrices of zeros are a warning.
    """
    if loaded.missing:
        message = f"the checkpoint lacks {names(loaded.missing)}, which would be filled with random numbers"
        notes.error("missing_tensors", message)
    if loaded.unexpected:
        notes.warn("unexpected_tensors", f"{loaded.architecture} has no place for {names(loaded.unexpected)}")
    broken, zero = odd_weights(loaded)
    if zero:
        notes.warn("zero_weights", f"these matrices hold nothing but zeros: {names(zero)}")
    if broken:
        notes.error("not_finite", f"these weights hold NaN or infinity: {names(broken)}")
    return not broken


def _check_tokenizer(loaded: LoadedModel, notes: _Notes) -> bool | None:
    """True: every sample came back as it was. A token beyond the embedding is an error, a changed text a
    warning.
    """
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        if loaded.causal:
            notes.warn("no_tokenizer", f"{loaded.folder.name} has no tokenizer files, so it cannot read text")
        return None
    same = True
    for sample in SAMPLES:
        ids = tokenizer(sample, add_special_tokens=False)["input_ids"]
        if not ids:
            notes.error("tokenizer_empty", f"the tokenizer turns {sample!r} into no tokens at all")
            return False
        if loaded.vocabulary is not None and max(ids) >= loaded.vocabulary:
            rows = f"the embedding has {loaded.vocabulary} rows"
            message = f"the tokenizer gives token {max(ids)} for {sample!r}, but {rows}"
            notes.error("token_out_of_range", message)
            return False
        back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        if back.strip() != sample.strip():
            same = False
            notes.warn("round_trip_differs", f"{sample!r} comes back from the tokenizer as {back[:120]!r}")
    if loaded.vocabulary is not None and len(tokenizer) > loaded.vocabulary:
        message = (
            f"the tokenizer knows {len(tokenizer)} tokens, but the embedding has {loaded.vocabulary} rows"
        )
        notes.warn("vocabulary_larger_than_embedding", message)
    return same


def _check_template(loaded: LoadedModel, notes: _Notes, texts_come_back: bool) -> bool | None:
    """True: it renders, with all that was said, and the tokenizer gives the rendered chat back."""
    tokenizer = loaded.tokenizer
    templates = None if tokenizer is None else tokenizer.chat_template
    if tokenizer is None or not templates:
        return None
    named = templates if isinstance(templates, dict) else {"default": templates}
    template = named.get("default") or next(iter(named.values()))
    tokens = {
        key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
    }
    rendered = render_chat(template, CHAT, tokens)
    if rendered.problem is not None:
        notes.error("chat_template_fails", f"the chat template does not render: {rendered.problem}")
        return False
    lost = next((each for each in CHAT if each["content"] not in rendered.text), None)
    if lost is not None:
        said = f"the chat template leaves out what the {lost['role']} said: {lost['content']!r}"
        notes.warn("chat_template_drops_text", said)
        return False
    return _check_chat(loaded, tokenizer, rendered.text, notes, texts_come_back)


def _check_chat(loaded: LoadedModel, tokenizer: Any, chat: str, notes: _Notes, texts_come_back: bool) -> bool:
    """Whether the rendered chat is tokens of this model, and these are the chat, white space apart."""
    ids = tokenizer(chat, add_special_tokens=False)["input_ids"]
    if loaded.vocabulary is not None and max(ids, default=0) >= loaded.vocabulary:
        message = (
            f"a chat in the model's own template has token {max(ids)} "
            f"({tokenizer.convert_ids_to_tokens(max(ids))!r}), but the embedding has {loaded.vocabulary} rows"
        )
        notes.error("token_out_of_range", message)
        return False
    back = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    if texts_come_back and "".join(back.split()) != "".join(chat.split()):
        message = f"a chat in the model's own template, {chat[:120]!r}, comes back from the tokenizer as "
        notes.warn("chat_differs", f"{message}{back[:120]!r}: marks of the template may be no tokens")
        return False
    return True


def _check_forward(loaded: LoadedModel, notes: _Notes) -> bool | None:
    """One forward pass; None where no input could be made up for this kind of model."""
    inputs = trial_inputs(loaded, SAMPLES[0])
    if inputs is None:
        kind = getattr(loaded.model, "main_input_name", "its input")
        notes.warn(
            "forward_not_tried", f"no trial input is known for {loaded.architecture}, which reads {kind}"
        )
        return None
    try:
        with torch.inference_mode():
            output = loaded.model(**{key: value.to(loaded.device) for key, value in inputs.items()})
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["?"])[0][:300]
        if isinstance(error, LACKING) and not loaded.causal and not has_all(loaded, inputs):
            said = f"no trial input is known for {loaded.architecture}, which wants more: {reason}"
            notes.warn("forward_not_tried", said)
            return None
        notes.error("forward_fails", f"a forward pass of {loaded.architecture} fails: {reason}")
        return False
    listed = output if isinstance(output, tuple) else (output,)
    given = output if isinstance(output, Mapping) else {f"output {n}": each for n, each in enumerate(listed)}
    floats = {
        key: value for key, value in given.items() if torch.is_tensor(value) and value.is_floating_point()
    }
    bad = [key for key, value in floats.items() if not bool(torch.isfinite(value).all())]
    if bad:
        notes.error(
            "not_finite", f"a forward pass gives NaN or infinity in {', '.join(bad)}; the weights are broken"
        )
    return not bad


def _check_generation(loaded: LoadedModel, notes: _Notes) -> tuple[str | None, str | None]:
    """Greedy continuation without sampling settings or caches of the model's own; odd ones are warned of."""
    if not loaded.causal or loaded.tokenizer is None:
        return None, None
    ids, end = text_ids(loaded, SAMPLES[0]), loaded.tokenizer.eos_token_id
    new: list[int] = []
    while len(new) < GENERATED and (not new or new[-1] != end):
        row = torch.tensor([ids + new])
        logits = loaded.logits(row, torch.ones_like(row), [row.shape[1] - 1])
        new.append(int(logits[0, 0].argmax()))
    text = loaded.tokenizer.decode(new, skip_special_tokens=True)
    if is_degenerate(new):
        notes.warn(
            "degenerate_generation", f"after {SAMPLES[0]!r} the model only repeats itself: {text[:80]!r}"
        )
    return SAMPLES[0], text


def _take_vitals(
    loaded: LoadedModel, texts: Sequence[str], notes: _Notes, writes: bool = True
) -> Vitals | None:
    """The vitals of a whole model that predicts tokens of texts."""
    broken = {finding.code for finding in notes.findings if finding.severity == "error"}
    if not texts or not has_vitals(loaded) or broken:
        return None
    try:
        return vitals_of(loaded, texts, writes=writes)
    except ScoreNotFinite as error:
        notes.error("not_finite", str(error))
    except ModelUnusable as error:
        notes.error(error.reason, str(error))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        notes.warn("vitals_not_taken", f"{loaded.architecture} could not be tried on texts: {reason}")
    return None


def is_degenerate(ids: list[int]) -> bool:
    """Whether generated tokens are one or two tokens said over and over.

    >>> is_degenerate([5, 7] * 8), is_degenerate([5]), is_degenerate(list(range(16)))
    (True, False, False)
    """
    return len(ids) >= 8 and len(set(ids)) <= 2
