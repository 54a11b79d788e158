"""The child of ``merge.convert``: one pickle of tensors in, one safetensors file out, behind a guard.

Run as ``python -m merge.unpickle IN OUT CONFIG``. Writes one line of JSON: ``{}``, or what is wrong. The
guard goes up before anything is read: from then on the process can open no socket and start no program, and
torch unpickles nothing but tensors and plain containers.
"""

import ctypes
import json
import pickle
import platform
import re
import struct
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_DENIED = {
    "x86_64": (41, 42, 53, 59, 322, 101, 321, 425),
    "aarch64": (198, 203, 199, 221, 281, 117, 280, 425),
}
"""socket, connect, socketpair, execve, execveat, ptrace, bpf and io_uring_setup, by processor."""
_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_EPERM = 0x00050001
_OTHER_CALLS = 0x40000000
"""From here on the same calls have second numbers."""
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_BEGINNINGS = (b"PK\x03\x04", b"\x80")
"""An archive, or the older format's pickle."""
_MORE = re.compile(r"Unsupported (?:global: GLOBAL|class) (\S+)")
_INNER = ("state_dict", "model_state_dict", "model", "module", "params_ema", "params")


def guard() -> bool:
    """Denies this process, for good, what only code in a pickle would want. False where it cannot."""
    machine = platform.machine()
    if not sys.platform.startswith("linux") or machine not in _DENIED:
        return False
    denied = _DENIED[machine]
    steps = [(0x20, 0, 0, 4), (0x15, 1, 0, _AUDIT[machine]), (0x06, 0, 0, _KILL), (0x20, 0, 0, 0)]
    steps += [(0x35, len(denied) + 1, 0, _OTHER_CALLS)]
    steps += [(0x15, len(denied) - place, 0, number) for place, number in enumerate(denied)]
    steps += [(0x06, 0, 0, _ALLOW), (0x06, 0, 0, _EPERM)]
    program = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    rule = ctypes.create_string_buffer(struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(program)))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    if prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) != 0:
        return False
    return bool(prctl(_SET_SECCOMP, _FILTER, ctypes.c_void_p(ctypes.addressof(rule)), 0, 0) == 0)


def main(arguments: list[str]) -> int:
    """Converts one file; gives the exit code."""
    source, target, config = (Path(each) for each in arguments)
    if not guard() and sys.platform.startswith("linux"):
        return _tell({"error": "the guard against code in pickles could not be set up"})
    try:
        convert_file(source, target, json.loads(config.read_bytes()) if config.is_file() else {})
    except Exception as error:  # whatever is in the file, the parent is told one line
        return _tell({"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
    return _tell({})


def _tell(what: Mapping[str, str]) -> int:
    sys.stdout.write(json.dumps(what) + "\n")
    return 2 if what else 0


def convert_file(source: Path, target: Path, config: Mapping[str, Any]) -> None:
    """Writes the tensors of one pickle; those that are another one under a second name are left out.

    Raises what torch raises for anything but tensors, ``ValueError`` where there are none, and
    ``TensorNameInvalid``.
    """
    import torch
    from safetensors.torch import save_file

    from merge.arch.ties import tied_names
    from merge.checkpoint.header import check_tensor_name

    state = _state(_loaded(source))
    tensors = {name: each for name, each in state.items() if isinstance(each, torch.Tensor)}
    for name, each in state.items():
        if isinstance(each, Mapping) and any(isinstance(inner, torch.Tensor) for inner in each.values()):
            raise ValueError(f"it holds tensors deeper down, under {name!r}; save those alone")
    if not tensors:
        raise ValueError("it holds no tensors by name")
    tied = tied_names(config, tensors)
    made = {}
    for name, tensor in tensors.items():
        check_tensor_name(source.name, name)
        _check_kind(name, tensor)
        if name in tied and _place(tensor) == _place(tensors[tied[name]]):
            continue
        made[name] = tensor.resolve_conj().resolve_neg().contiguous()
    save_file(_apart(made), target, {"format": "pt"})


def _loaded(source: Path) -> Any:
    """What torch unpickles: tensors, numbers and texts in plain containers."""
    import torch

    with source.open("rb") as file:
        begins = file.read(16)
    if not begins.startswith(_BEGINNINGS):
        raise ValueError(
            f"it begins with {begins!r}, as nothing does that torch saves; was it fetched whole "
            "(git lfs pull)?"
        )
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=_lies_open(source))
    except RuntimeError as error:  # that of programs (TorchScript) goes on to say how to run them
        raise ValueError(str(error).partition("In PyTorch 2.6")[0]) from error
    except pickle.UnpicklingError as error:
        why = " ".join(str(error).rpartition("WeightsUnpickler error:")[2].split())
        found = _MORE.search(why)
        why = f"it holds a {found[1]}" if found else f"torch does not read it ({why[:200]})"
        raise pickle.UnpicklingError(
            f"{why}; only tensors in dicts and lists are unpickled, for all else can run code. Where you "
            "trust the file, save its tensors alone"
        ) from error


def _lies_open(source: Path) -> bool:
    """Whether it is an archive (the older format is none) whose members are not compressed: mapped into
    memory, such would be taken for numbers as they are.
    """
    if not zipfile.is_zipfile(source):
        return False
    with zipfile.ZipFile(source) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _check_kind(name: str, tensor: Any) -> None:
    """Refuses tensors whose numbers do not lie in memory as safetensors has them."""
    import torch

    if tensor.is_meta:
        raise ValueError(f"{name} was saved without its numbers (on the meta device)")
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
        raise ValueError(f"{name} is {kind}, which safetensors cannot hold; save it as plain numbers")


def _state(loaded: Any) -> Mapping[str, Any]:
    """The tensors by name, out of the checkpoint of a training run if they are wrapped in one."""
    if not isinstance(loaded, Mapping):
        raise ValueError("it does not hold tensors by name")
    for key in _INNER:
        inner = loaded.get(key)
        if isinstance(inner, Mapping) and inner:
            return _state(inner)
    return {str(key): value for key, value in loaded.items()}


def _place(tensor: Any) -> tuple[int, tuple[int, ...]]:
    return tensor.data_ptr(), tuple(tensor.shape)


def _apart(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The same tensors, none of which overlaps another in memory."""
    owners: dict[int, str] = {}
    made = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        made[name] = tensor if owners.setdefault(storage, name) == name else tensor.clone()
    return made


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
