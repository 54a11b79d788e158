"""Measures what a plan still needs, for runs without a service: into folders beside the output, by digest."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from merge.contract.informed import JOINT
from merge.errors import CalibrationMissing
from merge.joint.measure import measure_joint
from merge.learn.collect import Progress, collect, files_sha256
from merge.learn.samples import Samples, read_samples
from merge.learn.statistics import MANIFEST, statistics_digest
from merge.plan import Plan
from merge.recipe.calibration import CalibrationData
from merge.recipe.recipe import Recipe
from merge.recipe.stages import ADAPTER

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
    run_on = dict.fromkeys(keys if not asked.joint else (*keys, *plan.models))
    samples = {key: samples_for(plan.recipe, key, root) for key in keys}
    weights = {
        key: files_sha256(folders[key], plan.models[key], folders.get(key + ADAPTER))
        for key in run_on
        if key in folders
    }
    how = _How(plan, folders, beside, samples, weights, device, memory_bytes, on_model, on_progress)
    found = {key: how.one(key, kinds) for key, kinds in asked.needed.items()}
    return found | (how.joint(found) if asked.joint else {})


@dataclass(frozen=True)
class _How:
    """What measurements share: ``samples`` and digests of the ``weights`` by model, and where to and how."""

    plan: Plan
    folders: Mapping[str, Path]
    beside: Path
    samples: Mapping[str, Samples]
    weights: Mapping[str, str]
    device: str
    memory_bytes: int | None
    on_model: Callable[[str, bool], None]
    on_progress: Callable[[Progress], None]

    def one(self, key: str, kinds: tuple[str, ...]) -> Path:
        """The folder of what one model shows."""
        index, samples, model = self.plan.models[key], self.samples[key], self.weights[key]
        tokenizer = index.tokenizer.rules if index.tokenizer is not None else None
        out = self._folder(key, statistics_digest(model, tokenizer, samples.sha256, kinds, samples.settings))
        collect(
            self.folders[key],
            index,
            samples,
            kinds,
            out=out,
            device=self.device,
            memory_bytes=self.memory_bytes,
            adapter_folder=self.folders.get(key + ADAPTER),
            model_sha256=model,
            on_progress=self.on_progress,
        )
        return out

    def joint(self, found: Mapping[str, Path]) -> dict[str, Path]:
        """The folders of what takes several models, some of it from what was ``found`` of one."""
        digests = self.plan.joint.digests(self.weights, self.samples)
        outs = {key: self._folder(key + JOINT, digest) for key, digest in digests.items()}
        measure_joint(
            self.plan,
            self.folders,
            self.samples,
            found,
            outs,
            self.weights,
            device=self.device,
            memory_bytes=self.memory_bytes,
            on_progress=lambda _, progress: self.on_progress(progress),
        )
        return {key + JOINT: out for key, out in outs.items()}

    def _folder(self, name: str, digest: str) -> Path:
        """Where statistics of that digest lie; tells whether they have to be made."""
        out = self.beside / FOLDER / digest
        self.on_model(name, not (out / MANIFEST).is_file())
        out.parent.mkdir(parents=True, exist_ok=True)
        return out


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
