"""A search over two real workers, each its own process, through the broker."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from tests.acceptance.conftest import Service
from tests.acceptance.stack import Process, wait_for

LEVELS = 900


def order(service: Service) -> dict[str, Any]:
    data = {"hub": "team/texts", "file": "texts.jsonl"}
    return {
        "kind": "search",
        "recipe": {
            "base": "team/base",
            "sources": [{"id": "a", "model": "team/expert1"}, {"id": "b", "model": "team/expert2"}],
            "steps": ["task_arithmetic"],
        },
        "search": {
            "method": "grid",
            "settings": {"levels": LEVELS},
            "space": {"scale": {"at": "steps.task_arithmetic.scale", "low": 0, "high": 1}},
            "objectives": [{"set": "texts"}],
            "budget": {"evaluations": LEVELS},
        },
        "evaluate": {"sets": [{"name": "texts", "kind": "perplexity", "data": data}]},
        "workers": 2,
        "hub_credential": service.credential,
    }


def write_texts(service: Service) -> None:
    """The texts on the Hub that candidates are scored on."""
    texts = service.hub.store.root / "datasets" / "team" / "texts" / "texts.jsonl"
    texts.parent.mkdir(parents=True, exist_ok=True)
    texts.write_text("".join(json.dumps({"text": f"one and {at} and two"}) + "\n" for at in range(6)))


def trials(service: Service, job_id: str) -> list[dict[str, Any]]:
    answer = service.stack.call("GET", f"/v1/jobs/{job_id}/trials?limit=1000").json()
    return list(answer["data"])


def workers(service: Service, job_id: str) -> list[dict[str, Any]]:
    return list(service.stack.call("GET", f"/v1/jobs/{job_id}/trials").json()["workers"])


def scored_by(service: Service, job_id: str, count: int) -> list[int]:
    """How many each worker has scored, once ``count`` workers have scored two at least."""
    found = [each["trials"] for each in workers(service, job_id)]
    return found if len([each for each in found if each > 1]) == count else []


def test_two_workers_share_a_search_and_what_a_killed_one_held_is_taken_back(service: Service) -> None:
    stack = service.stack
    write_texts(service)
    second = Process(stack.worker.command, stack.environment, stack.folder / "worker-2.log")
    stack.parts.append(second)
    second.start()
    job_id = stack.submit(order(service))["id"]
    both = wait_for(lambda: scored_by(service, job_id, 2), "two workers score candidates")
    second.kill()
    so_far = sum(both)

    def taken_back() -> bool:
        first = trials(service, job_id)[: so_far + 2]
        return len(first) == so_far + 2 and all(each["state"] == "scored" for each in first)

    wait_for(taken_back, "the candidates that the killed worker held are scored by the other")
    found = [each for each in trials(service, job_id) if each["state"] == "scored"]
    assert len({each["point"]["scale"] for each in found}) == len(found)
    assert [each["id"] for each in stack.call("GET", "/v1/jobs").json()["data"]] == [job_id]
    assert stack.call("GET", "/v1/usage").json()["queued"] == 0
    stack.call("POST", f"/v1/jobs/{job_id}/cancel")
    stack.wait(job_id, "cancelled")

    def over() -> bool:
        return {each["state"] for each in workers(service, job_id)} == {"cancelled"}

    wait_for(over, "who helped ends with the search")


def test_a_killed_process_leaves_no_candidate_on_the_disk_and_its_search_goes_on(service: Service) -> None:
    stack = service.stack
    write_texts(service)
    wanted = order(service)
    wanted["recipe"] |= {"result": {"form": "bundle", "kind": "tall"}}
    job_id = stack.submit({**wanted, "workers": 1})["id"]
    assert stack.call("GET", f"/v1/jobs/{job_id}").json()["plan"]["search"]["candidates"]["made"] == "disk"

    def scored() -> int:
        return sum(each["state"] == "scored" for each in trials(service, job_id))

    def written() -> list[Path]:
        return list((stack.folder / "data").rglob("candidate"))

    def held_with_a_candidate() -> bool:
        for pid in stack.worker.children():
            os.kill(pid, signal.SIGSTOP)
        if written() and scored() > 1:
            return True
        for pid in stack.worker.children():
            os.kill(pid, signal.SIGCONT)
        return False

    wait_for(held_with_a_candidate, "a candidate is on the disk")
    before = scored()
    for pid in stack.worker.children():
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: "candidate_removed" in stack.worker.log.read_text(), "what it left is removed")
    wait_for(lambda: scored() > before, "the search goes on")
    stack.call("POST", f"/v1/jobs/{job_id}/cancel")
    stack.wait(job_id, "cancelled")
    wait_for(lambda: not written(), "nothing is left")
