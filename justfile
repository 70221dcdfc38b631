# `just` lists the recipes. All of them run in .venv, which `just setup` fills from requirements.lock.

set positional-arguments

python := justfile_directory() / ".venv/bin/python"

# What Ray and MLflow leave to the environment: authentication by token, workers in plain Python, nothing sent home.
export RAY_AUTH_MODE := env("RAY_AUTH_MODE", "token")
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := "0"
export RAY_USAGE_STATS_ENABLED := env("RAY_USAGE_STATS_ENABLED", "0")
export MLFLOW_DISABLE_TELEMETRY := env("MLFLOW_DISABLE_TELEMETRY", "true")

[private]
default:
    @{{ quote(just_executable()) }} --justfile {{ quote(justfile()) }} --list --unsorted

# Make .venv from requirements.lock; does nothing while that is up to date
setup:
    #!/usr/bin/env bash
    set -euo pipefail
    stamp=.venv/.set-up
    want="$PWD $(cat requirements.lock pyproject.toml | cksum)"
    if [ "$(cat "$stamp" 2>/dev/null || true)" = "$want" ]; then exit 0; fi
    [ -x .venv/bin/python ] || python3 -m venv .venv
    .venv/bin/python -m pip install -q uv
    # uv is quick but does not read pip's configuration: hand it pip's index, and where that is not enough use pip.
    index="${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}"
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index}"; fi
    # Compiled here once: uv leaves that to the first import, and every Ray worker would do it again where it may not write.
    install() { .venv/bin/uv pip install -q --compile-bytecode --python .venv/bin/python "$@" || .venv/bin/python -m pip install -q "$@"; }
    install -r requirements.lock
    install --no-deps -e .
    echo "$want" > "$stamp"

# Main job on the embedded default: a sweep of small real fine-tuning runs, and its Pareto front
demo *args: setup
    @{{ quote(python) }} sweeps/pareto.py --preset demo "$@"

# Search for a Pareto front: just sweep --preset deit-s-cifar100 (see --help)
sweep *args: setup
    @{{ quote(python) }} sweeps/pareto.py "$@"

# The same as a Ray job, on the cluster of RAY_ADDRESS or on this machine
submit *args: setup
    #!/usr/bin/env bash
    set -euo pipefail
    umask 077 # the token file is a secret
    export PATH="$PWD/.venv/bin:$PATH"
    if [ -z "${RAY_AUTH_TOKEN:-}${RAY_AUTH_TOKEN_PATH:-}" ]; then ray get-auth-token --generate >/dev/null 2>&1; fi
    if [ $# = 0 ]; then set -- --preset demo; fi
    address="${RAY_API_SERVER_ADDRESS:-${RAY_ADDRESS:-http://127.0.0.1:8265}}"
    entrypoint=python
    case "$address" in http://127.0.0.1:* | http://localhost:*)
        # A job runs in a copy of this folder: the environment and the results stay here.
        entrypoint="$PWD/.venv/bin/python"
        case " $* " in *" --storage"*) ;; *) set -- --storage "$PWD/runs" "$@" ;; esac
        port="${address##*:}"
        if ! (: < "/dev/tcp/127.0.0.1/${port%%/*}") 2>/dev/null; then
            ray start --head --dashboard-port "${port%%/*}" >/dev/null
            echo "started a Ray head on this machine; .venv/bin/ray stop ends it (and all others of yours)"
            # A new head takes jobs only once its agent is up: try with an empty one.
            for _ in {1..30}; do
                ray job submit --address "$address" --no-wait -- true >/dev/null 2>&1 && break || sleep 1
            done
        fi
    esac
    environment="$(python -c 'if True:
        import json, os
        names = ("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "MLFLOW_TRACKING_URI", "MLFLOW_DISABLE_TELEMETRY", "HF_HOME", "HF_HUB_OFFLINE")
        variables = {name: os.environ[name] for name in names if os.environ.get(name)}
        print(json.dumps({"excludes": ["/.git", "/.venv", "/runs", "/data"], "env_vars": variables}))')"
    ray job submit --address "$address" --working-dir . --runtime-env-json "$environment" -- "$entrypoint" sweeps/pareto.py "$@"

# Open MLflow on this checkout's runs, at http://127.0.0.1:5000
ui *args: setup
    #!/usr/bin/env bash
    set -euo pipefail
    store="${MLFLOW_TRACKING_URI:-sqlite:///$PWD/runs/mlflow.db}"
    case "$store" in
        http*) echo "MLFLOW_TRACKING_URI is a server: open $store"; exit ;;
        "sqlite:///$PWD/runs/mlflow.db") [ -e runs/mlflow.db ] || { echo "nothing in runs/ yet: just demo"; exit 1; } ;;
    esac
    exec {{ quote(python) }} -m mlflow ui --backend-store-uri "$store" --host 127.0.0.1 --workers 1 "$@"

# Tests, the slow ones left out
test *args: setup
    @{{ quote(python) }} -m pytest -m "not slow and not gpu" "$@"

# Tests, the slow ones too
test-all *args: setup
    @{{ quote(python) }} -m pytest -m "not gpu" "$@"

# Tests that need a GPU
test-gpu *args: setup
    @{{ quote(python) }} -m pytest -m gpu "$@"

# Style, types and the import contract
lint: setup
    {{ quote(python) }} -m ruff check .
    {{ quote(python) }} -m ruff format --check .
    {{ quote(python) }} -m mypy --strict $(ls -d alast_tune sweeps benchmarks 2>/dev/null)
    .venv/bin/lint-imports --no-logo

# Put the style right where that can be done mechanically
fmt: setup
    {{ quote(python) }} -m ruff check --fix .
    {{ quote(python) }} -m ruff format .

# Time one training step of every method
bench *args: setup
    @{{ quote(python) }} benchmarks/step.py "$@"
