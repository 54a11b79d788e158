"""How a model's own code is called: it fails as an error that names the model, and draws the same numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from merge.errors import ModelNotRun


class NotByBlocks(Exception):
    """Why a model cannot be run block by block."""


@contextmanager
def called(label: str, device: torch.device, seed: int, *, whole: bool) -> Iterator[None]:
    """A call of the model ``label``, which may be one of several on the same batch: what it draws (masks of
    masked autoencoders) depends on ``seed`` alone.

    Raises ``NotByBlocks`` for what its code raises, and ``ModelNotRun`` where it is run ``whole`` already.
    """
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        said = (str(error).strip().splitlines() or ["?"])[0][:200]
        reason = f"{type(error).__name__}: {said}"
        if not whole:
            raise NotByBlocks(reason) from error
        raise ModelNotRun(f"{label} fails when it is run on the calibration data ({reason}).") from error
