"""What the quality bench measured is told of every method, with a reason where averaging does better."""

import subprocess
import sys

from merge.catalog import catalogue
from merge.evidence import NOT_YET, evidence, evidence_line


def test_evidence_is_of_methods_that_exist() -> None:
    assert evidence()["methods"].keys() <= catalogue().keys()
    assert {"linear", "task_arithmetic", "ties"} <= evidence()["methods"].keys()


def test_what_is_below_plain_averaging_on_bench_a_says_why() -> None:
    below = [
        name for name, found in evidence()["methods"].items() if found.get("a", {}).get("over_average", 0) < 0
    ]
    assert not [name for name in below if not evidence()["methods"][name].get("reason")]


def test_a_line_tells_value_error_coefficient_and_bounds() -> None:
    line = str(evidence_line("task_arithmetic"))
    assert "Bench A (mean accuracy, %): " in line and "scale" in line and "experts" in line and "±" in line


def test_a_method_of_two_models_says_that_it_was_not_run() -> None:
    assert "not run, it takes 2 models" in str(evidence_line("slerp"))


def test_what_no_run_has_come_to_is_told_as_such() -> None:
    told = evidence()["methods"].items()
    waiting = [name for name, found in told if found.get("c", {}).get("why_not") == NOT_YET]
    assert all("Bench C: not run yet." in str(evidence_line(name)) for name in waiting)


def test_it_is_read_without_torch() -> None:
    code = "import sys, merge.evidence as e; e.evidence_line('ties'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
