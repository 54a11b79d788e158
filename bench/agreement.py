"""How far our results are from mergekit's on the same YAML: every deterministic method, whole models.

``python -m bench.agreement`` makes a tiny Llama family, has ``mergekit-yaml`` merge it by every case (in one
process of the environment under bench/.mergekit, or the one given), merges the same files by the translated
YAML, and prints the largest difference of each case: absolute, and in units in the last place of the largest
entry of the tensor it is in. Both compute in float64 unless told otherwise, so that only the meaning can
differ; the exit code is 1 if it does. What differs on purpose is told in docs/mergekit.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from merge.local import index_models, model_folders
from merge.mergekit.translate import read_recipe
from merge.plan import make_plan
from merge.run import run
from tests.tiny import family

BUDGET = 1 << 30
MOST_ULPS = 1.0
HERE = Path(__file__).parent
DRIVER = """
import json, sys
from mergekit.scripts.run_yaml import main
for config, out in json.loads(sys.stdin.read()):
    try:
        main.main([config, out, "--lazy-unpickle", "--quiet", "--no-write-model-card"], standalone_mode=False)
    except Exception as error:
        print(config, type(error).__name__, error, file=sys.stderr)
"""


@dataclass(frozen=True)
class Case:
    """One merge, as mergekit is told it: ``models`` are experts by number with their parameters."""

    method: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    models: Mapping[int, Mapping[str, Any]] = field(default_factory=lambda: {1: {}, 2: {}, 3: {}})
    base: str | None = "base"

    def document(self, dtype: str) -> dict[str, Any]:
        """The YAML's content."""
        models = [
            {"model": f"expert{number}"} | ({"parameters": dict(own)} if own else {})
            for number, own in self.models.items()
        ]
        made: dict[str, Any] = {"merge_method": self.method, "models": models, "dtype": dtype}
        made |= {"base_model": self.base} if self.base else {}
        return made | ({"parameters": dict(self.parameters)} if self.parameters else {})


THREE = {1: {"weight": 0.5}, 2: {"weight": 0.3}, 3: {"weight": 0.4}}
DENSE = {number: {**own, "density": 0.5} for number, own in THREE.items()}
TWO = {1: {"weight": 0.3}, 2: {"weight": 0.9}}
ONE: Mapping[int, Mapping[str, Any]] = {1: {}}
ROWS = {"nuslerp_flatten": False}
COLUMNS = {"nuslerp_flatten": False, "nuslerp_row_wise": True}
CURVED: Mapping[int, Mapping[str, Any]] = {
    1: {"weight": [0.1, 0.9]},
    2: {"weight": [{"filter": "mlp", "value": 0.7}, {"value": [1, 0.2]}]},
}
CASES: Mapping[str, Case] = {
    "linear": Case("linear", models=THREE, base=None),
    "linear_sum": Case("linear", {"normalize": False}, THREE, base=None),
    "linear_curves": Case("linear", models=CURVED, base=None),
    "slerp": Case("slerp", {"t": 0.3}, ONE),
    "slerp_curve": Case("slerp", {"t": [0.1, 0.9]}, ONE),
    "nuslerp": Case("nuslerp", models=TWO, base=None),
    "nuslerp_deltas": Case("nuslerp", models=TWO),
    "nuslerp_rows": Case("nuslerp", ROWS, TWO),
    "nuslerp_columns": Case("nuslerp", COLUMNS, TWO),
    "multislerp": Case("multislerp", models=THREE, base=None),
    "multislerp_deltas": Case("multislerp", models=THREE),
    "multislerp_sum": Case("multislerp", {"normalize_weights": False}, THREE),
    "karcher": Case("karcher", base=None),
    "passthrough": Case("passthrough", models={1: {"scale": 0.5}}, base=None),
    "task_arithmetic": Case("task_arithmetic", {"lambda": 0.7}, THREE),
    "task_arithmetic_mean": Case("task_arithmetic", {"normalize": True}, CURVED),
    "ties": Case("ties", models=DENSE),
    "ties_sum": Case("ties", {"normalize": False, "lambda": 0.8}, DENSE),
    "ties_rescaled": Case("ties", {"rescale": True}, DENSE),
    "breadcrumbs": Case("breadcrumbs", {"gamma": 0.1}, DENSE),
    "breadcrumbs_rescaled": Case("breadcrumbs", {"gamma": 0.1, "rescale": True}, DENSE),
    "breadcrumbs_ties": Case("breadcrumbs_ties", {"gamma": 0.1}, DENSE),
    "dare_linear_whole": Case("dare_linear", {"density": 1.0}, THREE),
    "dare_ties_whole": Case("dare_ties", {"density": 1.0}, THREE),
    "sce": Case("sce"),
    "sce_half": Case("sce", {"select_topk": 0.5}),
    "ram": Case("ram", {"epsilon": 0.01}),
    "ramplus_tl": Case("ramplus_tl", {"epsilon": 0.01, "r": 0.5}),
    "model_stock": Case("model_stock", models={1: {}, 2: {}}, base="expert3"),
    "model_stock_rows": Case("model_stock", {"filter_wise": True}, {1: {}, 2: {}}, base="expert3"),
    "nearswap": Case("nearswap", {"t": 0.005}, ONE),
    "arcee_fusion": Case("arcee_fusion", models=ONE),
}


@dataclass(frozen=True)
class Difference:
    """The largest of one case: as a number, in units in the last place of its tensor, and where."""

    absolute: float
    ulps: float
    tensor: str


def main() -> int:
    """Runs the cases and prints the table; 1 if any differs by more than it may."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = HERE / ".mergekit" / "bin" / "python"
    parser.add_argument("--python", type=Path, default=default, help="of an environment with mergekit 0.1.5")
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas")
    parser.add_argument("--dtype", default="float64", choices=("float32", "float64", "bfloat16"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen = {name: CASES[name] for name in options.cases.split(",")}
    with tempfile.TemporaryDirectory(prefix="mergery-agreement-") as folder:
        found = compare(Path(folder), chosen, options.python, options.dtype)
    print(f"{'case':22} {'largest':>10} {'in ulps':>9}  tensor")
    for name, difference in found.items():
        told = (
            f"{difference.absolute:10.2e} {difference.ulps:9.2f}  {difference.tensor}" if difference else "no"
        )
        print(f"{name:22} {told}")
    return int(any(d is None or (options.dtype == "float64" and d.ulps > MOST_ULPS) for d in found.values()))


def compare(root: Path, cases: Mapping[str, Case], python: Path, dtype: str) -> dict[str, Difference | None]:
    """The largest difference of every case; ``None`` where mergekit made nothing."""
    stored = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    family(root, dtype=stored, hidden=64, layers=3, delta=0.02)
    for name, case in cases.items():
        (root / f"{name}.yml").write_text(yaml.safe_dump(case.document(dtype) | {"out_dtype": "float32"}))
    jobs = [(f"{name}.yml", f"theirs-{name}") for name in cases]
    subprocess.run([str(python), "-c", DRIVER], cwd=root, input=json.dumps(jobs), text=True, check=True)
    return {name: _difference(root, name) for name in cases}


def _difference(root: Path, name: str) -> Difference | None:
    recipe = read_recipe((root / f"{name}.yml").read_text(), "yaml").recipe
    plan = make_plan(recipe, index_models(recipe, root), budget=BUDGET)
    run(plan, model_folders(recipe, root), root / f"ours-{name}", budget_bytes=BUDGET, threads=1)
    ours, theirs = (_tensors(root / f"{side}-{name}") for side in ("ours", "theirs"))
    if not theirs:
        return None
    assert ours.keys() == theirs.keys()
    return max((_of_tensor(key, ours[key], theirs[key]) for key in ours), key=lambda found: found.ulps)


def _tensors(folder: Path) -> dict[str, Tensor]:
    return {
        key: value for file in sorted(folder.glob("*.safetensors")) for key, value in load_file(file).items()
    }


def _of_tensor(name: str, ours: Tensor, theirs: Tensor) -> Difference:
    """Differences count in units in the last place of the tensor's largest entry."""
    absolute = float((ours.double() - theirs.double()).abs().max())
    largest = theirs.abs().max()
    unit = float(torch.nextafter(largest, torch.tensor(torch.inf)) - largest)
    return Difference(absolute, absolute / unit, name)


if __name__ == "__main__":
    sys.exit(main())
