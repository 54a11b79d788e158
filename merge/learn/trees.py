"""Trees of tensors: what blocks take and give (a tensor, or tuples, lists and dicts of them and of plain
values).
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

DTYPES = {str(each): each for each in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.bool)}


class TreeUnknown(Exception):
    """A block gave something that cannot be kept: no tree of tensors."""


def pack(tree: Any, tensors: list[Tensor]) -> Any:
    """The tree as JSON with its tensors numbered; they are appended to ``tensors``."""
    if isinstance(tree, Tensor):
        if str(tree.dtype) not in DTYPES:
            raise TreeUnknown(f"a tensor of {tree.dtype}")
        tensors.append(tree)
        return {"tensor": len(tensors) - 1}
    if tree is None or isinstance(tree, bool | int | float | str):
        return {"value": tree}
    if type(tree) in (tuple, list):
        return {"tuple" if isinstance(tree, tuple) else "list": [pack(each, tensors) for each in tree]}
    if type(tree) is dict:
        return {"dict": {str(key): pack(each, tensors) for key, each in tree.items()}}
    raise TreeUnknown(type(tree).__name__)


def unpack(packed: Any, tensors: list[Tensor]) -> Any:
    """What ``pack`` packed."""
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "value":
        return value
    if kind == "dict":
        return {key: unpack(each, tensors) for key, each in value.items()}
    parts = [unpack(each, tensors) for each in value]
    return tuple(parts) if kind == "tuple" else parts


def map_floats(tree: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with every float tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree) if tree.is_floating_point() else tree
    if type(tree) in (tuple, list):
        return type(tree)(map_floats(each, change) for each in tree)
    if type(tree) is dict:
        return {key: map_floats(each, change) for key, each in tree.items()}
    return tree


def detached(tree: Any) -> Any:
    """The same tree without its history."""
    return map_floats(tree, lambda tensor: tensor.detach())


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """Its tensors, from left to right."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for each in tree:
            yield from tensors_in(each)
    elif isinstance(tree, dict):
        for each in tree.values():
            yield from tensors_in(each)


def leaves_of(tree: Any) -> list[Tensor]:
    """The tensors with ``requires_grad`` that those of the tree were computed from."""
    found: list[Tensor] = [each for each in tensors_in(tree) if each.requires_grad and each.is_leaf]
    nodes: list[Any] = [each.grad_fn for each in tensors_in(tree) if each.grad_fn is not None]
    seen = set()
    while nodes:
        node = nodes.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        nodes.extend(above for above, _ in node.next_functions if above is not None)
    return found
