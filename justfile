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

# The same as a Ray job, on the cluster of RAY_API_SERVER_ADDRESS or on this machine's (cluster-up)
submit *args: setup
    #!/usr/bin/env bash
    set -euo pipefail
    export PATH="$PWD/.venv/bin:$PATH"
    if [ $# = 0 ]; then set -- --preset demo; fi
    if [ -n "${RAY_API_SERVER_ADDRESS:-${RAY_ADDRESS:-}}" ]; then exec python -m alast_tune.cli submit "$@"; fi
    # A job runs in a copy of this folder, which goes away: results belong elsewhere.
    address="$(python -m clusters.local.cluster up)"
    exec python -m alast_tune.cli submit --address "$address" --storage "$PWD/runs" "$@"

# A Ray head, workers (just cluster-up 2) and MLflow on this machine
cluster-up *args: setup
    @{{ quote(python) }} -m clusters.local.cluster up "$@"

# End what cluster-up (or submit) has started, and nothing else
cluster-down *args: setup
    @{{ quote(python) }} -m clusters.local.cluster down "$@"

# Open MLflow on this checkout's runs, at http://127.0.0.1:5000
ui *args: setup
    @{{ quote(python) }} -m alast_tune.cli ui "$@"

# As many tests at a time as there are cores, up to 4; each process trains in one thread.
side_by_side := "-n logical --maxprocesses 4 --dist loadgroup --no-loadscope-reorder"

# Tests that take minutes are left out: unit tests, and a sweep or two
test *args: setup
    @{{ quote(python) }} -m pytest -m "not slow and not nightly and not gpu" {{ side_by_side }} "$@"

# All tests but the nightly ones: what CI runs
test-all *args: setup
    @{{ quote(python) }} -m pytest -m "not nightly and not gpu" {{ side_by_side }} --durations 20 "$@"

# Tests that take long: random kills, parted networks, hundreds of random plans
test-nightly *args: setup
    @{{ quote(python) }} -m pytest -m "nightly and not gpu" "$@"

# Tests that need a GPU
test-gpu *args: setup
    @{{ quote(python) }} -m pytest -m gpu "$@"

# Branch coverage of the package by the tests that CI runs, folder by folder
coverage *args: setup
    @{{ quote(python) }} tests/coverage_by_room.py "$@"

# Plant small faults, one at a time, and see which of them the tests notice (hours)
mutants *args: setup
    @{{ quote(python) }} tests/mutants.py "$@"

# Style, types and the import contract
lint: setup
    {{ quote(python) }} -m ruff check .
    {{ quote(python) }} -m ruff format --check .
    {{ quote(python) }} -m mypy --strict $(ls -d alast_tune sweeps benchmarks clusters/local docs/site 2>/dev/null)
    .venv/bin/lint-imports --no-logo

# Put the style right where that can be done mechanically
fmt: setup
    {{ quote(python) }} -m ruff check --fix .
    {{ quote(python) }} -m ruff format .

# Build the documents as a site, links checked (just docs serve: and show it)
docs *args: setup
    @{{ quote(python) }} docs/site/build.py "$@"

# Time one training step of every method
bench *args: setup
    @{{ quote(python) }} benchmarks/step.py "$@"
