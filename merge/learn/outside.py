"""What lies outside the blocks gets its weights when the model is first called, and only as far as it needs
them.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from merge.learn.forecast import LARGE_BYTES
from merge.learn.skeleton import Skeleton, Weights


class Guard:
    """Sets modules up to be filled. ``large``: of large embeddings only the rows that occur are read, and
    large heads are not computed at all (what they give is zero; what they are given is seen by hooks as
    ever).
    """

    def __init__(
        self,
        skeleton: Skeleton,
        weights: Weights,
        device: torch.device,
        *,
        large: bool,
        gradients: bool,
        see: Callable[[Any], None],
    ) -> None:
        self._skeleton = skeleton
        self._weights = weights
        self._device = device
        self._large = large
        self._gradients = gradients
        self._see = see

    def all(self, blocks: tuple[str, ...]) -> list[Callable[[], None]]:
        """Guards every module that has weights of its own outside ``blocks`` (beginnings of paths); gives
        what undoes it. All are filled with the model's first call: a module may take the weights of another
        one without calling it.
        """
        known = set(self._skeleton.parameters_under(""))
        undo: list[Callable[[], None]] = []
        filled: list[str] = []

        def fill(*_: Any) -> None:
            self._skeleton.fill(filled, self._weights, self._device, gradients=self._gradients)

        undo.append(self._skeleton.module.register_forward_pre_hook(fill).remove)
        for path, module in self._skeleton.module.named_modules():
            if any(f"{path}.".startswith(block) for block in blocks):
                continue
            own = [f"{path}.{leaf}" if path else leaf for leaf in (*module._parameters, *module._buffers)]
            names = [name for name in own if name in known]
            if names:
                undo += self._guard(path, module, names)
                filled += names
        return undo

    def _guard(self, path: str, module: nn.Module, names: list[str]) -> list[Callable[[], None]]:
        """Sets one module up; what is left in ``names`` is to be filled as a whole."""
        weight = module._parameters.get("weight")
        undo: list[Callable[[], None]] = []
        if self._large and weight is not None and weight.numel() * 4 > LARGE_BYTES:
            makers = self._skeleton.makers_of(f"{path}.weight")
            if isinstance(module, nn.Embedding) and len(makers) == 1:
                undo += _by_rows(module, _Rows(module, makers[0], self._weights, self._device))
                names.remove(f"{path}.weight")
            elif type(module) is nn.Linear:
                undo.append(_without_product(module))
                names.clear()

        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._see((args, kwargs))

        undo.append(module.register_forward_pre_hook(see, with_kwargs=True).remove)
        return undo


class _Rows(TorchFunctionMode):
    """Looks tokens up in a table of the rows that have occurred so far, in place of the whole embedding."""

    def __init__(self, module: nn.Embedding, name: str, weights: Weights, device: torch.device) -> None:
        super().__init__()
        self._module = module
        self._away = module._parameters["weight"]
        nothing = torch.zeros((), dtype=torch.float32, device=device).expand(module.weight.shape)
        self._here = nn.Parameter(nothing, requires_grad=False)
        self._name = name
        self._weights = weights
        self._known = torch.empty(0, dtype=torch.int64)
        self._table = torch.empty(0, module.embedding_dim, dtype=torch.float32)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        if func is functional.embedding:
            given = args[0] if args else named["input"]
            table = args[1] if len(args) > 1 else named["weight"]
            if table is self._here:
                return self._rows(given)
        return func(*args, **named)

    def put(self) -> None:
        """A table of the right shape and device that takes no memory, for the time of a call."""
        self._module._parameters["weight"] = self._here

    def take(self) -> None:
        """Takes it away again."""
        self._module._parameters["weight"] = self._away

    def _rows(self, ids: Tensor) -> Tensor:
        flat = ids.detach().to("cpu").reshape(-1)
        missing = torch.tensor(sorted(set(flat.tolist()) - set(self._known.tolist())), dtype=torch.int64)
        if missing.numel():
            found = self._weights.rows(self._name, missing.tolist())
            known = torch.cat([self._known, missing])
            order = known.argsort()
            self._known = known[order]
            self._table = torch.cat([self._table, found])[order]
        places = torch.searchsorted(self._known, flat)
        return self._table[places].view(*ids.shape, -1).to(ids.device)


def _by_rows(module: nn.Module, rows: _Rows) -> list[Callable[[], None]]:
    entered: list[ExitStack] = []

    def enter(*_: Any) -> None:
        rows.put()
        entered.append(ExitStack())
        entered[-1].enter_context(rows)

    def leave(*_: Any) -> None:
        if entered:
            entered.pop().close()
            rows.take()

    before = module.register_forward_pre_hook(enter)
    after = module.register_forward_hook(leave, always_call=True)
    return [before.remove, after.remove]


def _without_product(module: nn.Linear) -> Callable[[], None]:
    width = module.out_features

    def nothing(x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(*x.shape[:-1], width)

    module.__dict__["forward"] = nothing
    return partial(module.__dict__.pop, "forward", None)


def moved_buffers(module: nn.Module, device: torch.device) -> Callable[[], None]:
    """Moves computed buffers to the device; gives what moves them back."""
    held = [
        (each, name, buffer)
        for each in module.modules()
        for name, buffer in each._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    for each, name, buffer in held:
        each._buffers[name] = buffer.to(device)

    def back() -> None:
        for each, name, buffer in held:
            each._buffers[name] = buffer

    return back
