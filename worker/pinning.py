"""Which device a worker's children see. Looks at the environment only: no torch, no CUDA in the parent."""

import os
from collections.abc import MutableMapping, Sequence

from worker.errors import DeviceMissing

CPU = "cpu"
GPU_QUEUE = "gpu"


def pin(
    queues: Sequence[str], device: str | None, environment: MutableMapping[str, str] | None = None
) -> str:
    """Chooses the device of a worker and pins its children to it; returns ``cpu`` or ``cuda:0``.

    ``device`` is ``None`` (by queue), ``cpu``, ``cuda`` or ``cuda:<n>``. CUDA_VISIBLE_DEVICES becomes the
    n-th of the devices visible now, so that a child sees exactly one, as ``cuda:0``.
    """
    variables = os.environ if environment is None else environment
    wanted = device or ("cuda" if GPU_QUEUE in queues else CPU)
    if wanted == CPU:
        variables["CUDA_VISIBLE_DEVICES"] = ""
        return CPU
    kind, _, number = wanted.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise DeviceMissing(f"device {wanted!r} is unknown; use cpu, cuda or cuda:<number>")
    visible = [part for part in variables.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]
    index = int(number or 0)
    if visible and index >= len(visible):
        raise DeviceMissing(f"device {wanted!r} is not among CUDA_VISIBLE_DEVICES={','.join(visible)}")
    variables["CUDA_VISIBLE_DEVICES"] = visible[index] if visible else str(index)
    return "cuda:0"
