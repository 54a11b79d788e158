"""Records what mergekit makes of the cases in tests/merge/agreement.py; run by a Python that has mergekit.

bench/.mergekit/bin/python bench/record_mergekit.py
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from mergekit.merge_methods.api import merge_tensors

from tests.merge.agreement import CASES, RECORDED, inputs


def main() -> None:
    """Writes one list of numbers a case."""
    found = {}
    for name, case in CASES.items():
        base, sources = inputs(case)
        flat = [base, *sources] if case.based else sources
        tensors = [torch.tensor(values, dtype=torch.float64).view(case.shape) for values in flat]
        merged = merge_tensors(
            tensors, case.method, parameters=dict(case.parameters), base_index=0 if case.based else None
        )
        found[name] = [round(value, 9) for value in merged.flatten().tolist()]
    recorded = {"mergekit": version("mergekit"), "outputs": found}
    text = json.dumps(recorded, indent=None, separators=(",", ":")).replace("],", "],\n")
    RECORDED.write_text(text + "\n", encoding="utf-8")
    print(f"{len(found)} cases, mergekit {recorded['mergekit']}")


if __name__ == "__main__":
    main()
