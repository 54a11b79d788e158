"""Squared gradients of every weight, sequence by sequence, with the weights of one block in memory at a time.

Forwards as in any walk, but what leaves every block is kept. Then, from the last block to the first: the
model is called up to the block with what earlier blocks gave as leaves, so that all that stands between
blocks is differentiated by the model's own code; the block is run again with gradients, and what its inputs
get is passed on to the blocks they came from. Weights outside the blocks come last, each sequence at once,
so that a tied weight's two gradients are added before they are squared.

What is differentiated is in ``merge.learn.losses``.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from merge.errors import NotFinite
from merge.learn.losses import FOLLOWING, Loss
from merge.learn.states import States
from merge.learn.trees import leaves_of, map_floats, tensors_in
from merge.learn.walk import REST, Trace, Walk

OnGradient = Callable[[int, str, Tensor, Tensor], None]
"""Called with the sequence's number, the parameter's name, its gradient and its value."""
Cotangents = dict[tuple[str, int], list[Tensor | None]]


class Gradients:
    """Gradients of one loss over the sequences of a walk (batches of one sequence each)."""

    def __init__(self, walk: Walk, loss: Loss, tell: OnGradient) -> None:
        self._walk = walk
        self._loss = loss
        self._first = loss.first
        self._tell = tell
        self._cotangents: Cotangents = {}
        self._outside: defaultdict[int, list[tuple[str, int, Tensor]]] = defaultdict(list)

    def run(self, order: Sequence[str], after: Callable[[str], None]) -> None:
        """All blocks of ``order`` (as they were run), last to first, then what is outside; ``after`` each."""
        for sequence in range(len(self._walk.batches)):
            self._walk.check()
            trace = self._walk.trace(sequence, REST)
            self._add(trace, sequence, [self._loss.of(trace.result, sequence)], [torch.ones(())])
        for path in reversed(order):
            self._block(path)
            after(path)
        for sequence in range(len(self._walk.batches)):
            self._walk.check()
            self._rest(sequence)
        after(REST)

    def _block(self, path: str) -> None:
        walk = self._walk
        names = walk.skeleton.parameters_under(path)
        walk.skeleton.fill(names, walk.weights, walk.device, gradients=True)
        own = walk.skeleton.trained(names)
        for sequence in range(len(walk.batches)):
            walk.check()
            given = self._cotangents.pop((path, sequence), None)
            if given is not None and any(each is not None for each in given):
                self._through(path, sequence, own, given)
        walk.skeleton.empty(names)

    def _through(
        self, path: str, sequence: int, own: dict[str, Tensor], given: Sequence[Tensor | None]
    ) -> None:
        trace = self._walk.trace(sequence, path)
        inputs = [each for each in tensors_in(trace.inputs[path]) if each.requires_grad]
        fresh = {id(each): each.detach().clone().requires_grad_(True) for each in inputs}
        args, kwargs = map_floats(trace.inputs[path], lambda each: fresh.get(id(each), each.detach()))
        with torch.enable_grad():
            output = self._walk.call_block(path, args, kwargs)
        outs = [each for each in tensors_in(output) if each.is_floating_point()]
        pairs = [
            (out, grad)
            for out, grad in zip(outs, given, strict=True)
            if grad is not None and out.requires_grad
        ]
        unique = list({id(each): each for each in inputs}.values())
        wanted = [fresh[id(each)] for each in unique] + list(own.values())
        found = torch.autograd.grad(
            [out for out, _ in pairs], wanted, [grad for _, grad in pairs], allow_unused=True
        )
        for (name, value), gradient in zip(own.items(), found[len(unique) :], strict=True):
            if gradient is not None:
                self._give(sequence, name, gradient, value)
        kept = [(each, grad) for each, grad in zip(unique, found, strict=False) if grad is not None]
        self._add(trace, sequence, [each for each, _ in kept], [grad for _, grad in kept])
        places = {id(each): place for place, each in enumerate(tensors_in(trace.inputs[path]))}
        for each, grad in kept:
            if any(isinstance(leaf, nn.Parameter) for leaf in leaves_of(each)):
                self._outside[sequence].append((path, places[id(each)], grad))

    def _add(self, trace: Trace, sequence: int, heads: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Passes gradients of what blocks are given on to the outputs that it was computed from."""
        leaves = [
            (path, place, leaf) for path, own in trace.outputs.items() for place, leaf in enumerate(own)
        ]
        heads_kept = [(head, grad) for head, grad in zip(heads, gradients, strict=True) if head.requires_grad]
        if not leaves or not heads_kept:
            return
        found = torch.autograd.grad(
            [head for head, _ in heads_kept],
            [leaf for *_, leaf in leaves],
            [grad.to(head.device) for head, grad in heads_kept],
            allow_unused=True,
        )
        for (path, place, _), gradient in zip(leaves, found, strict=True):
            if gradient is not None:
                held = self._cotangents.setdefault((path, sequence), [None] * len(trace.outputs[path]))
                before = held[place]
                held[place] = gradient if before is None else before + gradient

    def _rest(self, sequence: int) -> None:
        walk = self._walk
        trace = walk.trace(sequence, REST)
        own = walk.skeleton.trained(walk.outside())
        heads, gradients = [self._loss.of(trace.result, sequence)], [torch.ones((), device=walk.device)]
        for path, place, gradient in self._outside.pop(sequence, []):
            heads.append(list(tensors_in(trace.inputs[path]))[place])
            gradients.append(gradient)
        if not own:
            return
        found = torch.autograd.grad(heads, list(own.values()), gradients, allow_unused=True)
        for (name, value), gradient in zip(own.items(), found, strict=True):
            if gradient is not None:
                self._give(sequence, name, gradient, value)

    def _give(self, sequence: int, name: str, gradient: Tensor, value: Tensor) -> None:
        if not bool(gradient.isfinite().all()):
            raise NotFinite(
                f"The gradient of {name} of {self._walk.skeleton.index.label} is not finite on "
                f"calibration sequence "
                f"{self._first + sequence}."
            )
        self._tell(self._first + sequence, name, gradient.detach(), value.detach())


def keep_every_output(walk: Walk, scratch: Path) -> list[str]:
    """Runs the walk forwards and keeps what leaves every block; gives the blocks in the order of the
    calls.
    """
    order: list[str] = []
    for stage in walk.stages():
        if stage.path == REST:
            break
        walk.every[stage.path] = States(scratch / f"every-{len(order)}.bin")
        stage.fill()
        stage.run()
        order.append(stage.path)
    return order


class Squares:
    """Sums over sequences of squared gradients, by parameter."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.sums: dict[str, Tensor] = {}

    def add(self, _: int, name: str, gradient: Tensor, value: Tensor) -> None:
        """One sequence's gradient of one parameter."""
        part = gradient.float()
        if self.kind == FOLLOWING:
            part = part * value.float()
        held = self.sums.get(name)
        if held is None:
            self.sums[name] = part * part
        else:
            held.addcmul_(part, part)

    def take(self) -> dict[str, Tensor]:
        """What has gathered, which is forgotten here."""
        found, self.sums = self.sums, {}
        return found
