"""Token buckets in Valkey, one an API key; open while the broker is away."""

import threading
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
STOCKS = 100
STOCKS_MOST = 10_000
SOCKET_SECONDS = 0.25

# KEYS[1] bucket; ARGV quota, window in seconds, tokens wanted. The clock is the server's, so processes agree.
# Gives back {tokens given, whole tokens left, milliseconds until there is one, milliseconds until full}.
TAKE = """
local quota, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens, at = tonumber(held[1]) or quota, tonumber(held[2]) or now
local rate = quota / window
tokens = math.min(quota, tokens + math.max(0, now - at) * rate)
local given = math.min(tonumber(ARGV[3]), math.floor(tokens))
tokens = tokens - given
redis.call('HSET', KEYS[1], 'tokens', string.format('%.9f', tokens), 'at', string.format('%.6f', now))
redis.call('EXPIRE', KEYS[1], math.ceil(window * 2))
return {given, math.floor(tokens), math.ceil(math.max(0, 1 - tokens) / rate * 1000),
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


@dataclass
class Stock:
    """Tokens of one bucket that this process holds, and what the bucket held when it took them."""

    held: int
    remaining: int
    full_at: float


class Limiter:
    """Takes one token a request. With no broker, or while it does not answer, everything is admitted.

    A process takes one in a hundred of a quota at a time and spends it without asking, so that a busy key
    costs one round trip in sixty requests; that many more than its quota may a key use in each process.
    """

    def __init__(
        self, broker_url: str | None, per_minute: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.quota = per_minute
        self.wanted = max(1, per_minute // STOCKS)
        self.clock = clock
        self.away_until = 0.0
        self.broker: redis.Redis | None = None
        self.stocks: dict[str, Stock] = {}
        self.lock = threading.Lock()
        if broker_url:
            self.broker = redis.Redis.from_url(
                broker_url, socket_timeout=SOCKET_SECONDS, socket_connect_timeout=SOCKET_SECONDS
            )
            self.script = self.broker.register_script(TAKE)

    @property
    def counts(self) -> bool:
        """Whether anybody is counted now."""
        return self.broker is not None and self.quota > 0 and self.clock() >= self.away_until

    def take(self, name: str) -> Taken | None:
        """One token of the bucket ``name``; ``None`` when nobody counts."""
        if not self.counts:
            return None
        held = self.take_held(name)
        if held is not None:
            return held
        try:
            answer: Any = self.script(
                keys=[f"mergery:rate:{name}"], args=[self.quota, WINDOW_SECONDS, self.wanted]
            )
        except redis.RedisError as error:
            self.away_until = self.clock() + AWAY_SECONDS
            log.warning("rate_limit_open", error=str(error))
            return None
        given, remaining, retry_ms, reset_ms = (int(each) for each in answer)
        reset = ceil(reset_ms / 1000)
        if given < 1:
            return Taken(False, self.quota, 0, max(1, ceil(retry_ms / 1000)), reset)
        self._keep(name, given - 1, remaining, reset)
        return Taken(True, self.quota, remaining + given - 1, 0, reset)

    def take_held(self, name: str) -> Taken | None:
        """One of the tokens that this process holds, without asking anybody."""
        stock = self.stocks.get(name)
        if stock is None:
            return None
        with self.lock:
            if stock.held < 1:
                return None
            stock.held -= 1
        reset = max(0, ceil(stock.full_at - self.clock()))
        return Taken(True, self.quota, stock.remaining + stock.held, 0, reset)

    def _keep(self, name: str, tokens: int, remaining: int, reset: int) -> None:
        with self.lock:
            if len(self.stocks) >= STOCKS_MOST:
                self.stocks.clear()
            before = self.stocks.get(name)
            tokens += before.held if before else 0
            self.stocks[name] = Stock(tokens, remaining, self.clock() + reset)

    def ping(self) -> None:
        """Raises ``redis.RedisError`` when the broker does not answer in time."""
        if self.broker is not None:
            self.broker.ping()

    def close(self) -> None:
        """Gives the connections back."""
        if self.broker is not None:
            self.broker.close()
