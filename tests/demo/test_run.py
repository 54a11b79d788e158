"""The whole demo, for real: service, Hub, job, scores."""

import os
from pathlib import Path

import pytest

from demo.errors import DemoFailed
from demo.families import FAMILIES, Family, tiny
from demo.run import HUB_TOKEN, main, order_of, verdict
from demo.service import Api, free_port, running, tail
from demo.show import Standing
from scoring.tasks import parse_task


@pytest.fixture
def family(tmp_path: Path) -> Family:
    return tiny(tmp_path, print)


def test_the_order_names_every_model_and_set(family: Family) -> None:
    order = order_of(family, "cred_1", lambda file: f"ds_{file.stem}")
    assert order["recipe"]["base"] == "demo/tiny-base" and order["hub_credential"] == "cred_1"
    assert [source["model"] for source in order["recipe"]["sources"]] == [
        "demo/tiny-python",
        "demo/tiny-dictionary",
    ]
    assert {each["name"]: each["data"]["dataset"] for each in order["evaluate"]["sets"]}[
        "kinds"
    ] == "ds_kinds"
    assert HUB_TOKEN not in str(order)


def test_every_set_can_be_read(family: Family) -> None:
    for each in family.sets:
        assert parse_task(each.name, each.kind, each.file.read_bytes(), file=each.file.name)


def test_publishing_copies_what_changed_and_nothing_else(family: Family, tmp_path: Path) -> None:
    family.publish(tmp_path)
    weights = tmp_path / "demo/tiny-base/model.safetensors"
    before = weights.stat().st_ino
    weights.with_name("config.json").write_text("{}")
    family.publish(tmp_path)
    assert weights.stat().st_ino == before
    assert (
        weights.with_name("config.json").read_bytes() == (family.folders["base"] / "config.json").read_bytes()
    )


def test_the_verdict_says_so_when_the_merge_loses() -> None:
    scores = Standing(("t",), {}, {"result": 2.0, "base": 1.5}, higher_is_better=False)
    assert "NOT" in verdict(scores) and "base" in verdict(scores)
    assert "NOT" not in verdict(Standing(("t",), {}, {"result": 2.0, "base": 1.5}, higher_is_better=True))


def test_a_port_that_is_taken_is_replaced() -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        taken = listener.getsockname()[1]
        assert free_port(taken) not in (0, taken)


def test_a_service_that_cannot_start_is_reported_with_the_end_of_its_log(tmp_path: Path) -> None:
    environment = {
        "DATABASE_URL": "postgresql+psycopg://nobody@127.0.0.1:1/none",
        "BROKER_URL": "redis://127.0.0.1:1",
    }
    with pytest.raises(DemoFailed, match="exit code"), running(tmp_path, free_port(0), environment):
        pass
    assert str(tmp_path / "service.log") in tail(tmp_path / "service.log")


def test_servers_of_the_caller_s_own_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, str] = {}

    def begun(command: list[str], env: dict[str, str], **how: object) -> None:
        given.update(env)
        raise FileNotFoundError(command[0])

    for name in ("DATABASE_URL", "MERGERY_DATABASE_URL", "BROKER_URL", "MERGERY_BROKER_URL"):
        monkeypatch.setenv(name, "postgresql://somebody@elsewhere/theirs")
    monkeypatch.setattr("demo.service.subprocess.Popen", begun)
    with pytest.raises(FileNotFoundError), running(tmp_path, free_port(0), {"HF_ENDPOINT": "here"}):
        pass
    assert given["HF_ENDPOINT"] == "here" and "elsewhere" not in str(given)


def test_the_demo_runs_from_nothing_to_a_pushed_and_scored_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports = ["--port", str(free_port(0)), "--hub-port", str(free_port(0))]
    assert main(["--data", str(tmp_path / "data"), *ports]) == 0
    said = capsys.readouterr().out
    assert "beats every model it was made of" in said and "Dashboard: http://127.0.0.1:" in said
    assert [said.index(phase) for phase in ("downloading", "merging", "evaluating", "uploading")]
    merged = tmp_path / "data/hub/demo/tiny-merged"
    assert (merged / "model.safetensors").exists() and "base_model" in (merged / "README.md").read_text()


def test_a_service_that_is_gone_is_a_sentence_and_not_a_traceback() -> None:
    with pytest.raises(DemoFailed, match="GET /v1/jobs got no answer"):
        Api(f"http://127.0.0.1:{free_port(0)}").get("/v1/jobs")


def test_every_family_is_known_by_its_name() -> None:
    assert set(FAMILIES) == {"tiny", "smollm2"} and os.sep not in "".join(FAMILIES)
