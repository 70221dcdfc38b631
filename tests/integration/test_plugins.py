"""What a driver registers trains in real Ray workers: a method of the script, a data set of a module beside it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from alast_tune.results import FrontFile
from tests.integration.harness import PATIENCE, ROOT

DATA = """
import numpy as np
from PIL import Image

class Greys:
    targets = [number % 2 for number in range(40)]

    def __init__(self, root):
        self.root = root

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return Image.fromarray(np.full((16, 16, 3), 100 * (index % 2) + index, np.uint8)), index % 2
"""

DRIVER = """
import sys
from typing import Literal
import alast_tune
from greys import Greys

@alast_tune.register_method
class Norms(alast_tune.MethodConfig):
    name: Literal["norms"] = "norms"
    label = "norms alone"
    foremost = "share"
    share: float = 1.0

    def trainable_parameters(self, model):
        return [p for name, p in model.named_parameters() if "norm" in name or name.startswith("head.")]

if __name__ == "__main__":
    alast_tune.register_dataset("greys", Greys)
    trial = {
        "data": {"dataset": "greys"},
        "model": {"image_size": 16},
        "method": {"name": "norms"},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 1e-3, "device": "cpu"},
    }
    space = {"method/share": {"type": "categorical", "choices": [0.5]}}
    sweep = alast_tune.SweepConfig.model_validate(
        {"name": "own", "storage": sys.argv[1], "sampler": "grid", "trial": trial, "space": space}
    )
    alast_tune.run_sweep(sweep)
"""


@pytest.mark.slow
def test_what_a_driver_registers_trains_in_rays_workers(tmp_path: Path) -> None:
    (tmp_path / "greys.py").write_text(DATA)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
        environment.pop(name, None)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "runs")],
        capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=PATIENCE,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "trial 0000 complete (norms alone, share 0.5): accuracy" in done.stderr, done.stderr
    # This process knows no such method: what is stored is plain values.
    front = json.loads((tmp_path / "runs/own/front.json").read_text())["front"]
    assert [(one["config"]["method"], one["config"]["data"]["dataset"]) for one in front] == [
        ({"name": "norms", "from_block": 0, "share": 0.5}, "greys")
    ]
    with pytest.raises(ValueError, match="norms: no such method"):
        FrontFile.read(tmp_path / "runs/own/front.json")
