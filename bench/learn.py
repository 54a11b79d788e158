"""How fast statistics are collected beside a plain forward pass, and in how much memory at the shape of a
7B model.

``python -m bench.learn speed`` makes a Llama of random weights, runs all blocks of calibration tokens
through the model as Transformers loads it (all but the head, whose product collecting leaves out too), then
collects ``mean_abs_input`` on the same tokens, in one process, in turn.
``python -m bench.learn memory`` collects on a sparse file of the shape of Llama-2-7B,
a few blocks, and watches the peak of anonymous memory.
``python -m bench.learn regmean`` (``bench/regmean.py``) merges two models of the shape of a 1B model by
RegMean, beside the forward passes, products and decompositions that this takes at the least.
"""

import argparse
import json
import random
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from merge.checkpoint.index import index_folder
from merge.checkpoint.layout import TensorSpec, plan_shards
from merge.learn.batches import batches_of
from merge.learn.collect import collect
from merge.learn.samples import Samples, samples_of
from merge.learn.skeleton import Skeleton

WORDS = 4096
SHAPES = {
    "speed": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8, "heads": 16, "kv": 8},
    "memory": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "heads": 32,
        "kv": 32,
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table of one line, as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=(*SHAPES, "regmean"))
    parser.add_argument(
        "--blocks", type=int, default=None, help="blocks of 512 tokens (32 for speed, 4 for memory)"
    )
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--kinds", nargs="+", default=["mean_abs_input"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)
    if options.what == "regmean":
        from bench.regmean import regmean

        regmean(options.blocks or 8, options.layers or 2)
        return
    shape = dict(SHAPES[options.what])
    if options.layers:
        shape["num_hidden_layers"] = options.layers
    blocks = options.blocks or {"speed": 32, "memory": 4}[options.what]
    with tempfile.TemporaryDirectory() as folder:
        model = make(Path(folder) / "model", shape, filled=options.what == "speed")
        run = _speed if options.what == "speed" else _memory
        run(model, samples_of_words(blocks), options)


def make(folder: Path, shape: dict[str, int], *, filled: bool, seed: int = 0) -> Path:
    """A Llama of bf16 weights (zeros that take no room on the disk unless ``filled``) and a tokenizer of
    words.
    """
    folder.mkdir(parents=True)
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
        "max_position_embeddings": 4096, "num_attention_heads": shape["heads"], "num_key_value_heads":
        shape["kv"], "tie_word_embeddings": False, "rms_norm_eps": 1e-5, "dtype": "bfloat16",
        **{key: value for key, value in shape.items() if "_" in key},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    _tokenizer(folder)
    (shard,) = plan_shards(_tensors(shape), 1 << 50)
    with (folder / shard.file).open("wb") as file:
        file.write(shard.header_bytes)
        file.truncate(shard.size)
        if filled:
            generator = torch.Generator().manual_seed(seed)
            for info in shard.entries.values():
                scale = 1.0 if len(info.shape) == 1 else info.shape[-1] ** -0.5
                values = torch.randn(info.shape, generator=generator).mul_(scale).bfloat16()
                file.seek(info.begin)
                file.write(values.view(torch.uint8).numpy().tobytes())
    return folder


def _tensors(shape: dict[str, int]) -> list[TensorSpec]:
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    narrow = width * shape["kv"] // shape["heads"]
    words = shape.get("vocab_size", 32000)
    found: list[TensorSpec] = [("model.embed_tokens.weight", "BF16", (words, width))]
    for layer in range(shape["num_hidden_layers"]):
        for name, size in (
            ("input_layernorm", (width,)), ("self_attn.q_proj", (width, width)),
            ("self_attn.k_proj", (narrow, width)),
            ("self_attn.v_proj", (narrow, width)), ("self_attn.o_proj", (width, width)),
            ("post_attention_layernorm", (width,)), ("mlp.gate_proj", (inner, width)),
            ("mlp.up_proj", (inner, width)), ("mlp.down_proj", (width, inner)),
        ):  # fmt: skip
            found.append((f"model.layers.{layer}.{name}.weight", "BF16", size))
    found.append(("model.norm.weight", "BF16", (width,)))
    if not shape.get("tie_word_embeddings"):
        found.append(("lm_head.weight", "BF16", (words, width)))
    return found


def _tokenizer(folder: Path) -> None:
    words = {f"w{number}": number for number in range(WORDS)}
    document: dict[str, Any] = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w0"},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(document))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))


def samples_of_words(blocks: int) -> Samples:
    rng = random.Random(1)
    return samples_of([" ".join(f"w{rng.randrange(WORDS)}" for _ in range(512)) for _ in range(blocks)])


def _speed(folder: Path, samples: Samples, options: argparse.Namespace) -> None:
    import transformers

    index = index_folder(folder)
    device = torch.device(options.device)
    every = batches_of(Skeleton(index), folder, samples).every
    model: Any = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.to(device).eval()

    def plain() -> None:
        with torch.no_grad():
            for batch in every:
                model.model(**batch.on(device), use_cache=False)
        if device.type == "cuda":
            torch.cuda.synchronize()

    plain()
    tokens = sum(batch.tokens for batch in every)
    forward, collected = [], []
    for number in range(options.rounds):
        forward.append(_timed(plain))
        out = folder.parent / f"out{number}"
        collected.append(
            _timed(
                lambda out=out: collect(  # type: ignore[misc]
                    folder, index, samples, options.kinds, out, device=options.device, model_sha256="0" * 64
                )
            )
        )
    (best, best_cpu), (ours, our_cpu) = min(forward), min(collected)
    print("| kinds | tokens | plain forward, s (CPU s) | collecting, s (CPU s) | tokens/s | share of plain |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {' '.join(options.kinds)} | {tokens} | {best:.2f} ({best_cpu:.1f}) | {ours:.2f} ({our_cpu:.1f}) "
        f"| {tokens / ours:.0f} | {best / ours:.2f} (CPU {best_cpu / our_cpu:.2f}) |"
    )


def _memory(folder: Path, samples: Samples, options: argparse.Namespace) -> None:
    index = index_folder(folder)
    idle = anonymous()
    with peak_of() as peaks:
        began = time.monotonic()
        collect(
            folder, index, samples, options.kinds, folder.parent / "out", device=options.device,
            model_sha256="0" * 64, memory_bytes=3 << 30,
        )  # fmt: skip
        seconds = time.monotonic() - began
    largest = max(peaks)
    print("| kinds | parameters | tokens | seconds | peak MiB | of which idle |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {' '.join(options.kinds)} | {index.parameters / 1e9:.2f}e9 | {512 * len(samples.texts)} | "
        f"{seconds:.0f} | "
        f"{largest >> 20} | {idle >> 20} |"
    )


@contextmanager
def peak_of() -> Any:
    """A list of this process's anonymous memory, sampled while the context lasts."""
    done, peaks = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.005):
            peaks.append(anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def anonymous() -> int:
    """Bytes of anonymous memory this process holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))


def _timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of all cores."""
    began, cpu = time.monotonic(), time.process_time()
    call()
    return time.monotonic() - began, time.process_time() - cpu


if __name__ == "__main__":
    main()
