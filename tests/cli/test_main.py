"""The `mergery` command as a whole: what is wrong is one line, and a reader may have enough."""

import os
import subprocess
import sys

import pytest

from cli.main import main


def test_a_variable_that_is_wrong_is_one_line_with_its_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MERGERY_PORT", "eight thousand")
    monkeypatch.setenv("MERGERY_MAX_ATTEMPTS", "0")
    assert main(["methods"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("mergery: the environment is wrong: MERGERY_PORT: ") and error.count("\n") == 1
    assert "MERGERY_MAX_ATTEMPTS: " in error


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
