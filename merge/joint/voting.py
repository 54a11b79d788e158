"""Has the texts of a domain model vote on its entries (RCP); see ``merge.joint.votes``."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from merge.joint.job import Job, whole
from merge.joint.votes import Votes, Zero, penalty, zero_by
from merge.learn.backward import Backward
from merge.learn.findings import Findings
from merge.learn.losses import FOLLOWING
from merge.planning.outputs import OutputTensor
from merge.planning.together import asking, other_of

KIND = "votes"


def vote(job: Job, key: str) -> None:
    """Measures ``votes`` of the domain model ``key``."""
    if job.finished(key):
        return
    skeleton = job.skeleton(key)
    batches = job.batches(key, skeleton)
    partial = job.partial(key, batches)
    source = _Penalty(job, key)

    def means(place: int, values: dict[str, Tensor], total: int) -> None:
        found = Findings()
        for name, value in skeleton.unconverted(values).items():
            found.tensors[f"{KIND}/{name}"] = value.contiguous() / total
        partial.save(f"{KIND}-{place:04}", found)
        taken = sum(int((value > 0).sum()) for value in found.tensors.values())
        entries = sum(value.numel() for value in found.tensors.values())
        partial.note(taken={**partial.facts.get("taken", {}), str(place): [taken, entries]})

    def on_group(done: int, total: int, now: int) -> None:
        partial.note(groups=done)
        job.tell(key, KIND, done, total, now, batches.tokens)

    def run(all_at_once: bool) -> None:
        Backward(
            name=KIND,
            loss=FOLLOWING,
            skeleton=skeleton,
            weights=job.own(key),
            batches=batches,
            folder=partial.folder,
            seed=job.samples[key].seed,
            device=job.device,
            whole=all_at_once,
            check=job.check,
        ).run(
            Votes(skeleton, source, zero_by(skeleton, source.zero)),
            int(partial.facts.get("groups", 0)),
            on_group,
            means,
        )

    job.either_way(key, run, partial.clear)
    counts = partial.facts.get("taken", {}).values()
    taken, entries = sum(each[0] for each in counts), sum(each[1] for each in counts)
    job.finish(key, partial, f"The votes take {taken} of {entries} entries ({taken / max(entries, 1):.1%}).")


class _Penalty:
    """lambda F (theta_R - theta_D)^2, by the domain model's names."""

    def __init__(self, job: Job, key: str) -> None:
        plan = job.plan
        self._job, self._key = job, key
        self._prior = other_of(plan.outputs, KIND)
        self._asked: dict[str, tuple[OutputTensor, float]] = {}
        self.zero: dict[str, Zero] = {}
        for output, knobs in asking(plan.outputs, plan.steps, KIND):
            own = output.sources[1].tensor
            self._asked[own] = output, float(knobs["protect"])
            self.zero[own] = knobs["zero"]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor; zero where nothing is asked or nothing is known."""
        domain = whole(self._job.readers[self._key], name)
        if name not in self._asked:
            return penalty(None, domain, domain, 0.0)
        output, factor = self._asked[name]
        theirs = output.sources[0].tensor
        known = self._job.known[self._prior]
        stored = f"{FOLLOWING}/{theirs}"
        if stored not in known.names:
            return penalty(None, domain, domain, 0.0)
        fisher = known.read(stored, 0, prod(output.shape)).view(output.shape)
        return penalty(fisher, whole(self._job.readers[self._prior], theirs), domain, factor)

    def rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Rows of a matrix."""
        return self.tensor(name)[torch.tensor(rows)]
