"""What leaves a block, batch by batch, in a file: the next block's inputs are not kept in memory.

Each batch's output is a tree (a tensor, or tuples, lists and dicts of them). The file is mapped, so its
pages are the page cache's, not the process's own; a checksum tells a later run whether the file is the one
it left.
"""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merge.checkpoint.dtype import as_bytes
from merge.learn.trees import DTYPES, pack, unpack

_ALIGN = 64


class States:
    """Outputs of one block for every batch, in the file ``path``; ``index`` is its JSON-able table of
    contents.
    """

    def __init__(self, path: Path, index: list[dict[str, Any]] | None = None) -> None:
        self.path = path
        self.index: list[dict[str, Any]] = [] if index is None else index
        self._end = max((leaf["end"] for each in self.index for leaf in each["leaves"]), default=0)
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._map: mmap.mmap | None = None

    def put(self, tree: Any) -> None:
        """Adds the next batch's output."""
        tensors: list[Tensor] = []
        packed = pack(tree, tensors)
        leaves = []
        for tensor in tensors:
            flat = tensor.detach().to("cpu").contiguous()
            begin = -(-self._end // _ALIGN) * _ALIGN
            self._end = begin + flat.nbytes
            leaves.append(
                {"dtype": str(flat.dtype), "shape": list(flat.shape), "begin": begin, "end": self._end}
            )
            if flat.nbytes:
                self._write(as_bytes(flat), begin)
        self.index.append({"tree": packed, "leaves": leaves})

    def get(self, batch: int, device: torch.device) -> Any:
        """A batch's output, copied to the device."""
        entry = self.index[batch]
        return unpack(entry["tree"], [self._tensor(leaf).to(device, copy=True) for leaf in entry["leaves"]])

    def restart(self) -> None:
        """Forgets everything; the file's room is used again."""
        self.index = []
        self._end = 0

    def checksum(self) -> int:
        """A number that tells a file that was not written to the end, or not by that run."""
        total = 0
        for tensor in self._tensors():
            flat = tensor.view(-1).view(torch.uint8)
            whole = flat[: flat.numel() // 8 * 8]
            total += int(whole.view(torch.int64).sum()) + int(flat[whole.numel() :].sum())
        return total % (1 << 62)

    def close(self) -> None:
        """Closes the file, which stays."""
        self._map = None
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _tensors(self) -> Iterator[Tensor]:
        for entry in self.index:
            yield from map(self._tensor, entry["leaves"])

    def _tensor(self, leaf: dict[str, Any]) -> Tensor:
        if leaf["begin"] == leaf["end"]:
            return torch.empty(leaf["shape"], dtype=DTYPES[leaf["dtype"]])
        if self._map is None or len(self._map) < leaf["end"]:
            self._map = mmap.mmap(self._fd, os.fstat(self._fd).st_size)
        dtype = DTYPES[leaf["dtype"]]
        count = (leaf["end"] - leaf["begin"]) // dtype.itemsize
        flat = torch.frombuffer(self._map, dtype=dtype, count=count, offset=leaf["begin"])
        return flat.view(leaf["shape"])

    def _write(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self._fd, data[done:], offset + done)
