"""Trains the demo family from scratch: a tiny Llama base and two experts, on real, plainly licensed text.

usage: python -m demo.train_family [--out demo/family] [--work .mergery/cache/family] [--base-steps N]
[--expert-steps N]

Needs one core and about ten minutes; each model is kept as soon as it is trained, so a rerun goes on from
there. The same machine, texts and versions give the same models; another machine gives models as good.
"""

import argparse
import json
import math
import random
import shutil
import sysconfig
import time
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.texts import KINDS, Entry, Part, collect, wordnet_folder

VOCABULARY, SEQUENCE, BATCH = 1024, 128, 16
END = "<eos>"
BASE_MIX = {"python": 0.12, "dictionary": 0.12, "prose": 0.6, "sums": 0.16}
EXPERTS = {"python": "Python source code", "dictionary": "dictionary entries"}
REPLAY = 0.25  # share of the base's own mix in an expert's diet: it keeps the expert near the base
BASE_RATE, EXPERT_RATE = 3e-3, 5e-4


def train_tokenizer(texts: dict[str, list[str]], file: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of 1024 entries with single digits, trained on the training texts."""
    if not file.exists():
        bpe = Tokenizer(models.BPE())
        digits = pre_tokenizers.Digits(individual_digits=True)
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        some = (text for domain in texts for text in _some(texts[domain], 1_500_000))
        bpe.train_from_iterator(some, trainer)
        file.parent.mkdir(parents=True, exist_ok=True)
        bpe.save(str(file))
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_file=str(file), bos_token=END, eos_token=END, pad_token=END, model_max_length=512
    )


def _some(texts: list[str], characters: int) -> list[str]:
    total = 0
    for index, text in enumerate(texts):
        total += len(text)
        if total > characters:
            return texts[:index]
    return texts


def streams(texts: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast) -> dict[str, Tensor]:
    """One long token row a domain (int64, shape [tokens]), documents joined by the end token."""
    rows = {}
    for domain in texts:
        ids: list[int] = [0]
        for encoded in tokenizer(_some(texts[domain], 6_000_000))["input_ids"]:
            ids += [*encoded, 0]
        rows[domain] = torch.tensor(ids)
    return rows


def new_model() -> LlamaForCausalLM:
    """The untrained model: 4 layers, width 128, 4 query and 2 key heads, tied embeddings, 0.857 M
    parameters.
    """
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def draw(rows: dict[str, Tensor], mix: dict[str, float], rng: random.Random) -> Tensor:
    """A batch of token windows, shape [BATCH, SEQUENCE + 1], domains drawn by their share of the mix."""
    chosen = rng.choices(list(mix), list(mix.values()), k=BATCH)
    windows = []
    for domain in chosen:
        start = rng.randrange(len(rows[domain]) - SEQUENCE - 1)
        windows.append(rows[domain][start : start + SEQUENCE + 1])
    return torch.stack(windows)


def fit(
    model: LlamaForCausalLM,
    rows: dict[str, Tensor],
    mix: dict[str, float],
    steps: int,
    rate: float,
    name: str,
) -> None:
    """AdamW under a cosine schedule with a short warm-up, bfloat16 autocast over float32 weights, in
    place.
    """
    model.train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )
    rng, started = random.Random(f"batches {name}"), time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))
            group["lr"] = rate * min(1.0, (step + 1) / 20) * cosine
        batch = draw(rows, mix, rng)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = F.cross_entropy(logits.float().reshape(-1, VOCABULARY), batch[:, 1:].reshape(-1))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 0 or step == steps - 1:
            print(
                f"{name} step {step + 1}/{steps} loss {loss.item():.3f} {time.monotonic() - started:.0f} s",
                flush=True,
            )
    model.train(mode=False)


def train_or_load(
    folder: Path,
    start: Path | None,
    rows: dict[str, Tensor],
    mix: dict[str, float],
    steps: int,
    rate: float,
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """Trains one member of the family into ``folder`` (bfloat16 safetensors) unless it is already there."""
    if (folder / "model.safetensors").exists():
        print(f"{folder.name}: already trained")
        return
    model = new_model() if start is None else LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    fit(model, rows, mix, steps, rate, folder.name)
    partial = folder.with_name(folder.name + ".partial")
    model.bfloat16().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    write_card(partial, folder.name, mix, steps)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def write_card(folder: Path, name: str, mix: dict[str, float], steps: int) -> None:
    """The model card: what it is, what it read, under which licences."""
    about = f"the expert for {EXPERTS[name]}" if name in EXPERTS else "the base"
    shares = ", ".join(f"{share:.0%} {domain}" for domain, share in mix.items())
    lines = [
        "---",
        "license: apache-2.0",
        "library_name: transformers",
        "pipeline_tag: text-generation",
        "---",
        f"# Mergery's demo family: {about}",
        "",
        f"A Llama of 0.86 million parameters, trained for {steps} steps of {BATCH} x {SEQUENCE} tokens",
        f"on {shares}. It shows that merging works and is good for nothing else. The texts and their",
        "licences (PSF, WordNet) are listed in `LICENSES.md` beside the family in Mergery's repository.",
    ]
    (folder / "README.md").write_text("\n".join(lines) + "\n")


def expert_mix(domain: str) -> dict[str, float]:
    """The base's mix at ``REPLAY``, the rest the expert's own domain."""
    return {d: share * REPLAY + (1 - REPLAY) * (d == domain) for d, share in BASE_MIX.items()}


def kind_questions(entries: list[Entry], count: int) -> list[dict[str, object]]:
    """Which kind is meant? Four choices, balanced over the kinds, so that guessing gives one in four."""
    rng, by_kind = (
        random.Random("kinds"),
        {kind: [e for e in entries if e.kind == kind] for kind in KINDS.values()},
    )
    questions: list[dict[str, object]] = []
    turn = 0
    while len(questions) < count and any(turn < len(found) for found in by_kind.values()):
        for kind, found in by_kind.items():
            if turn < len(found) and len(questions) < count:
                choices = [kind, *rng.sample([other for other in by_kind if other != kind], 3)]
                rng.shuffle(choices)
                questions.append(
                    {
                        "context": found[turn].question,
                        "choices": [f" {choice}" for choice in choices],
                        "answer": choices.index(kind),
                    }
                )
        turn += 1
    return questions


def write_sets(part: Part, folder: Path, sizes: dict[str, int], questions: int) -> None:
    """The evaluation sets of one split: texts a domain, and the multiple-choice set of kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain, count in sizes.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in part.texts[domain][:count]]
        (folder / f"{domain}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = [json.dumps(question, ensure_ascii=False) for question in kind_questions(part.entries, questions)]
    (folder / "kinds.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def copy_licences(out: Path, work: Path) -> None:
    """The two licences under which the texts are used, whole, beside what was made from them."""
    folder = out / "licenses"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(sysconfig.get_paths()["stdlib"]) / "LICENSE.txt", folder / "PYTHON.txt")
    notice = (wordnet_folder(work).parents[1] / "share/doc/wordnet-base/copyright").read_text()
    # What follows is about Debian's packaging, of which nothing is used.
    (folder / "WORDNET.txt").write_text(notice.partition("\nFiles: debian/")[0] + "\n")


def train(out: Path, work: Path, base_steps: int, expert_steps: int) -> None:
    """Texts, tokenizer, base, experts, evaluation sets and licences, in that order, each kept when done."""
    parts = collect(work)
    tokenizer = train_tokenizer(parts["train"].texts, work / "tokenizer.json")
    rows = streams(parts["train"].texts, tokenizer)
    print("train tokens", {domain: len(row) for domain, row in rows.items()}, flush=True)
    sizes = {"python": 60, "dictionary": 400, "prose": 60, "sums": 20}
    write_sets(parts["held-out"], out / "texts", sizes, 240)
    write_sets(parts["validation"], out / "texts/validation", sizes, 240)
    copy_licences(out, work)
    train_or_load(out / "base", None, rows, BASE_MIX, base_steps, BASE_RATE, tokenizer)
    for domain in EXPERTS:
        mix = expert_mix(domain)
        train_or_load(out / domain, out / "base", rows, mix, expert_steps, EXPERT_RATE, tokenizer)


def main() -> None:
    """Command line of the trainer."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("demo/family"))
    parser.add_argument("--work", type=Path, default=Path(".mergery/cache/family"))
    parser.add_argument("--base-steps", type=int, default=3000)
    parser.add_argument("--expert-steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options.out, options.work, options.base_steps, options.expert_steps)


if __name__ == "__main__":
    main()
