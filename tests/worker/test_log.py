"""Logs: JSON, constant events, no secrets."""

import json
import subprocess
import sys

import pytest

from worker.log import redacted

CANARY = "hf_canary0123456789abcdef"


def test_every_line_is_json_and_no_secret_survives_in_any_of_its_places() -> None:
    code = f"""
import logging, structlog
from worker.log import configure_logging
configure_logging("INFO")
log = structlog.get_logger("worker.test")
inner = {{"hub_token": "{CANARY}", "list": ["{CANARY}"]}}
log.info("job_claimed", job_id="job_1", token="{CANARY}", nested=inner)
log.info("hub_said", detail="Bearer {CANARY} was refused")
logging.getLogger("celery").warning("broker redis://user:{CANARY}@host/0 and %s", "{CANARY}")
try:
    raise KeyError("{CANARY}")
except KeyError:
    log.exception("job_failed", job_id="job_1")
log.debug("not_shown")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines][:2] == ["job_claimed", "hub_said"]
    assert (
        lines[0]["job_id"] == "job_1" and lines[0]["level"] == "info" and lines[0]["logger"] == "worker.test"
    )
    assert "KeyError" in lines[3]["exception"]
    assert len(lines) == 4
    assert CANARY not in done.stderr and CANARY not in done.stdout


@pytest.mark.parametrize(
    ("text", "cleared"),
    [
        ("token hf_abcdefgh1234 refused", "token [redacted] refused"),
        ("key mk_live_abcd1234_xyz", "key [redacted]"),
        ("whsec_MfKQ9r8GKYqrTwjU/+==", "[redacted]"),
        ("postgresql://me:pw@host/db", "postgresql://[redacted]@host/db"),
        ("redis://:pw@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("redis://:p@ss:w@host:6379/0", "redis://[redacted]@host:6379/0"),
        ("https://bearer-secret@hub.example/api", "https://[redacted]@hub.example/api"),
        ("Basic hf_oauth_eyJh.eyJz-1_a.c2ln!", "Basic [redacted]!"),
        ("https://host:443/a@b", "https://host:443/a@b"),
        ("org/hf_model", "org/hf_model"),
        ("PUT https://s3/x?X-Amz-Signature=ab12&a=1", "PUT https://s3/x?X-Amz-Signature=[redacted]&a=1"),
        ("'/lfs/x?expires=1&signature=ab12'", "'/lfs/x?expires=1&signature=[redacted]'"),
    ],
)
def test_texts_in_the_form_of_a_secret_are_blanked(text: str, cleared: str) -> None:
    assert redacted(text) == cleared
