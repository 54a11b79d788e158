"""The API process: what is mounted, in order."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

from api import errors
from api.dashboard import pages
from api.deps import THREADS, Desk
from api.middleware import BodyLimit, Front
from api.openapi import document
from api.routes import (
    datasets,
    events,
    fronts,
    health,
    jobs,
    keys,
    methods,
    plans,
    results,
    statistics,
    usage,
    webhooks,
)
from hub.snapshot import Hub
from jobs.planning import Planner
from settings import Settings

VERSION = "1.0.0"
ROUTES = (jobs, plans, events, results, fronts, methods, webhooks, keys, datasets, statistics, usage, health)


def create_app(settings: Settings, planner: Planner | None = None) -> FastAPI:
    """The whole front desk. Nothing is connected before it starts; ``planner`` stands in for the Hub's."""
    desk = Desk(settings, planner or make_planner(settings))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        desk.metrics.watch(desk.begin)
        yield
        await desk.feed.stop()
        desk.planner.close()
        desk.close()

    app = FastAPI(
        title="Mergery",
        version=VERSION,
        description="Merge-as-a-service: POST a recipe, get one merged model, checked, scored and pushed.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if settings.docs_enabled else None,
    )
    app.state.desk = desk
    errors.install(app)
    for each in ROUTES:
        app.include_router(each.router)
    pages.mount(app)
    app.openapi = lambda: document(app)  # type: ignore[method-assign]

    def body_limit(path: str) -> int:
        return settings.max_dataset_bytes if path == datasets.PATH else settings.max_body_bytes

    app.add_middleware(BodyLimit, limit=body_limit)
    app.add_middleware(Front, https=desk.https, measure=desk.metrics.measure)
    return app


def make_planner(settings: Settings) -> Planner:
    """A planner that asks the configured Hub."""
    return Planner(
        lambda token: Hub(settings.hub_endpoint, token),
        settings.model_roots,
        settings.memory_budget_bytes,
        data_bytes=settings.max_calibration_bytes,
        gpu_from_seconds=settings.gpu_measuring_seconds,
    )
