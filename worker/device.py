"""The device of a worker's child, used from inside the child: is it there, what is free, what ran out."""

import os
from pathlib import Path

from worker.errors import DeviceMissing
from worker.pinning import CPU


def is_there(device: str) -> bool:
    """In the child: whether the device it is pinned to is there."""
    if device == CPU:
        return True
    import torch

    return torch.cuda.is_available()


def confirm(device: str) -> None:
    """In the child: raises ``DeviceMissing`` if the pinned GPU is not there, or does not compute."""
    if device == CPU:
        return
    reason = _fault(device)
    if reason is not None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        raise DeviceMissing(f"no CUDA device can be used (CUDA_VISIBLE_DEVICES={visible!r}): {reason}")


def _fault(device: str) -> str | None:
    """What is wrong with a GPU, if anything."""
    import torch

    if not is_there(device):
        return "none is there"
    try:
        total = torch.ones(64, device=device).sum().item()
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None if total == 64 else f"64 ones add up to {total}"


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
