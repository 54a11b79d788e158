"""Which device a worker uses. The parent process looks at the environment only and never touches CUDA."""

import os
import sys
from collections.abc import MutableMapping, Sequence
from pathlib import Path

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


def is_usable(device: str) -> bool:
    """In the child: whether the device it is pinned to is there."""
    if device == CPU:
        return True
    import torch

    return torch.cuda.is_available()


def confirm(device: str) -> None:
    """In the child: raises ``DeviceMissing`` if the pinned GPU cannot be used."""
    if not is_usable(device):
        raise DeviceMissing(
            f"no CUDA device can be used (CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r})"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` means that memory, of the host or of the GPU, ran out."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.OutOfMemoryError)


def release_cached_memory(device: str) -> None:
    """Gives cached GPU memory back between jobs of one child."""
    if device != CPU:
        import torch

        torch.cuda.empty_cache()


def free_memory(device: str) -> int:
    """Bytes that are free on the device, or in this machine for the CPU."""
    if device != CPU:
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def count_threads(setting: int) -> int:
    """Threads of one merge: the setting, or as many as this process may run on."""
    return setting or len(os.sched_getaffinity(0))
