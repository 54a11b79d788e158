"""Opens the row tables of a run: rows that nobody can lend are computed first, on a few threads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from merge.checkpoint.reader import TensorReader
from merge.plan import Plan
from merge.planning.outputs import rearranged
from merge.running.crew import Crew
from merge.tokenizer.making import RowMaker
from merge.tokenizer.rows import TableReader

J = TypeVar("J")


@contextmanager
def open_tables(
    plan: Plan,
    readers: Mapping[str, TensorReader],
    folder: Path,
    threads: int,
    budget: int,
    check: Callable[[], None],
) -> Iterator[TableReader | None]:
    """The reader of rearranged tensors, ``None`` where the plan has none; computed rows lie in ``folder``.

    ``budget`` is bytes of memory; ``check`` is called now and then and may raise ``Stopped``.
    """
    vocabulary = plan.vocabulary
    if vocabulary is None:
        yield None
        return
    dtype = torch.float64 if plan.recipe.dtype.compute == "float64" else torch.float32
    maker = RowMaker(plan.recipe, vocabulary, rearranged(plan.outputs), readers, dtype)
    each = vocabulary.making_bytes(plan.recipe.tokenizer.k)
    crowd = max(1, min(threads, budget // max(each, 1)))
    with Crew(crowd) as crew:

        def work(jobs: Sequence[J], do: Callable[[J], None]) -> None:
            def checked(job: J) -> None:
                check()
                do(job)

            crew.each(jobs, checked)

        made = maker.make(folder, work, budget - crowd * each)
    try:
        yield TableReader(readers, plan.rows, made, tuple(maker.told))
    finally:
        if made is not None:
            made.close()
