"""Devices by name."""

import torch

from merge.errors import DeviceUnavailable


def check_device(name: str) -> None:
    """Raises ``DeviceUnavailable`` where the name is none, or the device is not there."""
    try:
        device = torch.device(name)
        known = device.type in ("cpu", "cuda") and (device.type == "cuda" or device.index is None)
    except RuntimeError:
        known = False
    if not known:
        raise DeviceUnavailable(f"{name[:40]!r} is no device: write cpu, cuda, or cuda:1 for the second GPU.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        there = f"there are {count} (cuda:0 to cuda:{count - 1})" if count else "no GPU can be used here"
        raise DeviceUnavailable(f"There is no {name}: {there}. Choose cpu, or a device that is there.")
