"""What a trial asks for, and how many fit."""

from typing import Any

import pytest

from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from alast_tune.tune.resources import fitting, trial_resources


def sweep(**options: Any) -> SweepConfig:
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    return SweepConfig.model_validate({"space": space} | options)


def test_a_gpu_each_where_there_are_any() -> None:
    assert trial_resources(sweep(), {"CPU": 8, "GPU": 2}) == {"cpu": 1.0, "gpu": 1.0}
    assert trial_resources(sweep(), {"CPU": 8}) == {"cpu": 1.0, "gpu": 0.0}
    assert trial_resources(sweep(trial={"train": {"device": "cpu"}}), {"CPU": 8, "GPU": 2})["gpu"] == 0.0
    assert trial_resources(sweep(gpus_per_trial=0.5), {"CPU": 8, "GPU": 2})["gpu"] == 0.5


def test_as_many_fit_as_the_scarcer_resource_allows() -> None:
    assert fitting({"cpu": 2, "gpu": 0}, {"CPU": 7}) == 3
    assert fitting({"cpu": 1, "gpu": 0.5}, {"CPU": 8, "GPU": 2}) == 4
    assert fitting({"cpu": 1, "gpu": 1}, {"CPU": 1, "GPU": 4}) == 1


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"cpus_per_trial": 9}, "cpus_per_trial = 9: the cluster has 8 CPUs"),
        ({"gpus_per_trial": 4}, "gpus_per_trial = 4.0: the cluster has 2 GPUs"),
    ],
)
def test_more_than_the_cluster_has_is_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as error:
        trial_resources(sweep(**options), {"CPU": 8, "GPU": 2})
    assert str(error.value) == line
