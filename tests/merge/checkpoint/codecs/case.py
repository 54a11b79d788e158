"""What every encoder of the tests gives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Stored tensors of one module, what the config says of them, and the weight they stand for."""

    stored: Mapping[str, Tensor]
    config: Mapping[str, Any]
    name: str
    wanted: np.ndarray[Any, np.dtype[np.float64]]
    scheme: str
