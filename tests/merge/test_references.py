"""Every method makes the committed bytes, for any threads, memory and files; see ``references.py``."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from merge.run import run
from tests.merge import exact, informed
from tests.merge.every import ALL
from tests.merge.references import (
    BUDGET,
    DIGESTS,
    chains,
    merged_factors,
    on_factors,
    planned,
    tensors_digest,
    with_adapters,
)

CHAINS = chains()
ON_FACTORS = on_factors()
COMMITTED = json.loads(DIGESTS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return exact.family(tmp_path_factory.mktemp("family"), shards=2)


@pytest.mark.parametrize("chain", CHAINS)
def test_bytes_are_the_committed_ones(folders: Mapping[str, Path], tmp_path: Path, chain: str) -> None:
    for threads, budget, shard_bytes in ((1, BUDGET, 150_000), (2, 1 << 30, 1 << 20)):
        plan, out = planned(folders, *CHAINS[chain], shard_bytes=shard_bytes), tmp_path / str(threads)
        known = informed.folders_for(plan, folders["base"].parent)
        run(plan, folders, out, budget_bytes=budget, threads=threads, statistics=known)
        assert tensors_digest(out) == COMMITTED[chain], f"{threads} threads; if it is meant: make references"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_adapters(tmp_path_factory.mktemp("adapters"))


@pytest.mark.parametrize("step", ON_FACTORS)
def test_merged_factors_have_the_committed_bytes(adapters: Path, tmp_path: Path, step: str) -> None:
    for threads, shard_bytes in ((1, 150_000), (2, 1 << 20)):
        out = tmp_path / str(threads)
        merged_factors(adapters, ON_FACTORS[step], out, threads=threads, shard_bytes=shard_bytes)
        assert tensors_digest(out) == COMMITTED[step], f"{threads} threads; if it is meant: make references"


def test_there_is_a_digest_for_every_method_and_none_too_many() -> None:
    assert COMMITTED.keys() == CHAINS.keys() | ON_FACTORS.keys(), "make references"
    assert {name.partition(".")[0] for name in COMMITTED} >= {method.name for method in ALL}
