"""What a trial asks of the cluster, and how many fit."""

from __future__ import annotations

from collections.abc import Mapping

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError


def trial_resources(sweep: SweepConfig, cluster: Mapping[str, float]) -> dict[str, float]:
    """CPUs and GPUs of one trial; a GPU each where the cluster has any, unless the sweep says otherwise.

    Args:
        sweep: ``cpus_per_trial``, ``gpus_per_trial``.
        cluster: Ray's resources, by name.

    Raises:
        ConfigError: more than the whole cluster has.
    """
    gpus = sweep.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if cluster.get("GPU", 0) >= 1 and sweep.trial.train.device != "cpu" else 0.0
    if sweep.cpus_per_trial > cluster.get("CPU", 0):
        raise ConfigError("cpus_per_trial", sweep.cpus_per_trial, f"the cluster has {cluster.get('CPU', 0):g} CPUs")
    if gpus > cluster.get("GPU", 0):
        raise ConfigError("gpus_per_trial", gpus, f"the cluster has {cluster.get('GPU', 0):g} GPUs")
    return {"cpu": float(sweep.cpus_per_trial), "gpu": gpus}


def fitting(resources: Mapping[str, float], cluster: Mapping[str, float]) -> int:
    """Count the trials that run at a time, at least 1."""
    by_cpu = int(cluster.get("CPU", 0) // resources["cpu"])
    by_gpu = int(cluster.get("GPU", 0) / resources["gpu"]) if resources["gpu"] else by_cpu
    return max(1, min(by_cpu, by_gpu))
