"""Running a model block by block, with the weights of one block in memory at a time.

The model's own forward is called for each batch and each block. Blocks that are done give what they gave
when they were run (kept in a file), the block whose turn it is runs with its weights, and the call ends
there. So embeddings, masks, rotary tables, cross-attention and whatever else stands between blocks are the
model's own code, for any architecture; only the lists of blocks are found, from the module tree. What lies
outside the blocks is filled when it is first used: large embeddings by the rows that occur, large heads not
at all where only inputs are measured.

The order of blocks is the order of the calls, so towers, encoders and decoders need no rule. Where a model
calls a block twice in one pass, or needs the output of an earlier block again, it cannot be walked:
``NotByBlocks``.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merge.errors import NotFinite
from merge.learn.batches import Batch
from merge.learn.calling import NotByBlocks, called
from merge.learn.outside import Guard, moved_buffers
from merge.learn.skeleton import Skeleton, Weights
from merge.learn.states import States
from merge.learn.towers import Call, Tower, block_lists
from merge.learn.trees import TreeUnknown, detached, leaves_of, map_floats, tensors_in

REST = ""
"""The last stage: everything outside the blocks."""


class _Reached(Exception):
    """A block that is not done was called; what it gave, if it was run."""

    def __init__(self, path: str, output: Any = None) -> None:
        self.path = path
        self.output = output


@dataclass
class Trace:
    """A call of the model with what the blocks gave as leaves: what each block was called with, the float
    tensors of what it gave, and what the model gave in the end (``None`` where the call ended at a block).
    """

    inputs: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    outputs: dict[str, list[Tensor]] = field(default_factory=dict)
    result: Any = None


class Walk:
    """One model on one set of batches. ``scratch`` is a folder for what leaves the blocks.

    With ``whole`` nothing is streamed: all weights are filled at once and there is a single stage. With
    ``gradients`` weights outside the blocks are filled whole, to be differentiated.
    """

    def __init__(
        self,
        skeleton: Skeleton,
        weights: Weights,
        batches: Sequence[Batch],
        scratch: Path,
        *,
        device: torch.device | str = "cpu",
        whole: bool = False,
        gradients: bool = False,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.skeleton = skeleton
        self.weights = weights
        self.batches = batches
        self.device = torch.device(device)
        self.done: list[str] = []
        self.whole = whole
        self.check = check
        self._call = Call()
        self._full: Any = torch.autocast(self.device.type, enabled=False)
        """Float32 stays float32 inside, whatever the caller has switched on."""
        self._takes_cache = "use_cache" in inspect.signature(skeleton.module.forward).parameters
        self._undo: list[Callable[[], None]] = []
        self._scratch = scratch
        scratch.mkdir(parents=True, exist_ok=True)
        self.towers: dict[str, Tower] = {}
        self.every: dict[str, States] = {}
        """Where what leaves each block is kept too, by path; for gradients."""
        self._trace: Trace | None = None
        self._blocks: dict[str, tuple[nn.Module, str, Callable[..., Any]]] = {}
        if not whole:
            self._find_blocks()
        guard = Guard(
            skeleton,
            weights,
            self.device,
            large=not whole and not gradients,
            gradients=gradients,
            see=self._see,
        )
        self._undo += guard.all(tuple(f"{path}." for path in self._blocks))
        if self.device.type != "cpu":
            self._undo.append(moved_buffers(skeleton.module, self.device))

    @property
    def count(self) -> int:
        """How many stages there are: the blocks and the rest."""
        return len(self._blocks) + 1

    @property
    def paths(self) -> Sequence[str]:
        """The blocks' paths, in the order of the module tree."""
        return list(self._blocks)

    def stages(self) -> Iterator["Stage"]:
        """The blocks in the order in which the model calls them, then the rest. Run each before the next is
        asked for. Raises ``NotByBlocks``.
        """
        while (path := self._next()) != REST:
            stage = Stage(self, path)
            yield stage
            stage.close()
        stage = Stage(self, REST)
        yield stage
        stage.close()

    def resume(self, done: Sequence[str], states: Mapping[str, Mapping[str, Any]]) -> bool:
        """Goes on after the blocks ``done``; ``states`` is what ``snapshot`` gave. False where the files
        are gone or are not the ones that were left.
        """
        for path, held in states.items():
            if path not in self.towers or not (self._scratch / held["file"]).is_file():
                return False
            tower = self.towers[path]
            if tower.now.path.name != held["file"]:
                tower.now, tower.spare = tower.spare, tower.now
            tower.now.close()
            tower.now = States(self._scratch / held["file"], list(held["index"]))
            tower.last = held["last"]
            try:
                sound = tower.now.checksum() == held["checksum"]
            except (ValueError, OSError):
                sound = False
            if not sound:
                return False
        self.done = list(done)
        return True

    def snapshot(self) -> dict[str, dict[str, Any]]:
        """What ``resume`` needs of the states, as JSON."""
        return {
            path: {
                "file": tower.now.path.name,
                "index": tower.now.index,
                "last": tower.last,
                "checksum": tower.now.checksum(),
            }
            for path, tower in self.towers.items()
            if tower.last is not None
        }

    def close(self) -> None:
        """Gives the model back as it was found, without weights, and closes files."""
        for undo in reversed(self._undo):
            undo()
        self._undo = []
        self.skeleton.empty(self.skeleton.parameters_under(""))
        for states in self.every.values():
            states.close()
        for tower in self.towers.values():
            tower.now.close()
            tower.spare.close()

    def __enter__(self) -> "Walk":
        self._full.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._full.__exit__(*error)
        self.close()

    def outside(self) -> list[str]:
        """The parameters that are in no block."""
        prefixes = tuple(f"{path}." for path in self._blocks)
        return [name for name in self.skeleton.parameters_under("") if not name.startswith(prefixes)]

    def modules_of(self, path: str) -> list[tuple[str, nn.Module]]:
        """The modules of a stage: those of a block, or all that are in none."""
        every = self.skeleton.module.named_modules()
        if path != REST:
            return [(name, each) for name, each in every if name == path or name.startswith(f"{path}.")]
        prefixes = tuple(f"{block}." for block in self._blocks)
        return [(name, each) for name, each in every if not f"{name}.".startswith(prefixes) or not prefixes]

    def forward(self, batch: int, running: str) -> Any:
        """Calls the model on a batch up to the block ``running`` and gives that block's output; all
        through, and the model's own output, where ``running`` is ``REST``.
        """
        self._call = Call(batch, running, watched=batch == 0 and bool(self._blocks))
        try:
            with torch.set_grad_enabled(self._call.watched):
                found = self._run_model(batch)
        except _Reached as reached:
            if reached.path != running:
                raise NotByBlocks(f"{reached.path} is called before {running or 'the end'}") from None
            return reached.output
        if running != REST:
            raise NotByBlocks(f"{running} is not always called")
        return found

    def trace(self, batch: int, until: str) -> Trace:
        """Calls the model on a batch with gradients, done blocks standing in with what they gave, up to
        ``until``.
        """
        self._call = Call(batch, until)
        self._trace = trace = Trace()
        try:
            with torch.enable_grad():
                trace.result = self._run_model(batch)
        except _Reached:
            pass
        finally:
            self._trace = None
        return trace

    def call_block(self, path: str, args: Any, kwargs: Any) -> Any:
        """A block's own forward."""
        return self._blocks[path][2](*args, **kwargs)

    def _next(self) -> str:
        if len(self.done) == len(self._blocks):
            return REST
        self._call = Call()
        try:
            with torch.no_grad():
                self._run_model(0)
        except _Reached as reached:
            return reached.path
        return REST

    def _run_model(self, batch: int) -> Any:
        plain = {"use_cache": False} if self._takes_cache else {}
        with called(self.skeleton.index.label, self.device, batch, whole=self.whole):
            return self.skeleton.module(**self.batches[batch].on(self.device), **plain)

    def _find_blocks(self) -> None:
        for number, (path, blocks) in enumerate(block_lists(self.skeleton.module)):
            pair = [States(self._scratch / f"states-{number}{side}.bin") for side in "ab"]
            self.towers[path] = Tower(path, pair[0], pair[1])
            for index, block in enumerate(blocks):
                name = f"{path}.{index}"
                self._blocks[name] = (block, path, block.forward)
                block.forward = self._entry(name)
                self._undo.append(partial(block.__dict__.pop, "forward", None))

    def _entry(self, path: str) -> Callable[..., Any]:
        """What stands in the place of a block's forward."""

        def enter(*args: Any, **kwargs: Any) -> Any:
            call = self._call
            if path in call.seen:
                raise NotByBlocks(f"{path} is called twice in one pass")
            call.seen.add(path)
            if self._trace is not None:
                return self._traced(self._trace, path, (args, kwargs))
            if path in self.done:
                return self._kept(path)
            if call.running != path:
                raise _Reached(path)
            self._check_sources((args, kwargs))
            forward = self._blocks[path][2]
            with torch.no_grad():
                raise _Reached(path, forward(*detached(args), **detached(kwargs)))

        return enter

    def _traced(self, trace: Trace, path: str, given: tuple[Any, Any]) -> Any:
        trace.inputs[path] = given
        if path == self._call.running:
            raise _Reached(path)
        tree = self.every[path].get(self._call.batch, self.device)
        floats = [each for each in tensors_in(tree) if each.is_floating_point()]
        trace.outputs[path] = [each.requires_grad_(True) for each in floats]
        return map_floats(tree, lambda each: each.view_as(each))

    def _kept(self, path: str) -> Any:
        """What the tower's last block gave; a mark is left on it, to see who uses it. Nobody may use what
        blocks before the last gave, so one copy stands for all of those.
        """
        tower, held = self.tower_of(path), self._call.before
        tree = None if path == tower.last else held.get(tower.path)
        if tree is None:
            tree = tower.now.get(self._call.batch, self.device)
        if path == tower.last:
            held.pop(tower.path, None)
        else:
            held[tower.path] = tree
        return map_floats(tree, lambda each: self._marked(path, each)) if self._call.watched else tree

    def _marked(self, path: str, tensor: Tensor) -> Tensor:
        leaf = tensor.detach().requires_grad_(True)
        self._call.leaves[id(leaf)] = (path, leaf)
        return leaf.clone()

    def _check_sources(self, tree: Any) -> None:
        """Only what the tower's last done block gave is kept, so nothing may come from an earlier one."""
        for leaf in leaves_of(tree) if self._call.watched else ():
            path, _ = self._call.leaves.get(id(leaf), ("", leaf))
            if path and path != self.tower_of(path).last:
                raise NotByBlocks(f"the output of {path} is used again after later blocks")

    def tower_of(self, path: str) -> Tower:
        """The list that a block stands in."""
        return self.towers[self._blocks[path][1]]

    def _see(self, arguments: Any) -> None:
        """What a module outside the blocks is called with."""
        if self._call.running == REST:
            self._check_sources(arguments)


class Stage:
    """One block (or the rest) while it is its turn; its weights are filled by ``fill`` and gone when it is
    over.
    """

    def __init__(self, walk: Walk, path: str) -> None:
        self._walk = walk
        self.path = path
        self.parameters = (
            walk.skeleton.parameters_under(path) if path != REST or walk.whole else walk.outside()
        )
        self.tensors = walk.skeleton.tensors_of(self.parameters)
        """The checkpoint's tensors that belong to it."""

    @property
    def modules(self) -> list[tuple[str, nn.Module]]:
        """Its modules by path."""
        return self._walk.modules_of(self.path)

    def fill(self, weights: Weights | None = None) -> None:
        """Gives the block its weights, its own or others; those it had are dropped."""
        walk = self._walk
        if self.path == REST and not walk.whole:
            return
        if weights is not None:
            walk.skeleton.empty(self.parameters)
        walk.skeleton.fill(self.parameters, weights or walk.weights, walk.device)

    def run(self, *, keep: bool = True, after: Callable[[Batch, Any], None] = lambda *_: None) -> None:
        """Runs every batch through the block; with ``keep`` what leaves it goes into the next one.
        ``after`` sees each batch's output. Raises ``NotFinite`` naming the block.
        """
        walk = self._walk
        block = self.path != REST
        tower = walk.tower_of(self.path) if block else None
        if tower is not None and keep:
            tower.spare.restart()
        for number, batch in enumerate(walk.batches):
            walk.check()
            output = walk.forward(number, self.path)
            after(batch, output)
            if tower is not None:
                self._check(output)
                if keep:
                    self._keep(tower, output)
        if tower is not None and keep:
            tower.now, tower.spare = tower.spare, tower.now
            tower.last = self.path
            walk.done.append(self.path)

    def _keep(self, tower: Tower, output: Any) -> None:
        try:
            tower.spare.put(output)
            if self.path in self._walk.every:
                self._walk.every[self.path].put(output)
        except TreeUnknown as error:
            raise NotByBlocks(f"{self.path} gives {error}") from error

    def close(self) -> None:
        """Drops the weights."""
        self._walk.skeleton.empty(self.parameters if self.path != REST else ())

    def _check(self, output: Any) -> None:
        for tensor in tensors_in(output):
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise NotFinite(
                    f"What {self.path} of {self._walk.skeleton.index.label} gives on the calibration data "
                    f"is not "
                    "finite: the model is broken, or its numbers are too large for its precision."
                )
