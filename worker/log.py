"""JSON logs with constant event names and ids as fields; whatever looks like a secret is blanked out."""

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

SECRET_NAMES = re.compile(r"token|secret|password|authorization|cookie|api_key|credential$", re.IGNORECASE)
SECRET_TEXTS = re.compile(
    r"\b(?:hf_(?:(?:oauth|jwt)_[\w.-]+|[A-Za-z0-9]{8,})|mk_live_\w+|wh(?:sec|sk)_[A-Za-z0-9+/=_-]+)"
    r"|(?<=://)[^\s/]+(?=@)|(?<=[Bb]earer )\S+|(?:(?<=[Ss]ignature=)|(?<=Security-Token=))[^\s&\"']+"
)
BLANK = "[redacted]"


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor: blanks fields named like secrets and what has a secret's form in any text."""
    for name, value in event.items():
        event[name] = BLANK if SECRET_NAMES.search(name) and value is not None else redacted(value)
    return event


def redacted(value: Any, secret: str | None = None) -> Any:
    """``value`` with every text inside it cleared of secrets, and of ``secret``, whatever its form."""
    if isinstance(value, str):
        return SECRET_TEXTS.sub(BLANK, value.replace(secret, BLANK) if secret else value)
    if isinstance(value, dict):
        return {
            key: BLANK if isinstance(key, str) and SECRET_NAMES.search(key) else redacted(each, secret)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted(each, secret) for each in value]
    return value


def configure_logging(level: str) -> None:
    """Sends every log line of this process, also of libraries, as one JSON object to standard error."""
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    for noisy in ("httpx2", "httpcore2", "urllib3", "kombu", "amqp"):
        logging.getLogger(noisy).setLevel(max(root.level, logging.WARNING))
    adopt_libraries()


def adopt_libraries() -> None:
    """Makes libraries that print for themselves log like everybody; called again once they are loaded."""
    for name in ("transformers", "huggingface_hub", "filelock"):
        library = logging.getLogger(name)
        library.handlers.clear()
        library.propagate = True
