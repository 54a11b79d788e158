"""The `mergery` command as a whole: what is wrong is one line, and a reader may have enough."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli.main import build_parser, main
from settings import Settings


def test_a_variable_that_is_wrong_is_one_line_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGERY_PORT", "eight thousand")
    monkeypatch.setenv("MERGERY_MAX_ATTEMPTS", "0")
    monkeypatch.setenv("MERGERY_LOG_LEVEL", "loud")
    assert main(["methods"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergery: the environment is wrong: MERGERY_PORT: ") and error.count("\n") == 1
    assert "MERGERY_MAX_ATTEMPTS: " in error and "MERGERY_LOG_LEVEL: " in error


def test_an_empty_variable_is_as_good_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("MERGERY_SECRET_KEY", "MERGERY_SCRATCH_DIR", "MERGERY_HUB_ENDPOINT", "HF_ENDPOINT"):
        monkeypatch.setenv(name, "")
    settings = Settings(data_dir=tmp_path)
    assert settings.secret() == (tmp_path / "secret.key").read_text()
    assert settings.scratch == tmp_path / "scratch" and settings.hub_endpoint.startswith("https://")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("DATABASE_URL", "mysql://x@127.0.0.1/x"),
        ("DATABASE_URL", "nonsense"),
        ("DATABASE_URL", "postgresql://mergery:pass/word@127.0.0.1:5432/x"),
        ("BROKER_URL", "127.0.0.1:6379"),
    ],
)
def test_an_address_that_leads_nowhere_is_told_with_its_variable_and_without_what_it_says(
    name: str, url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, url)
    assert main(["migrate"]) == 2
    error = capsys.readouterr().err
    assert (
        name in error
        and "not a URL like" in error
        and url not in error
        and "word" not in error.replace("password", "")
    )


def test_a_database_that_does_not_answer_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://x@127.0.0.1:1/x")
    assert main(["migrate"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergery: the database says: ") and "port 1 failed" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("program", ["cli.main", "merge"])
def test_a_reader_that_has_enough_is_no_failure_to_tell_of(program: str) -> None:
    nobody, pipe = os.pipe()
    os.close(nobody)
    done = subprocess.run([sys.executable, "-m", program, "methods"], stdout=pipe, stderr=subprocess.PIPE)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_ends_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hub.folder_server.serve", interrupted)
    assert main(["hub", "serve", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "stopped\n"


@pytest.mark.parametrize("tokens", ["nowhere.yaml", "list.yaml"])
def test_a_hub_that_cannot_be_served_is_one_line(
    tokens: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]\n")
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--tokens", str(tmp_path / tokens)]):
        assert main(["hub", "serve", *arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("mergery: ") and error.count("\n") == 1


@pytest.mark.parametrize(
    "command",
    [
        ["up", "--port", "99999"],
        ["up", "--port", "0"],
        ["up", "--workers", "0"],
        ["up", "--gpus", "-1"],
        ["worker", "--concurrency", "none"],
        ["hub", "serve", ".", "--port", "70000"],
    ],
)
def test_numbers_that_nothing_can_run_with_are_refused_at_once(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(command)
    assert "is no whole number from" in capsys.readouterr().err


@pytest.mark.parametrize("queues", ["gpus", "cpu,", ""])
def test_a_worker_of_a_queue_that_is_not_there_is_refused_at_once(
    queues: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_parser().parse_args(["worker", "--queues", "cpu, gpu"]).queues == ["cpu", "gpu"]
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args(["worker", "--queues", queues])
    assert "there is no queue" in capsys.readouterr().err


def test_the_api_needs_to_be_told_its_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATABASE_URL", "MERGERY_DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("cli.serve.serve_alone", lambda *_, **__: 0)
    assert main(["api"]) == 2
    assert "no database: set DATABASE_URL" in capsys.readouterr().err


def test_what_is_wrong_with_a_whole_file_is_told_without_a_place_in_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken.yml").write_text("models: [a\n")
    assert main(["translate", str(tmp_path / "broken.yml")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergery: Not valid YAML") and "None" not in error
