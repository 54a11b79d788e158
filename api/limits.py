"""Token buckets in Valkey, one an API key; open while the broker is away."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Any

import redis
import structlog

log = structlog.get_logger("api.limits")

WINDOW_SECONDS = 60
AWAY_SECONDS = 2.0
SOCKET_SECONDS = 0.25

# KEYS[1] bucket; ARGV quota, window in seconds. The clock is the server's, so API processes agree.
# Gives back {1 when admitted, whole tokens left, milliseconds until there is one, milliseconds until full}.
TAKE = """
local quota, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(held[1]) or quota, tonumber(held[2]) or now
local rate = quota / window
tokens = math.min(quota, tokens + math.max(0, now - at) * rate)
local admitted = 0
if tokens >= 1 then
  tokens = tokens - 1
  admitted = 1
end
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(window * 2))
return {admitted, math.floor(tokens), math.ceil(math.max(0, 1 - tokens) / rate * 1000),
        math.ceil((quota - tokens) / rate * 1000)}
"""


@dataclass(frozen=True)
class Taken:
    """What the bucket said."""

    admitted: bool
    quota: int
    remaining: int
    retry_seconds: int
    reset_seconds: int

    def headers(self) -> dict[str, str]:
        """RateLimit and RateLimit-Policy; Retry-After too when refused."""
        found = {
            "RateLimit": f'"default";r={self.remaining};t={self.reset_seconds}',
            "RateLimit-Policy": f'"default";q={self.quota};w={WINDOW_SECONDS}',
        }
        return found if self.admitted else found | {"Retry-After": str(self.retry_seconds)}


class Limiter:
    """Takes one token a request. With no broker, or while it does not answer, everything is admitted."""

    def __init__(
        self, broker_url: str | None, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quota = per_minute
        self.clock = clock
        self.away_until = 0.0
        self.broker: redis.Redis | None = None
        if broker_url:
            self.broker = redis.Redis.from_url(
                broker_url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS
            )
            self.script = self.broker.register_script(TAKE)

    def take(self, name: str) -> Taken | None:
        """One token of the bucket ``name``; ``None`` when nobody counts."""
        if self.broker is None or self.quota <= 0 or self.clock() < self.away_until:
            return None
        try:
            answer: Any = self.script(keys=[f"mergery:rate:{name}"], args=[self.quota, WINDOW_SECONDS])
        except redis.RedisError as error:
            self.away_until = self.clock() + AWAY_SECONDS
            log.warning("rate_limit_open", error=str(error))
            return None
        admitted, remaining, retry_ms, reset_ms = (int(each) for each in answer)
        return Taken(
            bool(admitted), self.quota, remaining, max(1, ceil(retry_ms / 1000)), ceil(reset_ms / 1000)
        )

    def ping(self) -> None:
        """Raises ``redis.RedisError`` when the broker does not answer in time."""
        if self.broker is not None:
            self.broker.ping()

    def close(self) -> None:
        """Gives the connections back."""
        if self.broker is not None:
            self.broker.close()
