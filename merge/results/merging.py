"""What the run does for the makers of results that are no checkpoint."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from merge.checkpoint.reader import TensorReader
from merge.contract.factors import Factors
from merge.planning.outputs import Input, OutputTensor
from merge.planning.sizing import Sizes
from merge.running.blocks import Buffers
from merge.running.chain import Block, Chain
from merge.running.crew import Crew
from merge.running.survey.watch import Watch


class Meter(Protocol):
    """Stops where the caller wants that."""

    def check(self) -> None:
        """Raises ``Stopped``."""


class Merging(Protocol):
    """The arithmetic of a run, as far as adapters and bundles ask for it."""

    crew: Crew
    buffers: Buffers
    sizes: Sizes
    readers: Mapping[str, TensorReader]

    @property
    def meter(self) -> Meter:
        """Asked between blocks."""

    def ready(
        self, outputs: Sequence[OutputTensor], crew: Crew | None = None
    ) -> Iterator[Sequence[OutputTensor]]:
        """The outputs some at a time, each when its statistics are there."""

    def forget(self, outputs: Sequence[OutputTensor]) -> None:
        """Lets go of what was measured of these alone, which are made."""

    def merged(self, output: OutputTensor, first: int, count: int) -> Tensor:
        """Entries of a merged tensor, flat, in the dtype of the arithmetic; overwritten by the next call."""

    def read(self, source: Input, first: int, count: int) -> Tensor:
        """The same of one input; overwritten likewise."""

    def chain(self, output: OutputTensor) -> Chain:
        """The steps bound to this tensor."""

    def merged_factors(self, output: OutputTensor) -> Factors | None:
        """The merged change as factors, where the steps give those."""

    def watch(self, output: OutputTensor, load: Callable[[Chain, int, int], Block] | None = None) -> Watch:
        """Is to be shown a tensor's merged blocks, and tells what the merge report says of it; ``load`` gives
        what they are made from, where that is not to be read.
        """

    def finished(self, output: OutputTensor) -> None:
        """Counts a tensor that was made."""

    def skip_outputs(self, outputs: Sequence[OutputTensor]) -> None:
        """Counts tensors that need not be made."""
