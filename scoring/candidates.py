"""Scores candidates, one after another, in one model: built once, texts tokenised once, weights replaced.

A candidate is nothing but (name, tensor) pairs, as a merge makes them, so none is ever written to disk.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoring.errors import CandidateUnfit
from scoring.model import LoadedModel, built_from, fitting_threads, load, names
from scoring.runner import NO_HEADS, OnProgress, ScoreProgress, measure, prepare
from scoring.score import Score
from scoring.scorers.prepared import BATCH_TOKENS, How, Prepared
from scoring.tasks import Task

Weights = Iterable[tuple[str, Tensor]]


def _ignore(_: ScoreProgress) -> None:
    return


@dataclass
class Candidates:
    """Holds one model in memory. ``loaded`` has the weights of the last candidate; ``prepared`` are the tasks
    in its tokens, ``heads`` the zero-shot heads that another model has made for some of them.
    """

    loaded: LoadedModel
    tasks: Sequence[Task]
    prepared: Sequence[Prepared]
    _places: Mapping[str, Tensor] = field(repr=False)
    """Where each tensor of a checkpoint goes; empty where the library has to rearrange them."""
    heads: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        tasks: Sequence[Task],
        *,
        device: str = "cpu",
        dtype: str = "float32",
        batch_tokens: int = BATCH_TOKENS,
        window: int | None = None,
        per_example: bool = False,
        heads: Mapping[str, Tensor] = NO_HEADS,
    ) -> "Candidates":
        """Builds the model of a folder whose architecture and tokenizer all candidates share.

        Its own weights are the first candidate. Raises what ``scoring.runner.score_model`` raises.
        """
        loaded = load(folder, device=device, dtype=dtype)
        with fitting_threads(loaded):
            prepared = prepare(loaded, tasks, How(batch_tokens, window, per_example), heads)
        return cls(loaded, tuple(tasks), prepared, _places_of(loaded), heads)

    def on(self, tasks: Sequence[Task], *, per_example: bool = False) -> "Candidates":
        """The same model in memory, before other tasks; heads are found by their names."""
        with fitting_threads(self.loaded):
            prepared = prepare(self.loaded, tasks, How(per_example=per_example), self.heads)
        return replace(self, tasks=tuple(tasks), prepared=prepared)

    def put(self, weights: Weights) -> None:
        """Replaces all weights, tensor by tensor; each is cast to the model's dtype as it comes.

        Raises ``CandidateUnfit`` for a name that has no place, a wrong shape, or weights that are missing.
        """
        if self._places:
            self._copy(weights)
            return
        held = {name: tensor.to(self.loaded.dtype) for name, tensor in weights}
        self.loaded = replace(self.loaded, model=built_from(self.loaded, held))

    def score(
        self,
        weights: Weights | None = None,
        *,
        on_progress: OnProgress = _ignore,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> list[Score]:
        """The scores of a candidate on every task; without ``weights`` those of the weights that are in.

        The same weights give the same numbers as ``score_model`` on a folder of them.
        """
        if weights is not None:
            self.put(weights)
        with self._threads():
            return measure(
                self.loaded, self.tasks, self.prepared, on_progress=on_progress, should_stop=should_stop
            )

    def _threads(self) -> AbstractContextManager[None]:
        return fitting_threads(self.loaded)

    def _copy(self, weights: Weights) -> None:
        left = {id(place) for place in self._places.values()}
        with torch.no_grad():
            for name, tensor in weights:
                place = self._places.get(name)
                if place is None:
                    raise CandidateUnfit(f"{name} has no place in {self.loaded.architecture}")
                if place.shape != tensor.shape:
                    shapes = f"{list(tensor.shape)}, and there is room for {list(place.shape)}"
                    raise CandidateUnfit(f"{name} has the shape {shapes}")
                place.copy_(tensor)
                left.discard(id(place))
        if left:
            lacking = sorted(name for name, place in self._places.items() if id(place) in left)
            raise CandidateUnfit(f"the candidate lacks {names(lacking)}")


def _places_of(loaded: LoadedModel) -> dict[str, Tensor]:
    """Every name that a checkpoint of this model may use, with the tensor it means; tied ones share theirs.

    Empty if not every tensor of the folder's own checkpoint is found so.
    """
    own: dict[str, Any] = loaded.model.state_dict(keep_vars=True)
    prefix = f"{loaded.model.base_model_prefix}."
    places: dict[str, Tensor] = {}
    for name in loaded.stored:
        found = next(
            (own[each] for each in (name, prefix + name, name.removeprefix(prefix)) if each in own), None
        )
        if found is None:
            return {}
        places[name] = found
    storages = {tensor.data_ptr() for tensor in places.values()}
    lacking = [name for name, tensor in own.items() if tensor.data_ptr() not in storages and tensor.numel()]
    return {} if lacking else places
