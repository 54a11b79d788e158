"""The four-bit matrices of bitsandbytes, whose shapes no header tells. Loads no torch.

Beside its codes a matrix has tables and a small JSON text, its state, that says how it was shaped and cut
into blocks. Matrices of one place in the layers and of one size are alike, so one state of each kind is read
to plan with; decoding compares the others with it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any

from merge.checkpoint.header import Coded, TensorInfo, parse_json_object
from merge.file_errors import FileRefused, QuantizationMalformed

STATE = ".quant_state.bitsandbytes__"
"""Between the name of a matrix and the kind of its codes, in the name of its state."""
LEVELS, TABLE = 16, 256
"""Values that a code, and a byte of a coded scale, may stand for."""
_MOST_STATE, _MOST_BLOCK, _MOST_KINDS = 4096, 1 << 20, 512
_LOSSES: Mapping[str, str] = {"nf4": "15", "fp4": "17"}
"""Half of the widest gap between two values, in per cent of the largest."""
_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class State:
    """What a state says: the shape, entries of a block, scales that share one (0 where scales are stored as
    they are) and what is added to those.
    """

    shape: tuple[int, ...]
    block: int
    nested: int
    offset: float


@dataclass(frozen=True, slots=True)
class FourBits:
    """One matrix by its own name."""

    name: str
    shape: tuple[int, ...]
    coded: Coded
    scheme: str
    loss: str


def states_to_read(tensors: Mapping[str, TensorInfo]) -> list[TensorInfo]:
    """One state of each kind of matrix."""
    found: dict[tuple[str, int], TensorInfo] = {}
    for name, info in tensors.items():
        if STATE in name:
            found.setdefault(_kind(tensors, name), info)
        if len(found) > _MOST_KINDS:
            raise QuantizationMalformed(
                f"There are more than {_MOST_KINDS} kinds of matrices in four bits ({name})."
            )
    for info in found.values():
        _check_state(info)
    return list(found.values())


def _check_state(info: TensorInfo) -> None:
    if info.nbytes > _MOST_STATE or info.dtype != "U8":
        raise QuantizationMalformed(
            f"{info.name} is {info.nbytes} bytes of {info.dtype}, not a short text of JSON in bytes (U8)."
        )


def four_bit_matrices(tensors: Mapping[str, TensorInfo], states: Mapping[str, bytes]) -> Iterator[FourBits]:
    """Every matrix; ``states`` are the contents of those of ``states_to_read``.

    Raises ``QuantizationMalformed`` where the parts of a matrix do not fit together.
    """
    known = {_kind(tensors, name): state_of(name, raw) for name, raw in states.items()}
    for name, info in tensors.items():
        state = known.get(_kind(tensors, name)) if STATE in name else None
        if state is not None:
            yield _matrix(tensors, info, state)


@lru_cache(maxsize=256)
def state_of(name: str, raw: bytes) -> State:
    """What a state says; ``QuantizationMalformed`` where it cannot be so."""
    try:
        said = parse_json_object(name, raw)
    except FileRefused as error:
        raise QuantizationMalformed(str(error)) from error
    shape, block = said.get("shape"), said.get("blocksize")
    nested, offset = said.get("nested_blocksize", 0), said.get("nested_offset", 0.0)
    right = isinstance(shape, list) and shape and all(type(side) is int and side > 0 for side in shape)
    if not (right and _is_size(block, 1) and _is_size(nested, 0) and type(offset) in (int, float)):
        raise QuantizationMalformed(f"{name} does not tell shape and blocks as bitsandbytes does.")
    return State(tuple(said["shape"]), int(said["blocksize"]), int(nested), float(offset))


def _is_size(value: Any, least: int) -> bool:
    return type(value) is int and least <= value <= _MOST_BLOCK


def _kind(tensors: Mapping[str, TensorInfo], name: str) -> tuple[str, int]:
    codes = tensors.get(name.partition(STATE)[0])
    return _NUMBER.sub("*", name.partition(STATE)[0]) + name.partition(STATE)[2], codes.nbytes if codes else 0


def _matrix(tensors: Mapping[str, TensorInfo], said: TensorInfo, state: State) -> FourBits:
    _check_state(said)
    name, _, kind = said.name.partition(STATE)
    entries = prod(state.shape)
    blocks = -(-entries // state.block)
    wanted = {
        "absmax": ("absmax", blocks, "U8" if state.nested else "F32"),
        "map": ("quant_map", LEVELS, "F32"),
    }
    if state.nested:
        wanted["nested_absmax"] = ("nested_absmax", -(-blocks // state.nested), "F32")
        wanted["nested_map"] = ("nested_quant_map", TABLE, "F32")
    codes = tensors.get(name)
    if codes is None or codes.nbytes != -(-entries // 2) or kind not in _LOSSES:
        raise QuantizationMalformed(f"{said.name} says {list(state.shape)}, which does not fit its codes.")
    parts = {"codes": replace(codes, dtype="U8", shape=(codes.nbytes,)), "state": said}
    for part, (leaf, count, dtype) in wanted.items():
        info = tensors.get(f"{name}.{leaf}")
        if info is None or info.numel != count or info.dtype != dtype:
            raise QuantizationMalformed(f"{name}.{leaf} must be there as {count} numbers in {dtype}.")
        parts[part] = info
    settings = {"columns": state.shape[-1], "rows": entries // state.shape[-1]}
    settings |= {"block": state.block, "nested": state.nested}
    loss = f"at 4 bits each weight is off by up to {_LOSSES[kind]} % of the largest of its {state.block}"
    loss += ", whose own scale is rounded to 8 bits" if state.nested else ""
    return FourBits(
        name, state.shape, Coded("bitsandbytes", parts, settings), f"bitsandbytes {kind.upper()}", loss
    )
