"""Pinning a worker to its device."""

import os
import subprocess
import sys

import pytest

from worker.device import count_threads
from worker.endings import is_out_of_memory
from worker.errors import DeviceMissing
from worker.pinning import pin


@pytest.mark.parametrize(
    ("queues", "device", "before", "chosen", "after"),
    [
        (["cpu"], None, "0,1", "cpu", ""),
        (["gpu"], None, None, "cuda:0", "0"),
        (["gpu"], None, "3", "cuda:0", "3"),
        (["gpu"], "cuda:1", "4,6", "cuda:0", "6"),
        (["gpu"], "cuda:2", None, "cuda:0", "2"),
        (["cpu"], "cuda", None, "cuda:0", "0"),
        (["gpu"], "cpu", "0", "cpu", ""),
    ],
)
def test_children_see_exactly_their_device(
    queues: list[str], device: str | None, before: str | None, chosen: str, after: str
) -> None:
    environment = {} if before is None else {"CUDA_VISIBLE_DEVICES": before}
    assert pin(queues, device, environment) == chosen
    assert environment["CUDA_VISIBLE_DEVICES"] == after


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "tpu"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(DeviceMissing, match=device):
        pin(["gpu"], device, {"CUDA_VISIBLE_DEVICES": "0,1"})


def test_the_dispatcher_and_the_parent_of_a_worker_never_load_torch() -> None:
    code = (
        "import sys, worker.dispatcher, worker.app, worker.child, worker.supervisor\n"
        "loaded = {'torch', 'transformers', 'safetensors'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_threads_default_to_the_cores_this_process_may_use() -> None:
    assert count_threads(0) == len(os.sched_getaffinity(0))
    assert count_threads(3) == 3


def test_memory_of_host_and_of_gpu_count_alike() -> None:
    import torch

    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not is_out_of_memory(ValueError("memory"))
