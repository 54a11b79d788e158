"""Deployment files are checked without a Docker engine: by linters, by schema, and against our code."""

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from cli.main import build_parser
from settings import Settings

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {"POSTGRES_PASSWORD", "POSTGRES_USER", "POSTGRES_DB", "PGPASSWORD"}


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    assert isinstance(loaded, dict)
    return loaded


def tool(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    assert found, f"{name} is not installed"
    return found


def schema_check(path: Path) -> subprocess.CompletedProcess[str]:
    command = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True)


def test_dockerfile_passes_hadolint() -> None:
    done = subprocess.run([tool("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_file_fits_the_compose_schema() -> None:
    done = schema_check(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_check_catches_a_misspelt_key(tmp_path: Path) -> None:
    wrong = tmp_path / "docker-compose.yml"
    wrong.write_text((ROOT / "docker-compose.yml").read_text().replace("healthcheck:", "healthchek:"))
    assert schema_check(wrong).returncode != 0


def known_variables() -> set[str]:
    names: set[str] = set()
    for field, info in Settings.model_fields.items():
        alias = info.validation_alias
        names |= set(alias.choices) if alias is not None and hasattr(alias, "choices") else set()  # type: ignore[arg-type]
        names.add(f"MERGERY_{field.upper()}")
    return names


def test_every_variable_of_compose_is_a_setting() -> None:
    services = compose()["services"]
    used = {name for service in services.values() for name in service.get("environment", {})}
    assert "DATABASE_URL" in used
    assert used - NOT_OURS <= known_variables()


def test_what_runs_our_code_reads_settings_of_the_users_own() -> None:
    services = compose()["services"]
    ours = {name for name, service in services.items() if service["image"].startswith("mergery:")}
    assert ours == {"api", "dispatcher", "migrate", "worker-cpu", "worker-gpu"}
    assert all(services[name]["env_file"] == [{"path": "mergery.env", "required": False}] for name in ours)


def test_a_database_that_is_only_being_set_up_is_not_healthy_yet() -> None:
    """The image's first server, which makes user and database, listens on its socket and then ends."""
    assert "-h 127.0.0.1" in compose()["services"]["postgres"]["healthcheck"]["test"][1]


@pytest.mark.parametrize("service", ["api", "dispatcher", "migrate", "worker-cpu", "worker-gpu"])
def test_every_command_of_compose_is_one_of_the_program(service: str) -> None:
    program, *arguments = compose()["services"][service]["command"]
    assert program == "mergery"
    assert build_parser().parse_args(arguments).command == arguments[0]


def test_commands_of_the_dockerfile_exist() -> None:
    commands = re.findall(r'CMD \["mergery", (.+?)\]', (ROOT / "Dockerfile").read_text())
    assert len(commands) == 5
    for command in commands:
        arguments = [part.strip().strip('"') for part in command.split(",")]
        assert build_parser().parse_args(arguments).command == arguments[0]


def test_the_images_hold_every_package_of_the_distribution() -> None:
    """setuptools packs what it finds: a package that was not copied is left out without a word."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {each.removesuffix("*") for each in project["packages"]["find"]["include"]}
    text = (ROOT / "Dockerfile").read_text()
    assert packages == set(re.findall(r"^COPY (\w+) \1$", text, flags=re.M)) - {"requirements"}
    assert all(f" {module}.py " in text for module in project["py-modules"])


def test_published_port_is_the_port_of_the_settings() -> None:
    port = Settings.model_fields["port"].default
    assert compose()["services"]["api"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"EXPOSE {port}" in (ROOT / "Dockerfile").read_text()


def test_api_image_installs_no_torch() -> None:
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.M)
    api_needs = [s for s in stages if s.startswith(("build AS", "base AS"))]
    build = next(s for s in api_needs if s.startswith("base AS build"))
    assert "requirements/worker.txt" not in build
    light = (ROOT / "requirements/api.txt").read_text()
    assert "torch" not in re.sub(r"#.*", "", light)
    assert "transformers" not in light
