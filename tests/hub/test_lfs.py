"""The other transfer path, in a process apart: ``HF_HUB_DISABLE_XET`` is read at import."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import hashlib, sys
from pathlib import Path
from hub.download import download
from hub.folder_faults import Fault
from hub.folder_server import FolderHub
from hub.snapshot import Hub
from hub.upload import Push

work = Path(sys.argv[1])
served = FolderHub(work / "root", {"hf_alice": {"name": "team", "role": "write"}})
with served.serve():
    hub = Hub(served.url, "hf_alice", sleep=lambda _: None)
    push = Push(hub, "team/result", job_id="job_1")
    contents = {}
    for number in range(2):
        shard = work / f"model-{number}.safetensors"
        contents[shard.name] = hashlib.shake_128(bytes([number])).digest(3 << 20)
        shard.write_bytes(contents[shard.name])
        served.faults.add("put", Fault(status=503))
        served.faults.add("put", Fault(status=403))
        push.add_file(shard.name, shard)
        shard.unlink()
        assert not hub.pin("team/result").files
    served.faults.add("commit", Fault(status=500, after=True))
    push.commit("Merge", {"config.json": b"{}"})
    assert served.stats.requests["commit"] == 1
    assert served.stats.requests["xet-token"] == 0 and served.stats.bytes["upload"] == 2 * (3 << 20)
    again = Push(hub, "team/other", job_id="job_2")
    (work / "same.safetensors").write_bytes(contents["model-0.safetensors"])
    again.add_file("same.safetensors", work / "same.safetensors")
    before = served.stats.bytes["upload"]
    third = Push(hub, "team/other", job_id="job_2")
    third.add_file("same.safetensors", work / "same.safetensors")
    assert served.stats.bytes["upload"] == before
    third.commit("Merge", {})
    snapshot = hub.pin("team/result")
    counted = []
    served.faults.add("get", Fault(drop_after=2 << 20), path="model-0.safetensors")
    count, go_on = counted.append, lambda: False
    download(hub, snapshot, work / "target", list(contents), on_bytes=count, should_stop=go_on)
    assert sum(counted) == 2 * (3 << 20)
    assert {name: (work / "target" / name).read_bytes() for name in contents} == contents
served.close()
print("all arrived")
"""


def test_without_xet_everything_goes_by_lfs(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    environment = {**os.environ, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.endswith("all arrived\n"), done.stderr
    assert "hf_alice" not in done.stdout + done.stderr
