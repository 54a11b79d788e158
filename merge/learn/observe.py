"""What the inputs of a stage's modules are like: sums over tokens, taken by hooks while the model runs.

Every module with a ``weight`` (but embeddings) is observed, which covers linear layers, Conv1D, gains and
routers; inside a module that holds stacks of experts, the products with single experts are. Modules that
are handed the same tensor (q, k and v; gate and up) share one sum. Autocast is never on.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from merge.arch.roles import role_of
from merge.learn.findings import Findings, Meter, finite
from merge.learn.skeleton import Skeleton, is_in_out
from merge.learn.trees import tensors_in

_REMEMBERED = 4
_EXPERT = re.compile(r"(.*(?:^|\.)\w*experts)\.(\d+)\.")


class SharingBroken(Exception):
    """Two modules that were handed one tensor in the first batch are not in a later one."""


class Observers:
    """Hooks on the modules of one stage, from ``with`` to its end."""

    def __init__(
        self,
        skeleton: Skeleton,
        modules: Sequence[tuple[str, nn.Module]],
        kinds: frozenset[str],
        *,
        device: torch.device,
        share: bool = True,
    ) -> None:
        self._skeleton = skeleton
        self._modules = modules
        self._kinds = kinds
        self._device = device
        self._share = share
        self._meters: dict[tuple[str, int | None], Meter] = {}
        self._leader: dict[str, str] = {}
        self._settled: set[str] = set()
        self._recent: list[tuple[str, Tensor, int]] = []
        self._handles: list[Any] = []
        self._norms: tuple[float, int] = (0.0, 0)
        self._orders: dict[str, int] = {}

    def __enter__(self) -> "Observers":
        for path, module in self._modules:
            stacks = {
                f"{path}.{leaf}": leaf
                for leaf, value in module._parameters.items()
                if value is not None and value.dim() == 3 and not isinstance(module, _OF_IMAGES)
            }
            if stacks:
                self._watch(module, stacks)
            weight = module._parameters.get("weight")
            if "weight" in stacks.values() or weight is None or isinstance(module, nn.Embedding):
                continue
            hook = self._input_hook(f"{path}.weight" if path else "weight", module, weight)
            self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._recent = []

    def after_batch(self, output: Any) -> None:
        """Forgets the tensors seen; adds the norms of what left the block (its first tensor)."""
        self._recent = []
        first = next(tensors_in(output), None)
        if "activation_norm" in self._kinds and first is not None and first.is_floating_point():
            rows = first.detach().reshape(-1, first.shape[-1]).float()
            total, tokens = self._norms
            norms = torch.linalg.vector_norm(rows, dim=1).double()
            self._norms = (total + float(norms.sum()), tokens + rows.shape[0])

    def findings(self, tensors: Sequence[str], block: str) -> Findings:
        """The statistics of the stage's checkpoint ``tensors``. Raises ``NotFinite`` naming the module."""
        found = Findings()
        stored: dict[tuple[str, int | None], str] = {}
        for name in tensors:
            target = self._skeleton.targets[name]
            key = (self._leader.get(target.parameter, target.parameter), target.expert)
            if target.expert is None and (target.parameter, 0) in self._meters:
                self._stack(name, target.parameter, found)
            elif key in self._meters and key in stored:
                self._note(found, name, self._meters[key], target.parameter)
                found.shared[name] = stored[key]
            elif key in self._meters:
                stored[key] = name
                self._note(found, name, self._meters[key], target.parameter)
                self._means(found, name, self._meters[key])
        for name in self._unstored():
            self._note(found, name, self._meters[name, None], name)
            self._means(found, name, self._meters[name, None])
        self._tied_heads(found)
        if "routing_counts" in self._kinds:
            self._routing(tensors, found)
        if block and "activation_norm" in self._kinds and self._norms[1]:
            value = torch.tensor(self._norms[0] / self._norms[1])
            found.tensors[f"activation_norm/{block}"] = finite(value, "activation_norm", block)
        return found

    def _tied_heads(self, found: Findings) -> None:
        """Heads that share the embedding's tensor, under their own name: nothing else is stored as that."""
        stored = {target.parameter for target in self._skeleton.targets.values()}
        for (parameter, expert), meter in self._meters.items():
            if expert is None and parameter not in stored and role_of(parameter, (1, 1), {}) == "head":
                found.axis[parameter], found.counted[parameter] = 1, meter.tokens
                for kind, value in meter.means().items():
                    found.tensors[f"{kind}/{parameter}"] = finite(value, kind, parameter)

    def _means(self, found: Findings, name: str, meter: Meter) -> None:
        for kind, value in meter.means().items():
            found.tensors[f"{kind}/{name}"] = finite(value, kind, name)

    def _unstored(self) -> list[str]:
        """Modules whose weight is another tensor of the checkpoint under a second name: tied heads."""
        known = {target.parameter for target in self._skeleton.targets.values()}
        measured = (name for name, expert in self._meters if expert is None)
        return [name for name in measured if name not in known and self._skeleton.makers_of(name)]

    def _input_hook(self, name: str, module: nn.Module, weight: Tensor) -> Callable[..., None]:
        width = _width(module, weight)
        kinds = self._kinds if weight.dim() == 2 else self._kinds - {"gram"}

        def see(_: nn.Module, args: Any, kwargs: Any) -> None:
            given = next((each for each in tensors_in((args, kwargs)) if each.is_floating_point()), None)
            if given is not None and not self._shared(name, given, width):
                rows = _rows_of(given, module, weight, width)
                if rows is not None:
                    self._meter(name, None, width, kinds).add(rows)

        return see

    def _meter(self, name: str, expert: int | None, width: int, kinds: frozenset[str]) -> Meter:
        found = self._meters.get((name, expert))
        if found is None:
            found = self._meters[name, expert] = Meter(width, kinds, self._device)
        return found

    def _shared(self, name: str, given: Tensor, width: int) -> bool:
        """Whether another module was handed this very tensor, so that its sums are this one's too."""
        if not self._share:
            return False
        same = (
            leader
            for leader, tensor, version in self._recent
            if tensor is given and version == given._version and self._width_of(leader) == width
        )
        leader = next(same, None)
        if name not in self._settled:
            self._settled.add(name)
            if leader is not None:
                self._leader[name] = leader
        elif self._leader.get(name) != leader:
            raise SharingBroken(name)
        if leader is None:
            self._recent = [*self._recent[1 - _REMEMBERED :], (name, given, given._version)]
        return leader is not None

    def _width_of(self, name: str) -> int:
        found = self._meters.get((name, None))
        return found.width if found is not None else -1

    def _watch(self, module: nn.Module, stacks: Mapping[str, str]) -> None:
        entered: list[ExitStack] = []

        def before(*_: Any) -> None:
            held = {name: module._parameters[leaf] for name, leaf in stacks.items()}
            entered.append(ExitStack())
            entered[-1].enter_context(_Products(held, self._product))

        def after(*_: Any) -> None:
            if entered:
                entered.pop().close()

        self._handles.append(module.register_forward_pre_hook(before))
        self._handles.append(module.register_forward_hook(after, always_call=True))

    def _product(self, name: str, expert: int, rows: Tensor, axis: int) -> None:
        self._orders[name] = axis
        self._meter(name, expert, rows.shape[1], self._kinds).add(rows.float())

    def _stack(self, name: str, parameter: str, found: Findings) -> None:
        """A stack of experts that the checkpoint stores as one tensor: (experts, ...)."""
        experts = self._skeleton.index.tensors[name].shape[0]
        width = next(meter.width for (key, _), meter in self._meters.items() if key == parameter)
        meters = [self._meter(parameter, number, width, self._kinds) for number in range(experts)]
        found.counted[name] = [meter.tokens for meter in meters]
        axis = self._orders[parameter]
        found.axis[name] = 3 - axis if self._skeleton.is_turned(name) else axis
        found.dead_channels[name] = sum(meter.dead() for meter in meters if meter.tokens)
        means = [meter.means() for meter in meters]
        for kind in means[0]:
            value = torch.stack([each[kind] for each in means])
            found.tensors[f"{kind}/{name}"] = finite(value, kind, name)

    def _note(self, found: Findings, name: str, meter: Meter, parameter: str) -> None:
        found.counted[name] = meter.tokens
        found.dead_channels[name] = meter.dead() if meter.tokens else 0
        stored = self._skeleton.index.tensors
        shape = stored[name if name in stored else self._skeleton.makers_of(name)[0]].shape
        fits = [axis for axis, size in enumerate(shape) if size == meter.width]
        if parameter in self._orders:
            usual = self._orders[parameter] - (len(shape) == 2)
        else:
            usual = 0 if self._skeleton.is_transposed(parameter) else 1
        found.axis[name] = usual if usual in fits or not fits else fits[0]

    def _routing(self, tensors: Sequence[str], found: Findings) -> None:
        """Tokens by expert, under the name of the router beside the experts (or of the first expert's
        tensor).
        """
        counts: dict[str, dict[int, int]] = {}
        for (name, expert), meter in self._meters.items():
            listed = _EXPERT.match(name)
            if expert is not None:
                counts.setdefault(name.rpartition(".")[0], {})[expert] = meter.tokens
            elif listed is not None:
                counts.setdefault(listed[1], {})[int(listed[2])] = meter.tokens
        for home, by_expert in counts.items():
            router, experts = self._router_of(home, tensors, max(by_expert) + 1)
            values = [by_expert.get(number, 0) for number in range(experts)]
            found.tensors[f"routing_counts/{router}"] = torch.tensor(values, dtype=torch.int64)

    def _router_of(self, home: str, tensors: Sequence[str], least: int) -> tuple[str, int]:
        index, above = self._skeleton.index, home.rpartition(".")[0]
        for name in tensors:
            shape = index.tensors[name].shape
            near = self._skeleton.targets[name].parameter.startswith(f"{above}.")
            if (
                near
                and len(shape) == 2
                and shape[0] >= least
                and role_of(name, shape, index.config) == "router"
            ):
                return name, shape[0]
        own = [name for name in tensors if self._skeleton.targets[name].parameter.startswith(f"{home}.")]
        experts = max((self._skeleton.targets[name].expert or 0 for name in own), default=0) + 1
        return own[0], max(least, experts)


class _Products(TorchFunctionMode):
    """Sees the products of something with one expert out of a stack, however the stack is taken apart."""

    def __init__(
        self, stacks: Mapping[str, Tensor | None], tell: Callable[[str, int, Tensor, int], None]
    ) -> None:
        super().__init__()
        self._stacks = {
            value.untyped_storage().data_ptr(): (name, value)
            for name, value in stacks.items()
            if value is not None
        }
        self._tell = tell

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is functional.linear or func in _PRODUCTS:
            given, weight = args[-2:] if func in (torch.addmm, torch.baddbmm) else args[:2]
            if isinstance(weight, Tensor) and weight.device.type != "meta":
                self._see(given, weight, func is functional.linear)
        return func(*args, **(kwargs or {}))

    def _see(self, given: Tensor, weight: Tensor, linear: bool) -> None:
        name, stack = self._stacks.get(weight.untyped_storage().data_ptr(), (None, weight))
        if name is None:
            return
        rows = given.detach().reshape(-1, given.shape[-1])
        if weight.dim() == 2:
            expert = (weight.storage_offset() - stack.storage_offset()) // stack.stride(0)
            along = weight.stride(1 if linear else 0)
            self._tell(name, expert, rows, 2 if along == stack.stride(2) else 1)
        elif weight.dim() == 3 and given.dim() == 3:
            along = weight.stride(1)
            for expert in range(stack.shape[0]):
                routed = given[expert].detach()
                routed = routed[(routed != 0).any(dim=1)]
                self._tell(name, expert, routed, 2 if along == stack.stride(2) else 1)


_PRODUCTS = frozenset({
    torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.mm, Tensor.mm, torch.addmm,
    torch.baddbmm,
})  # fmt: skip


_OF_IMAGES = (nn.modules.conv._ConvNd, nn.modules.batchnorm._NormBase, nn.GroupNorm)


def _width(module: nn.Module, weight: Tensor) -> int:
    return weight.shape[0] if weight.dim() == 1 or is_in_out(module) else weight.shape[1]


def _rows_of(given: Tensor, module: nn.Module, weight: Tensor, width: int) -> Tensor | None:
    """The module's input as (tokens, channels), float32; images have their channels second."""
    plain = given.detach()
    second = isinstance(module, _OF_IMAGES) or (weight.dim() >= 3 and plain.shape[1:2] == (width,))
    if second and plain.dim() >= 3:
        plain = plain.movedim(1, -1)
    return plain.reshape(-1, width).float() if plain.shape[-1] == width else None
