"""A sweep goes on with files that have moved, and with no others."""

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

    from tests.integration.harness import Pareto


@pytest.mark.slow
def test_a_sweep_goes_on_where_its_images_have_moved_and_not_on_others(pareto: "Pareto", ray_here: "Cluster") -> None:
    pareto.here("--preset", pareto.preset(trials=3, epochs=1), "--name", "pets")
    for name in ("moved", "other"):
        shutil.copytree(pareto.pictures, pareto.folder / name)
    next((pareto.folder / "other" / "train").rglob("*.*")).unlink()
    other = ("--trial.data.root", str(pareto.folder / "other"))
    refused = pareto.here("--resume", "pets", "--trials", "2", *other, expect=2)
    assert "error: resume = " in refused and "was begun otherwise: here are other data (fingerprint " in refused
    refused = pareto.here(
        "--preset", pareto.preset(), "--trial.train.epochs", "1", "--warm-start", "pets", *other, expect=2
    )
    assert "error: warm_start = " in refused and "here are other data (fingerprint " in refused
    moved = ("--trial.data.root", str(pareto.folder / "moved"))
    out = pareto.here("--resume", "pets", "--trials", "2", *moved, "--reseed", "2")
    assert " of 4 complete trials" in out
    refused = pareto.here("--resume", "pets", *moved, "--trial.train.epochs", "2", expect=2)
    assert (
        "was started with other settings (trial/train/epochs); only --trials, places and resources may change"
        in refused
    )
