"""How far our mixtures and transplanted tokens are from those of mergekit-moe and mergekit-tokensurgeon.

``python -m bench.agreement_forms`` makes tiny models, has the programs of the environment under
bench/.mergekit (or the one given) make of them what they can, makes the same with our recipes, and prints the
largest difference of each case; the exit code is 1 if it is more than rounding. Embedding rows have one
length and prompts begin without a mark, where both mean the same (docs/mergekit.md tells where they do not).
Of ``mp_rope``, which mergekit 0.1.5 cannot run under Transformers 5, the function itself is called.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.agreement import HERE
from merge.arch.rope import Spin
from merge.local import index_models, model_folders
from merge.mergekit.translate import read_recipe
from merge.plan import make_plan
from merge.recipe.recipe import Recipe, recipe_from
from merge.run import run
from merge.tokenizer.approximate import lengths
from merge.tokenizer.turning import turning_pursuit
from tests import tiny
from tests.merge.tokenizer import small

BUDGET = 1 << 30
MOST = 1e-5
TURNING = """
import sys, torch
from mergekit.tokensurgeon import batch_mp_rope
given = torch.load(sys.argv[1])
heads = {"num_heads_a": 4, "num_heads_b": 4, "a_rope_base": 1e4, "b_rope_base": 5e5}
torch.save(batch_mp_rope(given["targets"], given["donor"], given["own"], 8, **heads)[2], sys.argv[2])
"""
EXPERTS: Sequence[Mapping[str, Any]] = (
    {"source_model": "expert1", "positive_prompts": ["solve 1 + 1"], "residual_scale": 0.5},
    {"source_model": "expert2", "positive_prompts": ["def main():"], "negative_prompts": ["to be"]},
)
MIXTURES: Mapping[str, Mapping[str, Any]] = {
    "mixtral": {"architecture": "mixtral"},
    "deepseek": {"architecture": "deepseek"},
    "deepseek, shared": {"architecture": "deepseek", "shared_experts": [{"source_model": "expert2"}]},
}


class Held:
    """Rows in memory."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.count, self.width = rows.shape

    def tiles(self) -> Iterator[tuple[int, Tensor]]:
        """All at once."""
        yield 0, self.rows

    def take(self, positions: Sequence[int]) -> Tensor:
        """Some of them."""
        return self.rows[list(positions)]


def main() -> int:
    """Runs all cases and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = HERE / ".mergekit" / "bin"
    parser.add_argument("--bin", type=Path, default=default, help="programs of an environment with mergekit")
    programs = parser.parse_args().bin.absolute()
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="mergery-agreement-") as folder:
        for name, case in {**_mixtures(), **_transplants(), "mp_rope, its function": _turning}.items():
            found[name] = case(Path(folder), programs)
            print(f"{name:28} {found[name]:10.2e}", flush=True)
    return int(any(value > MOST for value in found.values()))


def _mixtures() -> dict[str, Callable[[Path, Path], float]]:
    def case(document: Mapping[str, Any]) -> Callable[[Path, Path], float]:
        return lambda root, programs: _mixture(root, programs, document)

    return {f"mixture, {name}": case(document) for name, document in MIXTURES.items()}


def _mixture(root: Path, programs: Path, document: Mapping[str, Any]) -> float:
    folder = root / "experts"
    if not folder.exists():
        tiny.family(folder, experts=2, dtype=torch.float32, hidden=16)
        for name in ("base", "expert1", "expert2"):
            config = json.loads((folder / name / "tokenizer_config.json").read_text())
            config.pop("bos_token")
            (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    asked = {
        "base_model": "base",
        "gate_mode": "cheap_embed",
        "dtype": "float32",
        "experts": [*EXPERTS],
        **document,
    }
    text = yaml.safe_dump(asked)
    (folder / "config.yml").write_text(text)
    theirs = folder / f"theirs {document['architecture']} {len(document)}"
    _call(programs / "mergekit-moe", "config.yml", str(theirs), at=folder)
    return _largest(_fused(_made(read_recipe(text, "yaml").recipe, folder)), _tensors(theirs))


def _fused(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Mixtral's experts as mergekit writes them: one tensor for all of a layer."""
    made = {name: tensor for name, tensor in tensors.items() if ".block_sparse_moe." not in name}
    for full, tensor in tensors.items():
        layer, mark, rest = full.partition(".block_sparse_moe.")
        if mark and rest == "gate.weight":
            at = f"{layer}{mark}experts"
            part = [
                torch.stack([tensors[f"{at}.{n}.{name}.weight"] for n in range(len(tensor))])
                for name in ("w1", "w3", "w2")
            ]
            made |= {f"{layer}.mlp.gate.weight": tensor, f"{layer}.mlp.experts.down_proj": part[2]}
            made[f"{layer}.mlp.experts.gate_up_proj"] = torch.cat(part[:2], dim=1)
    return made


def _transplants() -> dict[str, Callable[[Path, Path], float]]:
    def case(method: str) -> Callable[[Path, Path], float]:
        return lambda root, programs: _transplant(root, programs, method)

    return {
        f"transplant, {method}": case(method) for method in ("omp", "common_interpolation", "mean", "zero")
    }


def _transplant(root: Path, programs: Path, method: str) -> float:
    folder = root / "speakers"
    if not folder.exists():
        _speakers(folder)
    theirs = folder / f"theirs-{method}"
    _call(programs / "mergekit-tokensurgeon", "m", "donor", str(theirs), "-a", method, "--k", "8", at=folder)
    choice = {"source": "donor", "donor": "donor", "approximate": method, "k": 8}
    document = {"sources": [{"id": "m", "model": "m"}], "steps": ["passthrough"], "tokenizer": choice}
    return _largest(_made(recipe_from(document), folder), _tensors(theirs))


def _speakers(folder: Path) -> None:
    """Two models whose vocabularies overlap, with embedding rows of length 1."""
    merges = [("a", "n"), ("t", "h"), ("th", "e")]
    added = ("<|im_start|>", "<|im_end|>", *tiny.SPECIAL)
    small.speaker(folder / "m", merges=[("t", "h")], expert=1)
    small.speaker(folder / "donor", merges=merges, added=added, expert=2, hidden=24)
    for name in ("m", "donor"):
        for file in (folder / name).glob("*.safetensors"):
            made = {key: tensor.float() for key, tensor in load_file(file).items()}
            for key in ("model.embed_tokens.weight", "lm_head.weight"):
                rows = torch.randn(made[key].shape, generator=torch.Generator().manual_seed(len(key)))
                made[key] = torch.nn.functional.normalize(rows, dim=1)
            save_file(made, file, metadata={"format": "pt"})


def _turning(root: Path, programs: Path) -> float:
    draws = torch.Generator().manual_seed(0)
    donor = torch.nn.functional.normalize(torch.randn(200, 24, generator=draws), dim=1)
    own, targets = torch.randn(200, 16, generator=draws), torch.randn(5, 24, generator=draws)
    torch.save({"donor": donor, "own": own, "targets": targets}, root / "given.pt")
    _call(programs / "python", "-c", TURNING, "given.pt", "made.pt", at=root)
    atoms = Held(donor)
    found = turning_pursuit(targets, atoms, lengths(atoms), 8, Spin(4, 1e4))
    theirs: Tensor = torch.load(root / "made.pt")
    return float((found.apply(Held(own), Spin(4, 5e5)) - theirs).abs().max())


def _call(program: Path, *arguments: str, at: Path) -> None:
    done = subprocess.run([str(program), *arguments], cwd=at, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{program.name} {' '.join(arguments)} failed:\n{done.stderr[-2000:]}")


def _made(recipe: Recipe, folder: Path) -> dict[str, Tensor]:
    plan = make_plan(recipe, index_models(recipe, folder), budget=BUDGET)
    with tempfile.TemporaryDirectory(dir=folder) as out:
        run(plan, model_folders(recipe, folder), Path(out) / "ours", budget_bytes=BUDGET, threads=1)
        return _tensors(Path(out) / "ours")


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {
        k: v.double() for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def _largest(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> float:
    if ours.keys() != theirs.keys():
        raise SystemExit(f"other tensors: {sorted(ours.keys() ^ theirs.keys())[:6]}")
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


if __name__ == "__main__":
    sys.exit(main())
