"""Everything that can go wrong in the engine, as one tree.

MergeError
├── RecipeInvalid        a field of the recipe is wrong
├── PlanRefused          the recipe and the models do not fit together (carries every finding)
├── Stopped              the caller asked the run to stop
├── FileRefused          a model's files are not what they should be: ``merge.file_errors``
└── ...                  one class for each other failure, below
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal


class MergeError(Exception):
    """Base of all engine failures. ``str(error)`` is one sentence that says what is wrong and what to do."""

    code: ClassVar[str] = "merge_error"


@dataclass(frozen=True)
class Finding:
    """One thing the planner has to say about a recipe: an error stops the job, a warning does not.

    ``pointer`` is a JSON pointer into the recipe, ``model`` a source id or ``base``, ``tensor`` a tensor
    name.
    """

    severity: Literal["error", "warning"]
    code: str
    message: str
    pointer: str | None = None
    model: str | None = None
    tensor: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """JSON form without the fields that are empty."""
        return {key: value for key, value in self.__dict__.items() if value is not None}


class FindingsError(MergeError):
    """A failure that carries one or more findings."""

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        self.findings = findings
        errors = [f.message for f in findings if f.severity == "error"]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        super().__init__((errors[0] if errors else "refused") + more)


class RecipeInvalid(FindingsError):
    """The recipe itself is wrong: an unknown or ill-typed field."""

    code = "recipe_invalid"


class PlanRefused(FindingsError):
    """The recipe is well formed but cannot work on these models."""

    code = "plan_refused"


class Stopped(MergeError):
    """The caller's ``should_stop`` said so; finished shards stay and a later run goes on from them."""

    code = "stopped"


class AdapterRefused(MergeError):
    """An adapter that cannot be applied exactly; the sentence names the field or tensor that prevents it."""

    code = "adapter_refused"


class AdapterMismatch(AdapterRefused):
    """An adapter made for another model: a target is missing or has another shape."""

    code = "adapter_mismatch"


class AppendRefused(MergeError):
    """A result that no model can join: made by another method, without its state, or from another base."""

    code = "append_refused"


class DiskFull(MergeError):
    """There is no room for an output file."""

    code = "disk_full"


class ShardIncomplete(MergeError):
    """A shard was finished before all its tensors were written."""

    code = "shard_incomplete"


class MergekitUnsupported(FindingsError):
    """A mergekit configuration that asks for something Mergery does not do yet; every key is named."""

    code = "mergekit_unsupported"


class SettingInvalid(MergeError):
    """A method was given a setting it does not have, or a value it does not take."""

    code = "setting_invalid"


class UnknownMethod(MergeError):
    """No method of that name; the sentence gives the nearest ones."""

    code = "unknown_method"


class MethodMalformed(MergeError):
    """The file of a method breaks the contract (for authors of methods, never for users)."""

    code = "method_malformed"


class NotFinite(MergeError):
    """A tensor holds NaN or infinity, or the merge made it so."""

    code = "not_finite"


class TensorsDiffer(MergeError):
    """A tensor that must be the same in every model is not."""

    code = "tensors_differ"


class ShapeBroken(MergeError):
    """A method gave back another shape than it was handed."""

    code = "shape_broken"


class GateUnsupported(MergeError):
    """The routers of a mixture cannot be made from prompts: the guide's tokenizer or layers are of a kind
    that is not known.
    """

    code = "gate_unsupported"


class NothingChanged(MergeError):
    """The merge equals the base in everything an adapter could hold."""

    code = "nothing_changed"


class StatisticsMissing(MergeError):
    """A method needs something measured on data that was not measured, or whose folder is not complete."""

    code = "statistics_missing"


class StatisticsUnfit(MergeError):
    """Statistics were given that belong to another model: their shapes do not fit its tensors."""

    code = "statistics_unfit"


class InputChanged(MergeError):
    """The files on disk are not the ones the plan was made from."""

    code = "input_changed"


class OutputExists(MergeError):
    """The output folder is already there."""

    code = "output_exists"


class OutputBusy(MergeError):
    """Another merge is at work in the output folder."""

    code = "output_busy"


class BudgetTooSmall(MergeError):
    """A run was given less memory than the smallest blocks of its method take."""

    code = "budget_too_small"


class DeviceUnavailable(MergeError):
    """There is no device of that name on this machine."""

    code = "device_unavailable"


class NotInMemory(MergeError):
    """The recipe's result cannot be made without writing it."""

    code = "not_in_memory"


class StatisticUnknown(MergeError):
    """A statistic of a name that does not exist, or none at all, was asked for."""

    code = "statistic_unknown"


class StatisticsInvalid(MergeError):
    """A folder that should hold statistics does not, or holds those of another version."""

    code = "statistics_invalid"


class CalibrationInvalid(MergeError):
    """Base of what is wrong with the data that statistics are to be measured on."""

    code = "calibration_invalid"


class CalibrationMissing(CalibrationInvalid):
    """There is no file or folder of that name."""

    code = "calibration_missing"


class CalibrationFormat(CalibrationInvalid):
    """A file of calibration data that is of no known kind, or whose lines are not what its kind says."""

    code = "calibration_format"


class CalibrationEncoding(CalibrationInvalid):
    """A text that is not UTF-8, or holds half of a surrogate pair."""

    code = "calibration_encoding"


class CalibrationEmpty(CalibrationInvalid):
    """Calibration data with nothing in it but white space."""

    code = "calibration_empty"


class CalibrationTooShort(CalibrationInvalid):
    """Calibration data of fewer tokens than a model can be run on."""

    code = "calibration_too_short"


class CalibrationTooLarge(CalibrationInvalid):
    """More calibration data than is read."""

    code = "calibration_too_large"


class TokenizerUnfit(CalibrationInvalid):
    """The model's tokenizer is missing, cannot be used, or gives tokens that the embedding does not have."""

    code = "tokenizer_unfit"


class ModelNotRun(MergeError):
    """A model that cannot be run on data here: its class is not known, its weights do not fill it, or its
    code fails.
    """

    code = "model_not_run"
