"""Failures of the workshop floor, and how any failure of a job becomes a stable code.

WorkerError
├── DiskFull          the work folder cannot hold what the job needs
├── WorkFolderBusy    another live process works in the same folder
├── AddressRefused    a webhook points where the service must not connect
├── DeviceMissing     the GPU asked for is not there
├── OutputUnsafe      the merged model failed its check, so it is not published
└── Interrupted       the job was told to stop; carries why
"""

from enum import StrEnum
from typing import ClassVar


class WorkerError(Exception):
    """Base of everything the worker itself refuses."""

    code: ClassVar[str] = "worker_error"
    retryable: ClassVar[bool] = False


class DiskFull(WorkerError):
    code = "disk_full"


class WorkFolderBusy(WorkerError):
    code = "work_folder_busy"
    retryable = True


class AddressRefused(WorkerError):
    code = "address_refused"


class DeviceMissing(WorkerError):
    code = "device_missing"
    retryable = True


class OutputUnsafe(WorkerError):
    code = "check_failed"


class Stop(StrEnum):
    """Why a running job was told to stop."""

    CANCEL = "cancel"
    TIMEOUT = "timeout"
    SHUTDOWN = "shutdown"
    LOST = "lost"


class Interrupted(WorkerError):
    code = "interrupted"

    def __init__(self, reason: Stop) -> None:
        super().__init__(f"the job was stopped: {reason.value}")
        self.reason = reason
