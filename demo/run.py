"""A real merge of real models through the real service, from nothing to a scored model on a Hub.

usage: python -m demo.run [--models tiny|smollm2] [--keep] [--data FOLDER] [--port N] [--hub-port N]

The Hub is a folder of models served on this machine; the service is `mergery up` with its embedded servers.
All of it lives in --data (default .mergery/demo), so a second run finds it ready.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from demo.errors import DemoFailed
from demo.families import FAMILIES, OWNER, Family
from demo.service import Api, free_port, running
from demo.show import Standing, follow, score_table, standing
from hub.folder_server import FolderHub

ROOT = Path(__file__).resolve().parents[1]
HUB_TOKEN = "hf_demo"  # not a secret: it opens the demo's own folder, on this machine only
PIPE_WIDTH = 160
SAY_SECONDS = 10.0  # between two lines about training where there is no terminal
TOKENS = {HUB_TOKEN: {"name": OWNER, "role": "write", "orgs": [OWNER]}}


def main(arguments: list[str] | None = None) -> int:
    """Runs the demo; 0 if the job succeeded and the result beats its parents, 1 if not, 2 if it could not
    run.
    """
    options = _parser().parse_args(arguments)
    console = Console(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
    began = time.monotonic()
    try:
        family = _prepare(options.models, options.cache, console)
        return _show(family, options, console, began)
    except DemoFailed as error:
        console.print(f"[bold red]The demo stopped:[/] {error}")
        return 2
    except KeyboardInterrupt:
        console.print("stopped")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", choices=sorted(FAMILIES), default="tiny")
    parser.add_argument("--keep", action="store_true", help="leave the service running until Ctrl-C")
    parser.add_argument(
        "--data", type=Path, default=ROOT / ".mergery/demo", help="where the service keeps its data"
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".mergery/cache", help="where trained models are kept"
    )
    parser.add_argument("--port", type=int, default=8000, help="of the service; another one if it is taken")
    parser.add_argument(
        "--hub-port", type=int, default=8765, help="of the folder Hub; another one if it is taken"
    )
    return parser


def _prepare(name: str, cache: Path, console: Console) -> Family:
    """The family's models, trained first where that is needed; says what takes time."""
    said = -SAY_SECONDS

    with console.status(f"preparing the {name} models") as status:

        def say(text: str) -> None:
            nonlocal said
            status.update(text)
            if not console.is_terminal and time.monotonic() - said >= SAY_SECONDS:
                said = time.monotonic()
                console.print(f"   {text}")

        return FAMILIES[name](cache, say)


def _show(family: Family, options: argparse.Namespace, console: Console, began: float) -> int:
    models = options.data / "hub"
    family.publish(models)
    hub = FolderHub(models, TOKENS)
    try:
        with hub.serve(port=free_port(options.hub_port)) as served:
            console.print(f"[bold]1.[/] A Hub with {family.about} is at {served.url}")
            console.print("[bold]2.[/] Starting the service: PostgreSQL, Valkey, API, dispatcher, worker ...")
            environment = {
                "HF_ENDPOINT": served.url,
                "MERGERY_HUB_ENDPOINT": served.url,
                "OMP_NUM_THREADS": _threads(),
                "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin while they wait slow a busy machine down
            }
            with running(options.data, free_port(options.port), environment) as api:
                code = _order(family, api, models, console, began)
                if options.keep:
                    _keep(api, options.data, console)
                return code
    finally:
        hub.close()


def _threads() -> str:
    return os.environ.get("OMP_NUM_THREADS") or str(os.cpu_count() or 1)


def _order(family: Family, api: Api, hub: Path, console: Console, began: float) -> int:
    """Uploads the sets, orders the merge, shows it, and prints how it came out."""
    credential = _credential(api)
    order = order_of(family, credential, lambda each: api.upload(each.name, each.read_bytes()))
    methods = " -> ".join(
        f"{step['method']}({', '.join(f'{k}={v}' for k, v in step.items() if k != 'method')})"
        for step in family.steps
    )
    ordered = time.monotonic()
    job = api.post("/v1/jobs", order)
    console.print(f"[bold]3.[/] POST /v1/jobs: {methods} of {', '.join(map(family.repo, family.folders))}")
    console.print(f"   accepted as {job['id']}, with every model pinned to a commit")
    job = follow(job["id"], api.get, console)
    if job["state"] != "succeeded":
        raise DemoFailed(f"job {job['id']} {job['state']}: {(job.get('error') or {}).get('detail')}")
    took = time.monotonic() - ordered
    scores = standing(api.get(f"/v1/jobs/{job['id']}/evaluations")["data"], family)
    repo = family.repo("merged")
    console.print(
        f"[bold]4.[/] Pushed to {repo}, commit {job['result']['commit'][:12]} "
        f"(files: {os.path.relpath(hub / repo)})"
    )
    console.print(score_table(scores, family))
    console.print(verdict(scores))
    console.print(f"Job: {took:.1f} s. All of it: {time.monotonic() - began:.1f} s.")
    console.print(f"Dashboard: {api.url}/ (while the service runs; `--keep` leaves it running)")
    return 0 if scores.result_wins() else 1


def _credential(api: Api) -> str:
    """Id of the Hub token that the service keeps for the demo; stored on the first run."""
    kept = [str(each["id"]) for each in api.get("/v1/hub-credentials")["data"] if each["name"] == OWNER]
    return (
        kept[0] if kept else str(api.post("/v1/hub-credentials", {"name": OWNER, "token": HUB_TOKEN})["id"])
    )


def order_of(family: Family, credential: str, upload: Callable[[Path], str]) -> dict[str, Any]:
    """The body of the demo's ``POST /v1/jobs``."""
    return {
        "recipe": family.recipe(),
        "output": {"repo": family.repo("merged"), "private": False},
        "hub_credential": credential,
        "evaluate": {
            "parents": True,
            "sets": [
                {"name": each.name, "kind": each.kind, "data": {"dataset": upload(each.file)}}
                for each in family.sets
            ],
        },
        "metadata": {"made_by": "demo"},
    }


def verdict(scores: Standing) -> str:
    """One sentence: does the merge beat every model it was made of?"""
    parent, mean = scores.best_parent(), scores.means["result"]
    better = "higher" if scores.higher_is_better else "lower"
    best = f"the best of its parents, {parent}, has {scores.means[parent]:.4f} ({better} is better)"
    if scores.result_wins():
        return f"The merge beats every model it was made of: its mean is {mean:.4f}; {best}."
    return f"The merge does NOT beat every model it was made of: its mean is {mean:.4f}; {best}."


def _keep(api: Api, data: Path, console: Console) -> None:
    console.print(f"Running until Ctrl-C. The API key is in {data / 'demo.key'}; the API is at {api.url}/v1")
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        console.print("stopping")


if __name__ == "__main__":
    # A demo that is told to end stops the service first, as it does on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
