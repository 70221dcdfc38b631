"""A sweep from Python to its end: in this process with callbacks, and in a real notebook, which draws it."""

from collections.abc import Mapping
from typing import Any

import pytest
from ray.cluster_utils import Cluster

import alast_tune
from alast_tune.callbacks import TensorBoard
from alast_tune.config import SweepConfig, TrialConfig
from alast_tune.errors import ConfigError
from alast_tune.production import read_config
from alast_tune.results import FrontFile, TrialResult
from tests.integration.harness import PATIENCE, ROOT, Pareto, short_end

pytestmark = pytest.mark.slow


class Heard:
    """Hears of everything, and is wrong about one thing."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_sweep_start(self, config: SweepConfig) -> None:
        self.events.append(f"start {config.name}")

    def on_trial_start(self, number: int, config: TrialConfig) -> None:
        self.events.append(f"trial {number} {config.method.name}")

    def on_epoch_end(self, number: int, record: Mapping[str, float]) -> None:
        self.events.append(f"epoch {record['epoch']:.0f} of {number}")

    def on_trial_end(self, result: TrialResult) -> None:
        self.events.append(f"{result.state} {result.number}")
        raise RuntimeError("wrong")

    def on_sweep_end(self, front: FrontFile) -> None:
        self.events.append(f"end, {all(member.test_accuracy is not None for member in front.front)}")


def test_a_sweep_from_python_is_that_of_the_command_line(
    ray_here: Cluster,
    pareto: Pareto,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    short_end(monkeypatch)
    heard = Heard()
    preset = pareto.preset(trials=3, epochs=1)
    sweep = alast_tune.sweep(preset=preset, name="py", storage=pareto.storage, callbacks=[heard, TensorBoard()])
    out = capsys.readouterr().err  # a program's own output stays its own
    assert "3 of 3 trials done" in out
    assert out.count("callback Heard.on_trial_end failed (RuntimeError: wrong); the sweep goes on") == 1
    trials = sweep.trials()
    order = [f"{event} {n}" for n in range(3) for event in ("trial", "epoch 1 of", "complete")]
    methods = {f"trial {n}": f"trial {n} {method}" for n, method in enumerate(trials.method)}
    assert heard.events == ["start py", *(methods.get(event, event) for event in order), "end, True"]
    assert trials.state.tolist() == ["complete"] * 3 and trials.method[0] == "full"
    assert trials[trials.on_front].number.tolist() == sorted(int(member.trial_id) for member in sweep.front)
    assert (trials.seconds > 0).all()
    assert {run.name for run in (sweep.folder / "tensorboard").iterdir()} == {"0000", "0001", "0002", "front"}

    best = sweep.best(max_memory="1GiB")
    assert best.objectives["accuracy"] == trials[trials.on_front].accuracy.max()
    promoted = sweep.promote(best, pareto.folder / "best.yaml", model_name="py")
    assert read_config(pareto.folder / "best.yaml").provenance == promoted.config.provenance
    assert (promoted.registered, promoted.version) == ("models:/py@champion", 1)
    assert (promoted.model / "model.safetensors").exists()

    with pytest.raises(ConfigError, match="already exists"):
        alast_tune.sweep(preset=preset, name="py", storage=pareto.storage)
    again = alast_tune.open("py", storage=pareto.storage).resume(trials=2)
    assert len(again.trials()) == 4
    assert (
        alast_tune.sweep(preset=preset, name="py", storage=pareto.storage, trials=2, go_on=True).folder == again.folder
    )


@pytest.mark.filterwarnings("ignore")  # of the notebook's own packages
def test_a_notebook_draws_a_sweep_while_it_runs_and_its_front(
    ray_here: Cluster, pareto: Pareto, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient and ipykernel are not installed")
    from nbformat.v4 import new_code_cell, new_notebook

    cells = [
        f"import alast_tune\nsweep = alast_tune.sweep(preset={pareto.preset(trials=3, epochs=1)!r}, name='nb')",
        "sweep",
        "sweep.front",
        "alast_tune.open('runs/nb').trials().shape",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("RAY_ADDRESS", ray_here.address)
    where = {"metadata": {"path": str(pareto.folder)}}
    nbclient.NotebookClient(notebook, timeout=PATIENCE, kernel_name="python3", resources=where).execute()
    ran, drawn, front, shape = (cell.outputs for cell in notebook.cells)

    def pages(outputs: list[Any]) -> list[str]:
        return [output.data["text/html"] for output in outputs if "text/html" in output.get("data", {})]

    (progress,) = pages(ran)  # one place, drawn again and again
    assert "1 of 1 trials beside the baselines; ended" in progress and "data:image/png;base64," in progress
    assert "3 of 3 trials done" in "".join(output.text for output in ran if output.output_type == "stream")
    (page,) = pages(drawn)
    assert "on the front</p><table>" in page and "data:image/png;base64," in page
    assert "<td>" in pages(front)[0] and "(3, " in shape[0].data["text/plain"]
