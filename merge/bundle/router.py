"""Which member of a bundle a text is for: by directions that need no training, or by labelled examples.

``svd`` (MergeVLA, arXiv:2511.18810): of every member's change to the value projection of one layer the
leading right singular vectors V are kept; a text's logit is the mean over its tokens of |V' h|, with h what
the base holds where that layer begins. ``linear``: a softmax over the mean of h over the tokens,
standardised, fitted to labelled texts by least cross entropy with a small penalty: convex, so that the same
examples give the same router. (Twin-Merging, arXiv:2406.15479, trains two hidden layers with dropout there.)

A router lies in its bundle as ``router.safetensors`` and ``router.json``.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from merge.bundle.gate import DIRECTIONS, gate_weight, last_layer
from merge.checkpoint.index import ModelIndex
from merge.checkpoint.reader import TensorReader
from merge.checkpoint.saving import save_tensors
from merge.errors import GateUnsupported
from merge.file_errors import BundleRefused, MemberUnknown
from merge.learn.skeleton import Stored
from merge.results.hidden import in_batches, layer_inputs, tokens_of

FILE, FACTS = "router.safetensors", "router.json"
MOST_TOKENS = 512
"""Of a longer text only the beginning is looked at."""
PENALTY = 1e-3
HELD_OUT = 5
"""One example in so many is not learned from, but scored."""
STEPS = 200

_UNREADABLE = (ArithmeticError, LookupError, OSError, RuntimeError, SafetensorError, TypeError, ValueError)
"""What files that were cut, or that belong to different routers, may raise."""

Check = Callable[[], None]


@dataclass(frozen=True)
class Place:
    """A bundle's base as a folder, and its members read over it (names are enough to learn from examples):
    what routers are made from.
    """

    base: ModelIndex
    folder: Path
    members: Mapping[str, TensorReader | None]


@dataclass(frozen=True)
class Router:
    """``tensors`` by name: ``directions`` (members, k, width), or ``weight`` (members, width), ``bias``, and
    the ``mean`` and ``scale`` by which states are standardised.
    """

    kind: Literal["svd", "linear"]
    layer: int
    members: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    structure: str
    told: Mapping[str, Any]

    def weights(self, state: Tensor) -> dict[str, float]:
        """For a text, whose state is (tokens, width), a weight for every member; they add up to 1."""
        if self.kind == "svd":
            logits = self._gate(state.double())
        else:
            logits = _logits(self.tensors, state.double().mean(0))
        return dict(zip(self.members, torch.softmax(logits, dim=0).tolist(), strict=True))

    def check(self, last: int) -> None:
        """Raises an error of arithmetic or look-up where the parts do not fit together, or the base's
        ``last`` layer is before the router's.
        """
        if not 0 <= self.layer <= last:
            raise ValueError(f"it looks at layer {self.layer} of 0 to {last}")
        self.weights(torch.zeros(1, self.tensors["directions" if self.kind == "svd" else "mean"].shape[-1]))

    def _gate(self, state: Tensor) -> Tensor:
        directions = self.tensors["directions"].double()
        lengths: Tensor = torch.linalg.vector_norm(directions @ state.T, dim=1)
        return lengths.mean(1)


def gate(place: Place, *, layer: int | None = None, directions: int = DIRECTIONS) -> Router:
    """The router that needs no examples; by default of the last layer. Raises ``GateUnsupported``."""
    if directions < 1:
        raise GateUnsupported(f"A router needs at least one direction of every member, not {directions}.")
    at, name = gate_weight(place.base, layer)
    with TensorReader(place.folder, place.base) as plain:
        base = Stored(plain).tensor(name).double()
    found = []
    for reader in place.members.values():
        assert reader is not None
        change = Stored(reader).tensor(name).double() - base
        values, vh = torch.linalg.svd(change, full_matrices=False)[1:]
        vh = vh * (values > 1e-9 * values[:1].clamp(min=1e-30)).double()[:, None]
        found.append(vh[:directions])
    return Router("svd", at, tuple(place.members), {"directions": torch.stack(found)}, place.base.digest, {})


def train(place: Place, examples: Sequence[tuple[str, str]], check: Check = lambda: None) -> Router:
    """The router that ``examples`` (text, member) teach. Raises ``MemberUnknown`` for any other label."""
    members = tuple(place.members)
    for _, member in examples:
        if member not in members:
            raise MemberUnknown(f"An example is for {member[:64]!r}; the bundle holds {', '.join(members)}.")
    absent = [member for member in members if all(label != member for _, label in examples)]
    if absent:
        raise BundleRefused(f"There is no example for {', '.join(absent)}; give some for every member.")
    layer = last_layer(place.base)
    texts = [text for text, _ in examples]
    states = states_of(place.base, place.folder, texts, layer, check)
    pooled = torch.stack([state.double().mean(0) for state in states])
    labels = torch.tensor([members.index(member) for _, member in examples])
    held = torch.tensor([_is_held_out(text) for text, _ in examples])
    if len(set(labels[~held].tolist())) < len(members):
        held = torch.zeros_like(held)
    tensors = _fitted(pooled[~held], labels[~held], len(members))
    right = _logits(tensors, pooled).argmax(1) == labels
    told: dict[str, Any] = {"examples": int((~held).sum()), "accuracy": float(right[~held].double().mean())}
    if bool(held.any()):
        told |= {"held_out": int(held.sum()), "held_out_accuracy": float(right[held].double().mean())}
    return Router("linear", layer, members, tensors, place.base.digest, told)


def states_of(
    base: ModelIndex, folder: Path, texts: Sequence[str], layer: int, check: Check = lambda: None
) -> Iterator[Tensor]:
    """What the base holds of one text after another where a layer begins: (tokens, width)."""
    tokens = [ids[:MOST_TOKENS] for ids in tokens_of(base, folder, texts)]
    width = int(base.config.get("hidden_size", 0)) or 1
    with TensorReader(folder, base) as reader:
        for batch in in_batches(tokens, Tensor.numel, width):
            for number, states in enumerate(layer_inputs(reader, folder, batch, check)):
                if number == layer:
                    yield from states
                    break


def save(router: Router, bundle: Path) -> None:
    """Puts the router into the bundle's folder, in the place of an earlier one."""
    facts = {
        "kind": router.kind,
        "layer": router.layer,
        "members": list(router.members),
        "structure_sha256": router.structure,
        **router.told,
    }
    tensors = {name: tensor.float().contiguous() for name, tensor in router.tensors.items()}
    save_tensors(tensors, bundle / f".{FILE}")
    (bundle / f".{FILE}").rename(bundle / FILE)
    (bundle / FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def told_of(facts: Path) -> dict[str, Any]:
    """What is told of a router that was saved: its kind and members, and how it did on the examples."""
    told: dict[str, Any] = json.loads(facts.read_bytes())
    return {name: value for name, value in told.items() if name != "structure_sha256"}


def load(bundle: Path, base: ModelIndex) -> Router:
    """The router of a bundle; ``BundleRefused`` where it has none, or one of another base."""
    try:
        facts = json.loads((bundle / FACTS).read_bytes())
        router = Router(
            facts["kind"],
            int(facts["layer"]),
            tuple(facts["members"]),
            load_file(bundle / FILE),
            facts["structure_sha256"],
            {},
        )
        if router.structure != base.digest or router.kind not in ("svd", "linear"):
            raise BundleRefused(f"The router of {bundle} was made over another base; make it again.")
        router.check(last_layer(base))
    except FileNotFoundError:
        raise BundleRefused(f"{bundle} has no router; make one with `python -m merge router`.") from None
    except _UNREADABLE as error:
        raise BundleRefused(f"The router of {bundle} cannot be read: {error}.") from error
    return router


def _fitted(pooled: Tensor, labels: Tensor, members: int) -> dict[str, Tensor]:
    """Weights of least cross entropy plus ``PENALTY`` times their squares, in float64, from zero."""
    mean, scale = pooled.mean(0), pooled.std(0, correction=0).clamp(min=1e-6)
    states = (pooled - mean) / scale
    weight = torch.zeros(members, states.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(members, dtype=torch.float64, requires_grad=True)
    descent = torch.optim.LBFGS([weight, bias], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        descent.zero_grad()
        entropy = torch.nn.functional.cross_entropy(states @ weight.T + bias, labels)
        whole = entropy + PENALTY * weight.square().sum()
        whole.backward()  # type: ignore[no-untyped-call]
        return whole

    descent.step(loss)  # type: ignore[no-untyped-call]
    return {"weight": weight.detach(), "bias": bias.detach(), "mean": mean, "scale": scale}


def _logits(tensors: Mapping[str, Tensor], pooled: Tensor) -> Tensor:
    weight, bias, mean, scale = (tensors[name].double() for name in ("weight", "bias", "mean", "scale"))
    return (pooled - mean) / scale @ weight.T + bias


def _is_held_out(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % HELD_OUT == 0
