"""``python -m merge measure MODEL OUT``: statistics of one model, without a recipe."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merge.checkpoint.index import index_folder
from merge.learn.samples import DEFAULT, DOCUMENTS, RULES, TOKENS, read_samples
from merge.learn.statistics import KINDS

if TYPE_CHECKING:
    from merge.learn.collect import Progress

GIB = 1 << 30


def add_measure(commands: Any, bytes_of: Callable[[str], int]) -> None:
    """Adds the command to the parser's ``commands``."""
    sub = commands.add_parser("measure", help="measure statistics of a model on texts (or images)")
    sub.add_argument("model", type=Path)
    sub.add_argument("out", type=Path)
    about = f"a .txt or .jsonl file, a folder of pixel arrays, or {DEFAULT} (the set that is shipped)"
    sub.add_argument("--data", default=DEFAULT, help=about)
    sub.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=["mean_abs_input"], metavar="KIND")
    sub.add_argument("--documents", type=int, default=DOCUMENTS, help="at most so many (default %(default)s)")
    sub.add_argument("--tokens", type=int, default=TOKENS, help="tokens of a block (default %(default)s)")
    sub.add_argument("--rule", choices=RULES, default=RULES[0], help="how documents are chosen and cut")
    sub.add_argument("--device", default="cpu", help="cpu, cuda or cuda:1")
    about = "memory beyond the interpreter's own, such as 2GiB (default 3GiB)"
    sub.add_argument("--memory", type=bytes_of, default=3 * GIB, help=about)
    sub.set_defaults(command=_measure)


def _measure(options: argparse.Namespace) -> None:
    from merge.kernels.device import check_device  # loads torch, which the other commands do without

    check_device(options.device)
    samples = read_samples(
        DEFAULT if options.data == DEFAULT else Path(options.data),
        documents=options.documents,
        tokens=options.tokens,
        rule=options.rule,
    )
    index = index_folder(options.model)
    from merge.learn.collect import collect

    made = collect(
        options.model,
        index,
        samples,
        options.kinds,
        options.out,
        device=options.device,
        memory_bytes=options.memory,
        on_progress=_say,
    )
    for note in made.notes:
        print(f"note: {note}", file=sys.stderr)  # noqa: T201
    print(f"{made.digest}  {options.out}")  # noqa: T201


def _say(progress: "Progress") -> None:
    where = progress.block or "outside the blocks"
    speed = f"{progress.tokens_per_second:.0f} tokens/s"
    print(f"{progress.done}/{progress.total}  {where}  {speed}", file=sys.stderr)  # noqa: T201
