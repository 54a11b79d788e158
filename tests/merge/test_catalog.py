import json
import subprocess
import sys

import pytest

from merge.__main__ import catalogue_text
from merge.catalog import FOLDER, catalogue
from merge.contract.method import registered
from merge.errors import UnknownMethod
from merge.methods import load
from merge.recipe.presets import entry


def test_catalogue_is_what_the_code_says() -> None:
    load()
    wanted = {f"{name}.json": catalogue_text(method.describe()) for name, method in registered().items()}
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.json")}
    assert committed == wanted, "run: python -m merge catalog"


def test_the_methods_of_the_first_release_are_there() -> None:
    assert {"linear", "slerp", "task_arithmetic", "ties", "dare", "passthrough"} <= catalogue().keys()


def test_every_method_lies_in_its_familys_folder() -> None:
    load()
    for name, method in registered().items():
        assert method.function.__module__ == f"merge.methods.{catalogue()[name].family}.{name}"


def test_an_unknown_method_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownMethod, match="'tys'"):
        entry("tys")
    with pytest.raises(UnknownMethod, match="did you mean 'linear'"):
        entry("linaer")


def test_settings_are_checked_as_a_recipe_writes_them() -> None:
    ties = entry("ties")
    assert ties.problems({"density": [0.1, 0.5], "scope": "global", "normalize": False}) == []
    assert [name for name, _ in ties.problems({"density": [], "scope": 3, "scal": 1})] == [
        "density",
        "scope",
        "scal",
    ]


def test_entries_are_plain_json() -> None:
    for known in catalogue().values():
        assert json.loads(json.dumps(known.as_dict())) == known.as_dict()
        for body in known.settings.values():
            assert body["description"].endswith(".")
            assert known.problems({name: b["default"] for name, b in known.settings.items()}) == []


def test_reading_the_catalogue_loads_no_torch() -> None:
    code = "import sys, merge.catalog as c; assert c.catalogue(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
