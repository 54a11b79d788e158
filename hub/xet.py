"""One file fetched by xet: chunked and deduplicated, straight from the Hub's chunk store."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any
from urllib.parse import quote

import hf_xet
from huggingface_hub.utils._runtime import is_xet_available
from huggingface_hub.utils._xet import get_xet_session

from hub.errors import Interrupted, Unavailable
from hub.session import json_of
from hub.snapshot import Hub, RepoFile, Snapshot

POLL_SECONDS = 0.02


def offers_xet(hub: Hub, file: RepoFile) -> bool:
    """Whether the Hub offers the file by xet and this process may use it (``HF_HUB_DISABLE_XET``)."""
    return file.xet_hash is not None and not hub.xet_is_away and bool(is_xet_available())


def fetch(
    hub: Hub,
    snapshot: Snapshot,
    file: RepoFile,
    target: Path,
    on_bytes: Callable[[int], None],
    should_stop: Callable[[], bool],
) -> None:
    """Write the file to ``target``; raises ``Interrupted`` soon after ``should_stop`` says so."""
    label = f"{file.path} of {snapshot.label}"
    route = f"/api/{snapshot.repo_type}s/{snapshot.repo}/xet-read-token/{quote(snapshot.sha)}"
    url = hub.session.endpoint + route
    token = json_of(hub.session.get(url, label), label)
    try:
        session: Any = get_xet_session()  # type: ignore[no-untyped-call]
        group = session.new_file_download_group(
            endpoint=token["casUrl"],
            token=token["accessToken"],
            token_expiry_unix_secs=int(token["exp"]),
            token_refresh_url=url,
            token_refresh_headers=hub.session.headers,
        )
        group.start_download_file(hf_xet.XetFileInfo(file.xet_hash, file.size), str(target))
        _watch(group, on_bytes, should_stop, label)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        hub.xet_is_away = True
        raise Unavailable(f"{label} cannot be fetched by xet ({type(error).__name__})") from None


def _watch(group: Any, on_bytes: Callable[[int], None], should_stop: Callable[[], bool], label: str) -> None:
    """Let the transfer run in a thread of its own, so that this one can report and stop it."""
    with ThreadPoolExecutor(1, thread_name_prefix="hub-xet") as pool:
        finished = pool.submit(group.wait_to_finish)
        seen = 0
        try:
            while not finished.done():
                if should_stop():
                    raise Interrupted(f"stopped while {label} was arriving")
                done = group.progress().total_bytes_completed
                on_bytes(done - seen)
                seen = done
                wait([finished], POLL_SECONDS)
        except BaseException:
            group.abort()
            raise
        finished.result()
