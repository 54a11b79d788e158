"""Changes made from the factors of adapters, and what they are in the blocks that are written."""

from collections.abc import Mapping

import torch
from torch import Tensor

from merge.checkpoint.reader import TensorReader
from merge.contract.factors import FactorGroup, Factors, no_change
from merge.contract.informed import Memo
from merge.errors import NotFinite
from merge.planning.forms.factored import KEPT
from merge.planning.output_tensor import Input, OutputTensor
from merge.running.chain import Chain

TILE_ELEMENTS = 1 << 16
"""Entries of a product at a time; fixed, so that its bits do not depend on the block."""


class Factored:
    """Merged factors of the tensors that are being written, each made once; safe to use from any thread."""

    def __init__(self, readers: Mapping[str, TensorReader]) -> None:
        self._readers = readers
        self._memo = Memo(KEPT)

    def made(self, chain: Chain, output: OutputTensor) -> Factors:
        """The merged change of one tensor."""
        return self._memo.once(output.name, lambda: self._make(chain, output))

    def change(
        self, chain: Chain, output: OutputTensor, first: int, count: int, dtype: torch.dtype
    ) -> Tensor:
        """The merged change in entries ``first`` onwards, whole rows of them, flat."""
        found = torch.zeros(count, dtype=dtype)
        made = self.made(chain, output)
        if not made.rank:
            return found
        columns = made.right.shape[1]
        height = max(1, TILE_ELEMENTS // max(columns, 1))
        row, end = first // columns, (first + count) // columns
        while row < end:
            top = row // height * height
            product = made.left[top : top + height] @ made.right
            last = min(top + height, end)
            part = product[row - top : last - top]
            found[row * columns - first : last * columns - first] = part.reshape(-1)
            row = last
        return found

    def _make(self, chain: Chain, output: OutputTensor) -> Factors:
        bound = chain.on_factors
        assert bound is not None  # the caller has seen that the method takes factors
        factors = [self._factors(source, output.shape) for source in output.sources]
        group = FactorGroup(chain.site, factors, chain.weights)
        made: Factors = bound.method.function(group, bound.params[0])
        return made

    def _factors(self, source: Input, shape: tuple[int, ...]) -> Factors:
        reader = self._readers[source.model]
        adapter = reader.index.adapter
        if adapter is not None and source.tensor in adapter.pairs:
            found = Factors(*reader.factors(source.tensor, torch.float64))
            if not all(bool(torch.isfinite(side).all()) for side in (found.left, found.right)):
                raise NotFinite(
                    f"The factors of {source.tensor} in {adapter.label} hold NaN or infinity; the file is "
                    "damaged or badly trained."
                )
            return found
        return no_change(shape)
