"""From C text to a function in this process: built once and kept in the user's cache, or ``None`` and why."""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FOLDER_VARIABLE = "MERGERY_KERNELS"
"""Names the folder for what is built; ``off`` keeps nothing and builds no loops: torch does all work."""
_FLAGS = (
    "-O3",
    "-march=native",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-shared",
    "-fPIC",
)
_TIMEOUT = 60.0


@dataclass(frozen=True, eq=False)
class Built:
    """A loaded library; ``run`` is its only function."""

    run: Any


class Compiler:
    """Builds each text once a process; ``reason`` tells why the last one could not be built."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._built: dict[str, Built | None] = {}
        self.reason = ""

    def build(self, text: str) -> Built | None:
        """The function of this C text, or ``None`` where there is no compiler or it failed."""
        with self._lock:
            if text not in self._built:
                try:
                    self._built[text] = _load(_file_of(text))
                except (OSError, subprocess.SubprocessError, NotBuilt) as error:
                    self.reason = str(error)
                    self._built[text] = None
            return self._built[text]


class NotBuilt(Exception):
    """Why there is no library."""


def _file_of(text: str) -> Path:
    compiler = _compiler()
    folder = kernel_folder()
    if compiler is None or folder is None:
        raise NotBuilt("no C compiler was found" if folder is not None else f"{FOLDER_VARIABLE} is off")
    facts = "\x1f".join((text, *_FLAGS, *_identity(compiler)))
    target = folder / f"{hashlib.sha256(facts.encode()).hexdigest()[:40]}.so"
    if not target.exists():
        _compile(compiler, text, target)
    return target


def _compile(compiler: str, text: str, target: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as name:
        code, library = Path(name) / "loop.c", Path(name) / "loop.so"
        code.write_text(text, encoding="ascii")
        command = [compiler, *_FLAGS, "-w", "-o", str(library), str(code)]
        done = subprocess.run(  # noqa: S603
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=False
        )
        if done.returncode:
            raise NotBuilt(f"{compiler} refused: {done.stderr.decode(errors='replace')[-300:]}")
        library.replace(target)


def _load(path: Path) -> Built:
    library = ctypes.CDLL(str(path))
    run = library.run
    pointer, i64 = ctypes.c_void_p, ctypes.c_int64
    run.argtypes = (*(pointer,) * 5, ctypes.c_uint32, i64, i64, pointer, pointer)
    run.restype = ctypes.c_int
    return Built(run)


@lru_cache(maxsize=1)
def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


@lru_cache(maxsize=4)
def _identity(compiler: str) -> tuple[str, ...]:
    """What the machine code depends on besides the text: compiler and processor."""
    told = subprocess.run(  # noqa: S603
        [compiler, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TIMEOUT, check=True
    )
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return told.stdout.decode(errors="replace"), platform.machine(), flags


def kernel_folder() -> Path | None:
    """Where what is built is kept: the user's own folder, closed to others; ``None`` where none is wanted.
    Raises ``NotBuilt`` where others could put their code there.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    if named == "off":
        return None
    if named:
        folder = Path(named)
    else:
        home = os.environ.get("XDG_CACHE_HOME") or (Path.home() / ".cache")
        folder = Path(home) / "mergery" / "kernels"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise NotBuilt(f"{folder} can be written to by others")
    return folder
