# One image for head, workers, jobs and the MLflow server:
#     docker build --tag alast-tune:cpu .
#     docker build --tag alast-tune:cuda --build-arg VARIANT=cuda .
# This is where the Python of all clusters is chosen; Ray's version, and all others, are in requirements.lock.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
# cpu leaves out what only a GPU needs, as far as that goes: torch, from the package index, is the CUDA build, and its
# libraries do not load without some 2 GB of NVIDIA's. Installed it takes 4.1 GB, cuda 6.3 GB.
ARG VARIANT=cpu
WORKDIR /app
RUN python -m venv /opt/tools && /opt/tools/bin/pip install --no-cache-dir uv && python -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:/opt/tools/bin:$PATH VIRTUAL_ENV=/opt/venv
COPY pyproject.toml requirements.lock ./
# What the package needs to run, in the lock's versions; uv holds every file to the lock's hashes. Behind a mirror, give
# pip's and uv's settings with --secret id=pip,src=... and --secret id=uv,src=...
RUN --mount=type=secret,id=pip,target=/etc/pip.conf --mount=type=secret,id=uv,target=/etc/uv/uv.toml \
    uv pip install --no-cache --compile-bytecode --requirement pyproject.toml --constraint requirements.lock
COPY clusters/prune_cuda.py clusters/
RUN case "$VARIANT" in \
    cpu) uv pip uninstall triton && python clusters/prune_cuda.py ;; \
    cuda) ;; \
    *) echo "error: VARIANT = $VARIANT: cpu or cuda" >&2; exit 2 ;; \
    esac
COPY . .
RUN PYTHONPATH=/app python -m compileall -q alast_tune && PYTHONPATH=/app python -c "import alast_tune.tune.study"

FROM python:${PYTHON}-slim
# A fixed user, whom volumes can be given to; what runs needs to write to /tmp and /storage only.
RUN useradd --uid 10001 --user-group --home-dir /tmp/home --no-create-home alast \
    && install --directory --owner alast --group alast /storage
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/app \
    HOME=/tmp/home \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    RAY_AUTH_MODE=token \
    RAY_ENABLE_UV_RUN_RUNTIME_ENV=0 \
    RAY_JOB_STOP_WAIT_TIME_S=30 \
    RAY_USAGE_STATS_ENABLED=0 \
    MLFLOW_DISABLE_TELEMETRY=true
WORKDIR /app
USER 10001:10001
# Of a Ray node, head or worker, by its agent; other uses have checks of their own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=6 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:52365/api/local_raylet_healthz', timeout=4)"]
