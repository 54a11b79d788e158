"""Measures what a plan still needs, for runs without a service: into folders beside the output, by digest."""

from collections.abc import Callable, Mapping
from pathlib import Path

from merge.contract.informed import JOINT
from merge.errors import CalibrationMissing
from merge.joint.measure import measure_joint
from merge.learn.collect import Progress, collect, files_sha256
from merge.learn.samples import Samples, read_samples
from merge.learn.statistics import MANIFEST, statistics_digest
from merge.plan import Plan
from merge.recipe import Recipe
from merge.recipe_calibration import CalibrationData
from merge.recipe_stages import ADAPTER

FOLDER = "statistics"


def gather(
    plan: Plan,
    folders: Mapping[str, Path],
    root: Path,
    beside: Path,
    *,
    device: str = "cpu",
    memory_bytes: int | None = None,
    on_model: Callable[[str, bool], None] = lambda *_: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Path]:
    """The folder of statistics of every model that ``plan`` needs any of, measured now where it is missing.

    Paths of the recipe's ``calibration`` are relative to ``root``; results are in ``beside/statistics``,
    where the same model, data and settings find them again. ``on_model`` is told of each model and whether it
    is run. Raises what ``merge.learn.collect`` raises, and ``CalibrationInvalid``.
    """
    asked = plan.statistics
    keys = dict.fromkeys((*asked.needed, *asked.joint))
    every = {key: samples_for(plan.recipe, key, root) for key in keys}
    run_on = dict.fromkeys(keys if not asked.joint else (*keys, *plan.models))
    weights = {
        key: files_sha256(folders[key], plan.models[key], folders.get(key + ADAPTER))
        for key in run_on
        if key in folders
    }
    found = {}
    for key, kinds in asked.needed.items():
        index, samples = plan.models[key], every[key]
        tokenizer = index.tokenizer.digest if index.tokenizer is not None else None
        name = statistics_digest(weights[key], tokenizer, samples.sha256, kinds, samples.settings)
        out = beside / FOLDER / name
        on_model(key, not (out / MANIFEST).is_file())
        out.parent.mkdir(parents=True, exist_ok=True)
        collect(
            folders[key],
            index,
            samples,
            kinds,
            out=out,
            device=device,
            memory_bytes=memory_bytes,
            adapter_folder=folders.get(key + ADAPTER),
            model_sha256=weights[key],
            on_progress=on_progress,
        )
        found[key] = out
    if asked.joint:
        digests = plan.joint.digests(weights, every)
        outs = {key: beside / FOLDER / digest for key, digest in digests.items()}
        for key, out in outs.items():
            on_model(key + JOINT, not (out / MANIFEST).is_file())
            out.parent.mkdir(parents=True, exist_ok=True)
        measure_joint(
            plan,
            folders,
            every,
            found,
            outs,
            weights,
            device=device,
            memory_bytes=memory_bytes,
            on_progress=lambda _, progress: on_progress(progress),
        )
        found |= {key + JOINT: out for key, out in outs.items()}
    return found


def samples_for(recipe: Recipe, key: str, root: Path) -> Samples:
    """The calibration set that is bound to a model; ``CalibrationMissing`` where it is not on this disk."""
    choice = recipe.calibration
    data = choice.data_of(key)
    if not isinstance(data, CalibrationData):
        source: Path | str = data
    elif data.path is None:
        raise CalibrationMissing(
            f"{data.label()}: datasets are fetched by the service; here, download its file and name it as "
            "calibration: {data: {path: ...}}."
        )
    else:
        source = root / data.path
    return read_samples(
        source,
        documents=choice.documents,
        tokens=choice.tokens,
        rule=choice.rule,
        label=str(data.path) if isinstance(data, CalibrationData) else None,
    )
