"""Failures of the workshop floor.

WorkerError
├── DiskFull          the work disk cannot hold what the job needs
├── DiskBusy          it could, were it not for what other jobs have yet to write
├── OutOfMemory       memory of the machine or of the GPU ran out
├── TimedOut          the job took longer than its limit
├── OutputUnsafe      the result failed its check or its scores, so it is not published
├── CheckImpossible   the result could not be checked here, so it is not published
├── MemoryShort       a model that is to be scored does not fit into memory
├── DeviceMissing     the GPU asked for is not there
├── DiskUnusable      nothing can be written on the work disk
├── WorkFolderBusy    another live process works in the same folder
├── DatabaseAway      the service's own database went away meanwhile
├── AddressRefused    a webhook points where the service must not connect
├── SettingMissing    a setting without which the process cannot run
├── Unexpected        a mistake of ours
└── Interrupted       the job was told to stop; carries why, never seen by callers
"""

from enum import StrEnum
from typing import ClassVar


class WorkerError(Exception):
    """Base of everything the worker itself refuses."""

    code: ClassVar[str] = "worker_error"
    retryable: ClassVar[bool] = False
    counts: ClassVar[bool] = True
    """Whether the attempt that it ended is one of those that the job has."""


class DiskFull(WorkerError):
    """The work disk cannot hold what the job needs; told before the download where it can be."""

    code = "disk_full"


class DiskBusy(WorkerError):
    """What other jobs have yet to write leaves too little of the work disk; the job is tried again later."""

    code = "disk_busy"
    retryable = True
    counts = False


class OutOfMemory(WorkerError):
    """Memory of the machine or of the GPU ran out while the job ran."""

    code = "out_of_memory"


class TimedOut(WorkerError):
    """One attempt of the job took longer than its time limit."""

    code = "timeout"


class OutputUnsafe(WorkerError):
    """The result does not work, or is worse than its parents by more than the margin: not published."""

    code = "check_failed"


class CheckImpossible(WorkerError):
    """The worker's memory cannot hold the result for its check, and only checked results are to be published.

    Told before the download; ``output.publish: always`` publishes unchecked results.
    """

    code = "check_impossible"


class MemoryShort(WorkerError):
    """The worker's memory cannot hold a model that is to be scored; told before the download."""

    code = "memory_short"


class DeviceMissing(WorkerError):
    """The GPU which the worker is to use is not there."""

    code = "device_missing"


class DiskUnusable(WorkerError):
    """Nothing can be written on the worker's disk, as when the system has made it read-only."""

    code = "disk_unusable"


class WorkFolderBusy(WorkerError):
    """Another live process still works in the job's folder; the job is tried again later."""

    code = "work_folder_busy"
    retryable = True
    counts = False


class DatabaseAway(WorkerError):
    """The service's database went away while the job ran; the job is tried again when it is back."""

    code = "database_away"
    retryable = True
    counts = False


class AddressRefused(WorkerError):
    """A webhook points where the service must not connect; shown with the delivery."""

    code = "address_refused"


class SettingMissing(WorkerError):
    """A setting without which this process cannot run."""

    code = "setting_missing"


class Unexpected(WorkerError):
    """A mistake of ours stopped the job; the worker's log has the details, and the job is tried again."""

    code = "internal_error"
    retryable = True


class Stop(StrEnum):
    """Why a running job was told to stop."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"


class Interrupted(WorkerError):
    """The job was told to stop; what becomes of it depends on the reason."""

    code = "interrupted"

    def __init__(self, reason: Stop) -> None:
        super().__init__(f"the job was stopped: {reason.value}")
        self.reason = reason
