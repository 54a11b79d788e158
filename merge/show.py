"""Plans, models and progress for a person at a terminal. Loads no torch."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from merge.arch.roles import role_of, tied_names
from merge.checkpoint.index import ModelIndex
from merge.plan import Plan
from merge.planning.stages import Stage


class Done(Protocol):
    """How far a run has come: ``merge.report.Progress``."""

    tensors_done: int
    tensors_total: int
    bytes_done: int
    bytes_total: int


def terminal() -> Console:
    """Where tables go. Names of folders and tensors are told as they are, whatever stands in them."""
    return Console(markup=False, emoji=False)


def plan_tables(plan: Plan) -> RenderableType:
    """What a run would do: inputs, steps, tensor classes with their settings, cost, findings."""
    summary = plan.summary()
    steps = " → ".join(step["method"] for step in summary["steps"])
    parts: list[RenderableType] = [
        Text(steps, style="bold"),
        _inputs(plan),
        _classes(summary["classes"]),
        _cost(plan),
    ]
    parts += [part for name, stage in plan.staged.stages.items() for part in _stage(name, stage)]
    parts += [Text(f"{each.severity}: {each.message}", style="yellow") for each in plan.findings]
    parts += [Text(f"note: {note}") for note in plan.notes]
    return Group(*parts)


def _cost(plan: Plan) -> Table:
    estimate, measured = plan.estimate, plan.statistics
    facts = {
        "reads": decimal(estimate.download_bytes),
        "makes": ", ".join(f"{name} {told}" for name, told in plan.form_summary().items()),
        "writes": f"{decimal(estimate.output_bytes)} in {max(1, len(plan.shards))} file(s)",
        "disk": decimal(estimate.disk_bytes),
        "memory at the peak": decimal(estimate.peak_memory_bytes),
        "time, roughly": f"{estimate.seconds:.0f} s",
    }
    if measured.run_on:
        facts["measures first"] = (
            f"{', '.join(measured.run_on)}: {measured.tokens:,} tokens, "
            f"{decimal(measured.memory_bytes)} of memory, {measured.seconds:.0f} s"
        )
    return facts_table(facts)


def _stage(name: str, stage: Stage) -> list[RenderableType]:
    told = f"written first ({decimal(stage.disk_bytes)}): {stage.why}" if stage.why else "made as it is read"
    methods = " → ".join(step.name for step in stage.plan.steps)
    heading = Text(f"stage {name}: {methods}", style="bold")
    return [heading, Text(told), _classes(stage.summary()["classes"])]


def model_tables(index: ModelIndex, *, every_tensor: bool = False) -> RenderableType:
    """What a model folder holds: classes, sizes, dtypes, tied tensors; each tensor where asked for."""
    tied = tied_names(index.config, index.tensors)
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    dtypes: defaultdict[str, set[str]] = defaultdict(set)
    listed = columns_table("tensor", "class", "dtype", "shape", "bytes")
    for info in sorted(index.tensors.values(), key=lambda each: (each.file, each.begin)):
        role = role_of(info.name, info.shape, index.config, info.dtype)
        rows[role].update(tensors=1, entries=info.numel, bytes=info.nbytes)
        dtypes[role].add(info.dtype)
        listed.add_row(info.name, role, info.dtype, _shape(info.shape), decimal(info.nbytes))
    classes = columns_table("class", "tensors", "entries", "bytes", "dtype")
    for name, row in rows.items():
        kinds = ", ".join(sorted(dtypes[name]))
        classes.add_row(name, str(row["tensors"]), f"{row['entries']:,}", decimal(row["bytes"]), kinds)
    config = index.config
    facts = {
        "architecture": ", ".join(config.get("architectures") or ())
        or str(config.get("model_type", "unknown")),
        "parameters": f"{index.parameters:,}",
        "weights": f"{decimal(index.bytes)} in {len(index.shards)} file(s)",
        "vocabulary": f"{index.tokenizer.vocab_size:,} tokens" if index.tokenizer else "no tokenizer",
        "tied": ", ".join(f"{head} = {embedding}" for head, embedding in tied.items()) or "nothing",
    }
    return Group(facts_table(facts), classes, *([listed] if every_tensor else []))


@contextmanager
def progress_bar(console: Console) -> Iterator[Any]:
    """A bar with bytes, tensors and the time that is left; gives the callback to hand to ``merge.run``."""
    columns = (
        TextColumn("merging"),
        BarColumn(),
        TextColumn("{task.fields[said]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=None, said="")

        def tell(done: Done) -> None:
            said = f"{decimal(done.bytes_done)}, {done.tensors_done} of {done.tensors_total} tensors"
            progress.update(task, completed=done.bytes_done, total=done.bytes_total, said=said)

        yield tell


@contextmanager
def measuring_bar(console: Console) -> Iterator[Any]:
    """A bar for models that are run on data; gives the callback to hand to ``merge.gather``."""
    columns = (TextColumn("measuring"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=1.0, said="")

        def tell(done: Any) -> None:
            said = f"{done.block or 'outside the blocks'}, {done.tokens_per_second:,.0f} tokens/s"
            progress.update(task, completed=done.share, said=said)

        yield tell


def _inputs(plan: Plan) -> Table:
    table = columns_table("model", "from", "parameters", "bytes")
    for key, index in plan.models.items():
        adapter = f" + {index.adapter.label}" if index.adapter is not None else ""
        table.add_row(key, index.label + adapter, f"{index.parameters:,}", decimal(index.bytes))
    return table


def _classes(classes: Sequence[Mapping[str, Any]]) -> Table:
    table = columns_table("class", "what happens", "tensors", "parameters", "settings")
    for row in classes:
        table.add_row(
            row["class"], row["policy"], str(row["tensors"]), f"{row['parameters']:,}", _settings(row)
        )
    return table


def _settings(row: Mapping[str, Any]) -> str:
    if "steps" not in row:
        return ""
    lines = [f"weight {_value(row['weights'])}"]
    for step in row["steps"]:
        settings = ", ".join(f"{name} {_value(value)}" for name, value in step["settings"].items())
        lines.append(f"{step['method']}: {settings}" if settings else step["method"])
    return "\n".join(lines)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{_value(value['from'])}…{_value(value['to'])}"
    if isinstance(value, list | tuple):
        return "/".join(map(_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def facts_table(facts: Mapping[str, str]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), value)
    return table


def columns_table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, column in enumerate(columns):
        words = column in ("settings", "dtype", "class", "from", "what happens", "shape")
        table.add_column(column, justify="left" if place == 0 or words else "right", overflow="fold")
    return table
