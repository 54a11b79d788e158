"""Every environment variable of the service, typed, in one class; read by cli, api, worker, migrations."""

import os
import secrets
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import AliasChoices, BeforeValidator, Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

GIB = 1 << 30
SCHEMES = {
    "database_url": ("postgresql+psycopg", "postgresql", "postgres"),
    "broker_url": ("redis", "rediss"),
}
"""How the URL of each server may begin; the first is the usual one."""


class Settings(BaseSettings):
    """One instance a process; ``MERGERY_`` is the prefix of every variable. Empty is as good as unset."""

    model_config = SettingsConfigDict(
        env_prefix="MERGERY_", env_ignore_empty=True, extra="ignore", populate_by_name=True
    )

    database_url: str | None = Field(
        None,
        validation_alias=AliasChoices("MERGERY_DATABASE_URL", "DATABASE_URL"),
        description="postgresql+psycopg://… ; unset: `mergery up` starts an embedded PostgreSQL",
    )
    broker_url: str | None = Field(
        None,
        validation_alias=AliasChoices("MERGERY_BROKER_URL", "BROKER_URL"),
        description="redis://… ; unset: `mergery up` starts an embedded Valkey",
    )
    secret_key: SecretStr | None = Field(
        None, description="Signs cursors and sessions, encrypts Hub tokens; unset: made once in data_dir"
    )
    data_dir: Path = Field(default_factory=lambda: user_data_path("mergery"))
    scratch_dir: Path | None = Field(
        None, description="Downloads and unfinished outputs; default data_dir/scratch"
    )
    model_roots: Annotated[list[Path], NoDecode] = Field(
        default_factory=list, description="Folders (colon separated) whose models and texts recipes may name"
    )
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=1, le=65535)
    api_processes: int = Field(0, ge=0, description="0: one a core, at most four")
    public_url: str | None = Field(None, description="How callers reach the API; default http://host:port")

    hub_endpoint: str = Field(
        "https://huggingface.co", validation_alias=AliasChoices("MERGERY_HUB_ENDPOINT", "HF_ENDPOINT")
    )
    memory_budget_bytes: int = Field(
        GIB, ge=64 << 20, description="What a merge may use beyond the idle worker"
    )
    threads: int = Field(0, ge=0, description="Threads of one merge; 0: all cores")
    plan_timeout_seconds: float = Field(10.0, gt=0)

    lease_seconds: float = Field(60.0, gt=0)
    heartbeat_seconds: float = Field(15.0, gt=0)
    dispatch_poll_seconds: float = Field(2.0, gt=0)
    announce_after_seconds: float = Field(
        60.0, gt=0, description="Ring again for a queued job not claimed by then"
    )
    max_attempts: int = Field(3, ge=1)
    job_timeout_seconds: float = Field(6 * 3600, gt=0)
    stop_grace_seconds: float = Field(30.0, gt=0, description="A job told to stop is killed after so long")
    keep_unfinished_seconds: float = Field(
        24 * 3600, ge=0, description="Work folders of unfinished jobs are kept so long for a retry"
    )

    keep_scores_seconds: float = Field(
        90 * 24 * 3600, ge=0, description="Known scores that no job has used for so long are forgotten"
    )
    keep_deliveries_seconds: float = Field(
        30 * 24 * 3600, ge=0, description="Delivered and given up webhook messages are listed so long"
    )
    keep_datasets_seconds: float = Field(
        180 * 24 * 3600, ge=0, description="Uploads that no job has named for so long are forgotten; 0: never"
    )
    keep_jobs_seconds: float = Field(
        0.0,
        ge=0,
        description="Jobs are deleted, with what is kept of them, so long after their end; 0: never",
    )

    webhook_allow_http: bool = False
    webhook_allow_networks: Annotated[list[str], NoDecode] = Field(
        default_factory=list, description="CIDRs webhooks may reach although not public"
    )
    webhook_retry_seconds: Annotated[list[float], NoDecode] = Field(
        default_factory=lambda: [0.0, 5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0]
    )

    max_body_bytes: int = Field(1 << 20, ge=1)
    max_dataset_bytes: int = Field(16 << 20, ge=1)
    max_calibration_bytes: int = Field(64 << 20, ge=1, description="Of one file that models are measured on")
    max_statistics_bytes: int = Field(
        20 * GIB, ge=0, description="Statistics kept in data_dir; the longest unused go first"
    )
    gpu_measuring_seconds: float = Field(
        0.0, ge=0, description="Jobs that measure longer than this on a CPU go to the gpu queue; 0: none"
    )
    max_queued_jobs: int = Field(100, ge=0, description="Per tenant")
    requests_per_minute: int = Field(6000, ge=0, description="Per API key; 0: unlimited")
    metrics_enabled: bool = True
    metrics_host: str = "127.0.0.1"
    dispatcher_metrics_port: int = Field(0, ge=0, le=65535, description="0: the dispatcher serves no metrics")
    worker_metrics_port: int = Field(0, ge=0, le=65535, description="0: the worker serves no metrics")
    docs_enabled: bool = True
    log_level: Annotated[
        Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], BeforeValidator(str.upper)
    ] = "INFO"

    @field_validator("model_roots", mode="before")
    @classmethod
    def _split_paths(cls, value: object) -> object:
        return [part for part in value.split(":") if part] if isinstance(value, str) else value

    @field_validator("webhook_allow_networks", "webhook_retry_seconds", mode="before")
    @classmethod
    def _split_commas(cls, value: object) -> object:
        return (
            [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
        )

    @field_validator("database_url", "broker_url")
    @classmethod
    def _check_url(cls, value: str | None, info: ValidationInfo) -> str | None:
        schemes = SCHEMES[str(info.field_name)]
        if value and not (
            value.startswith(tuple(f"{each}://" for each in schemes)) and _has_sound_port(value)
        ):
            raise ValueError(
                f"not a URL like {schemes[0]}://user:password@host:port/name "
                "(characters such as @ : / # in user and password are written as %40 %3A %2F %23)"
            )
        return value or None

    @cached_property
    def scratch(self) -> Path:
        """Folder of downloads and unfinished outputs."""
        return self.scratch_dir or self.data_dir / "scratch"

    @property
    def url(self) -> str:
        """Base URL put into links."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (self.public_url or f"http://{host}:{self.port}").rstrip("/")

    def secret(self) -> str:
        """The secret that is set, or one made once in ``data_dir`` for all processes of this machine."""
        if self.secret_key is not None:
            return self.secret_key.get_secret_value()
        path = self.data_dir / "secret.key"
        if not path.exists():
            self.data_dir.mkdir(parents=True, exist_ok=True)
            draft = path.with_name(f"secret.{os.getpid()}.{secrets.token_hex(4)}")
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_urlsafe(48))
            with suppress(FileExistsError):
                path.hardlink_to(draft)
            draft.unlink()
        return path.read_text().strip()


def _has_sound_port(url: str) -> bool:
    """Whether the part for the port, if there is one, is a port: a password with a slash moves the parts."""
    try:
        urlsplit(url).port  # noqa: B018
    except ValueError:
        return False
    return True
