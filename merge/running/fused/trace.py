"""Writes down what an elementwise function does to its tensors, operation by operation.

The function runs on tiny tensors while every operation on them is noted. Plain numbers become slots, so that
the same steps with other weights or thresholds give the same program. What is not plainly elementwise, or
whose course depends on the values, is refused with ``Untraceable``.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import frexp
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from merge.contract.rows import Aligned
from merge.kernels.keyed import stream_key
from merge.running.fused.notes import TracedDraws

TINY = 8
_HALF = 0.5
_LEAST_FACTOR = 2.0**-100
DTYPES = {torch.float32: "f", torch.float64: "d", torch.bool: "b"}
NONE = "none"
"""Content of memory that was never written."""
RANKS = "ranks"
"""Ranks within rows: no loop makes them, they come in between two."""


class Untraceable(Exception):
    """This function cannot be written as a loop over entries."""


@dataclass(frozen=True)
class Node:
    """One value an entry: ``op`` on earlier nodes. ``kind`` is f (float32), d (float64) or b (truth).

    ``slot`` is the number of an input, of a plain number, of the first of three key words of a draw, or of
    the first of two words of ranks: columns, and whether equal ones share theirs.
    """

    op: str
    args: tuple[int, ...] = ()
    kind: str = "f"
    slot: int = -1


@dataclass
class Program:
    """What was written down: ``numbers`` and ``words`` fill the slots of this very tensor; ``tables`` have a
    float32 number for each column, or for each row of so many entries, and are read like further inputs.
    """

    nodes: list[Node] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    tables: list[tuple[Tensor, int]] = field(default_factory=list)
    stamp: object = None
    """What programs with the very same nodes have in common, if that is known."""
    _known: dict[Node, int] = field(default_factory=dict)

    def copy(self) -> "Program":
        """The same with slots of its own."""
        return Program(self.nodes, [*self.numbers], [*self.words], [*self.tables], self.stamp)

    def equals(self, other: "Program") -> bool:
        """Whether it does the same, to the last bit."""
        ours, theirs = (
            (tuple(each.nodes), [number.hex() for number in each.numbers], each.words)
            for each in (self, other)
        )
        tables = zip(self.tables, other.tables, strict=False)
        same = all(a[1] == b[1] and torch.equal(a[0], b[0]) for a, b in tables)
        return same and ours == theirs and len(self.tables) == len(other.tables)

    def add(self, node: Node) -> int:
        """The index of this node, the same one for the same node."""
        if node not in self._known:
            self._known[node] = len(self.nodes)
            self.nodes.append(node)
        return self._known[node]

    def number(self, value: float, kind: str) -> int:
        """A plain number in a slot of its own."""
        self.numbers.append(float(value))
        return self.add(Node("number", (), kind, len(self.numbers) - 1))

    def cast(self, node: int, kind: str) -> int:
        """The node as another kind."""
        have = self.nodes[node].kind
        if have == kind:
            return node
        if kind == "b":
            raise Untraceable("numbers are not truth values")
        return self.add(Node("cast", (node,), kind))


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While active, notes every operation on tensors that came from ``input`` or ``draw``."""

    def __init__(self, shape: tuple[int, ...] = (TINY,)) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.shape = shape
        self.program = Program()
        self.drawn: list[tuple[int, int, int]] = []
        """Where in the words a draw has its key, and which key and stream it was made of."""
        self._held: dict[int, tuple[Tensor, int]] = {}
        self._inputs = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is ever compiled by torch, and asking for that would load half of it."""
        return False

    def input(self, place: int) -> Tensor:
        """A float32 stand-in for the entries of one input."""
        self._inputs = max(self._inputs, place + 1)
        return self._new(Node("input", (), "f", place))

    def draw(self, op: str, key: int, stream: int, limit: int) -> Tensor:
        """A float32 stand-in for keyed draws."""
        words, mixed = self.program.words, stream_key(key, stream, 0)
        self.drawn.append((len(words), key, stream))
        words += [mixed & 0xFFFFFFFF, mixed >> 32, limit & 0xFFFFFFFF]
        return self._new(Node(op, (), "f", len(words) - 3))

    def draws(self, key: int, *_: Any) -> TracedDraws:
        """Takes the place of ``Draws``."""
        return TracedDraws(self, key)

    def node_of(self, value: Any, kind: str | None = None) -> int:
        """The node of a tensor or plain number, cast to ``kind``."""
        if not isinstance(value, Tensor):
            return self.program.number(value, kind or "f")
        found = self._find(value)
        if found is None:
            if len(self.shape) == 2 and value.shape == self.shape and value.dtype == torch.float32:
                return self.program.cast(self.program.add(self._table(value, 0)), kind or "f")
            if value.numel() != 1 or value.dim():
                raise Untraceable("a tensor from elsewhere")
            with torch.utils._python_dispatch._disable_current_modes():
                return self.program.number(float(value.detach()), kind or _kind(value.dtype))
        if self.program.nodes[found].op == NONE:
            raise Untraceable("memory that was never written")
        return found if kind is None else self.program.cast(found, kind)

    def aligned(self, value: Aligned, first: int, shape: tuple[int, ...]) -> Any:
        """Takes the place of ``Aligned.at``: numbers of rows are followed."""
        numbers = value.by_row()
        if numbers is None:
            return value.at(first, shape)
        if isinstance(numbers, Tensor):
            return self._new(self._table(numbers, shape[1]))
        return [self._new(self._table(each, shape[1])) for each in numbers]

    def _table(self, value: Tensor, entries: int) -> Node:
        self.program.tables.append((value.contiguous(), entries))
        return Node("input", (), "f", self._inputs + len(self.program.tables) - 1)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operation on the tiny tensors and notes it."""
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_")
        followed = [value for value in _tensors((args, kwargs)) if self._find(value) is not None]
        if name in _FILLS:
            result = func(*args, **kwargs)
            if isinstance(result, Tensor) and result.shape == self.shape and result.dtype in DTYPES:
                self._bind(result, self._filled(name, args))
            return result
        if not followed:
            return func(*args, **kwargs)
        if name not in _OPERATIONS:
            raise Untraceable(name)
        node = _OPERATIONS[name](self, args, {k: v for k, v in kwargs.items() if k != "out"})
        result = func(*args, **kwargs)
        if name not in _VIEWS:
            self._bind(result, node)
        self._check(result)
        return result

    def _filled(self, name: str, args: tuple[Any, ...]) -> int:
        if name.startswith(("empty", "new_empty")):
            return self.program.add(Node(NONE))
        value = {"zeros": 0.0, "ones": 1.0}.get(name.removeprefix("new_").removesuffix("_like"))
        return self.program.number(args[-1] if value is None else value, "f")

    def _new(self, node: Node) -> Tensor:
        with torch.utils._python_dispatch._disable_current_modes():
            made = torch.ones(self.shape)
        self._held[made.untyped_storage().data_ptr()] = (made, self.program.add(node))
        return made

    def _bind(self, tensor: Tensor, node: int) -> None:
        kind = _kind(tensor.dtype)
        if self.program.nodes[node].op != NONE:
            node = self.program.cast(node, kind)
        self._held[tensor.untyped_storage().data_ptr()] = (tensor, node)

    def _find(self, tensor: Tensor) -> int | None:
        held = self._held.get(tensor.untyped_storage().data_ptr())
        return None if held is None else held[1]

    def _check(self, tensor: Any) -> None:
        """Views must show all entries in their order, as what they are."""
        if tensor.shape != self.shape or not tensor.is_contiguous() or tensor.storage_offset():
            raise Untraceable("another shape")
        node = self.program.nodes[self._held[tensor.untyped_storage().data_ptr()][1]]
        if node.op != NONE and node.kind != _kind(tensor.dtype):
            raise Untraceable("other bits")


def _kind(dtype: torch.dtype) -> str:
    if dtype not in DTYPES:
        raise Untraceable(str(dtype))
    return DTYPES[dtype]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


Operation = Callable[[Tracer, tuple[Any, ...], dict[str, Any]], int]


def _common(args: tuple[Any, ...]) -> str:
    """The kind in which two operands meet."""
    return _kind(torch.result_type(args[0], args[1]))


def _binary(op: str) -> Operation:
    def note(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
        if more.get("alpha", 1) != 1 or len(args) > 2 or more.get("rounding_mode") is not None:
            raise Untraceable(f"{op} with more")
        kind = _common(args)
        if kind == "b":
            raise Untraceable(f"{op} of truth values")
        pair = tuple(tracer.node_of(value, kind) for value in args[:2])
        return tracer.program.add(Node(op, pair, kind))

    return note


def _divided(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    """Division by a power of two is multiplication, which takes a fraction of the time."""
    by = args[1]
    plain = isinstance(by, int | float) and _LEAST_FACTOR <= abs(by) <= 1 / _LEAST_FACTOR
    if plain and abs(frexp(by)[0]) == _HALF:
        return _binary("mul")(tracer, (args[0], 1 / by, *args[2:]), more)
    return _binary("div")(tracer, args, more)


def _reversed_sub(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    return _binary("sub")(tracer, (args[1], args[0], *args[2:]), more)


def _comparison(op: str) -> Operation:
    def note(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
        kind = _common(args)
        kind = "f" if kind == "b" else kind
        pair = tuple(tracer.node_of(value, kind) for value in args[:2])
        return tracer.program.add(Node(op, pair, "b"))

    return note


def _logic(op: str) -> Operation:
    def note(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
        nodes = tuple(tracer.node_of(value) for value in args)
        if any(tracer.program.nodes[node].kind != "b" for node in nodes):
            raise Untraceable(f"{op} of numbers")
        return tracer.program.add(Node(op, nodes, "b"))

    return note


def _unary(op: str) -> Operation:
    def note(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
        node = tracer.node_of(args[0])
        kind = tracer.program.nodes[node].kind
        if kind == "b" or len(args) > 1:
            raise Untraceable(op)
        return tracer.program.add(Node(op, (node,), kind))

    return note


def _power(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    if isinstance(args[1], Tensor) or args[1] != 2:
        raise Untraceable("a power")
    return _unary("square")(tracer, args[:1], more)


def _clamp(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    low = args[1] if len(args) > 1 else more.get("min")
    high = args[2] if len(args) > 2 else more.get("max")
    node = tracer.node_of(args[0])
    for op, limit in (("at_least", low), ("at_most", high)):
        if isinstance(limit, Tensor) and tracer._find(limit) is not None:
            raise Untraceable("clamp between tensors")
        if limit is not None:
            node = _next(tracer, op, node, limit)
    return node


def _next(tracer: Tracer, op: str, node: int, limit: Any) -> int:
    kind = tracer.program.nodes[node].kind
    return tracer.program.add(Node(op, (node, tracer.node_of(limit, kind)), kind))


def _clamp_max(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    return _clamp(tracer, (args[0], None, args[1]), more)


def _shrink(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:
    return _next(
        tracer, "hardshrink", tracer.node_of(args[0]), args[1] if len(args) > 1 else more.get("lambd", 0.5)
    )


def _where(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    kind = _kind(torch.result_type(args[1], args[2]))
    mask = tracer.node_of(args[0])
    if tracer.program.nodes[mask].kind != "b" or kind == "b":
        raise Untraceable("where")
    return tracer.program.add(Node("where", (mask, *(tracer.node_of(v, kind) for v in args[1:3])), kind))


def _row_ranks(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    values, shared = args
    words = tracer.program.words
    words += [values.shape[1], int(shared)]
    return tracer.program.add(Node(RANKS, (tracer.node_of(values, "f"),), "f", len(words) - 2))


def _masked_fill(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    kind = tracer.program.nodes[tracer.node_of(args[0])].kind
    filled, mask = tracer.node_of(args[2], kind), tracer.node_of(args[1])
    if tracer.program.nodes[mask].kind != "b":
        raise Untraceable("masked_fill")
    return tracer.program.add(Node("where", (mask, filled, tracer.node_of(args[0])), kind))


def _same(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    found = tracer._find(args[0])
    assert found is not None  # one of the arguments is followed, and there is one
    return found


def _copied(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    return tracer.node_of(args[1])


def _filled_with(tracer: Tracer, args: tuple[Any, ...], more: dict[str, Any]) -> int:  # noqa: ARG001
    return tracer.node_of(args[1] if len(args) > 1 else 0.0)


_VIEWS = frozenset({"view", "reshape", "alias", "detach", "_unsafe_view", "expand", "_reshape_alias"})
_FILLS = frozenset(
    f"{prefix}{what}{suffix}"
    for what in ("empty", "zeros", "ones", "full")
    for prefix, suffix in (("", ""), ("", "_like"), ("new_", ""))
)
_OPERATIONS: dict[str, Operation] = {
    **{name: _binary(name) for name in ("add", "sub", "mul", "maximum", "minimum", "copysign")},
    "div": _divided,
    **{name: _comparison(name) for name in ("gt", "ge", "lt", "le", "eq", "ne")},
    **{name: _unary(name) for name in ("neg", "abs", "sign", "square", "reciprocal")},
    **{f"logical_{name}": _logic(name) for name in ("and", "or", "xor", "not")},
    **{f"bitwise_{name}": _logic(name) for name in ("and", "or", "xor", "not")},
    **dict.fromkeys(_VIEWS, _same),
    **dict.fromkeys(("clone", "_to_copy"), _same),
    "rsub": _reversed_sub,
    "sgn": _unary("sign"),
    "pow": _power,
    "clamp": _clamp,
    "clamp_min": _clamp,
    "clamp_max": _clamp_max,
    "hardshrink": _shrink,
    "where": _where,
    "masked_fill": _masked_fill,
    "mergery::row_ranks": _row_ranks,
    "copy": _copied,
    "fill": _filled_with,
    "zero": _filled_with,
}
