# Three images from one file:
#   docker build --target api  -t mergery:api  .     api, dispatcher, migrate; no torch
#   docker build --target cpu  -t mergery:cpu  .     CPU worker    (--build-arg TORCH_INDEX=<PyTorch's CPU wheel index> keeps it small)
#   docker build --target cuda -t mergery:cuda .     GPU worker    (the default torch wheels carry the CUDA libraries)
ARG PYTHON_VERSION=3.11

FROM python:${PYTHON_VERSION}-slim AS base
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PATH=/opt/mergery/bin:$PATH \
    MERGERY_DATA_DIR=/var/lib/mergery MERGERY_HOST=0.0.0.0
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --create-home --home-dir /var/lib/mergery mergery
WORKDIR /src

FROM base AS build
RUN python -m venv /opt/mergery
COPY constraints.txt pyproject.toml README.md LICENSE settings.py ./
COPY requirements requirements
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt -r requirements/api.txt
COPY cli cli
COPY api api
COPY worker worker
COPY jobs jobs
COPY db db
COPY hub hub
COPY scoring scoring
COPY search search
COPY merge merge
COPY migrations migrations
RUN --mount=type=cache,target=/root/.cache/pip pip install --no-deps .

FROM build AS build-cpu
ARG TORCH_INDEX=
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ -n "$TORCH_INDEX" ]; then pip install --index-url "$TORCH_INDEX" torch==2.13.0; fi; \
    pip install -c constraints.txt -r requirements/worker.txt

FROM build AS build-cuda
RUN --mount=type=cache,target=/root/.cache/pip pip install -c constraints.txt -r requirements/worker.txt

FROM base AS api
COPY --from=build /opt/mergery /opt/mergery
USER 10001
EXPOSE 8000
ENTRYPOINT ["tini", "--"]
CMD ["mergery", "api"]
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s \
  CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]

FROM base AS cpu
# The engine builds its loops on the spot; without a compiler it works, only slower.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build-cpu /opt/mergery /opt/mergery
USER 10001
# SIGQUIT asks Celery for its soft shutdown: the running job is handed back instead of being waited for.
STOPSIGNAL SIGQUIT
ENTRYPOINT ["tini", "--"]
CMD ["mergery", "worker", "--queues", "cpu"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["mergery", "worker", "--health"]

FROM base AS cuda
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=build-cuda /opt/mergery /opt/mergery
USER 10001
STOPSIGNAL SIGQUIT
ENTRYPOINT ["tini", "--"]
CMD ["mergery", "worker", "--queues", "gpu"]
HEALTHCHECK --interval=15s --timeout=5s --start-period=60s CMD ["mergery", "worker", "--health"]
