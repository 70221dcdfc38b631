"""What TensorBoard reads of a sweep, read by TensorBoard itself."""

import sys
from pathlib import Path

import pytest

from alast_tune.callbacks import TensorBoard
from alast_tune.config import SweepConfig
from alast_tune.errors import ConfigError
from tests.unit.callbacks.sweep import happen

SPACE = {"method/alpha": {"type": "float", "low": 0.001, "high": 1.0}}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of tensorboard's own protocol buffers
def test_a_trial_is_a_run_with_its_curves_settings_and_objectives(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    front = happen(TensorBoard(), SweepConfig.model_validate({"storage": tmp_path, "name": "s", "space": SPACE}))
    folder = tmp_path / "s" / "tensorboard"
    assert {run.name for run in folder.iterdir()} == {"0000", "0001", "0003", "front"}

    def read(run: str) -> EventAccumulator:
        events = EventAccumulator(str(folder / run))
        events.Reload()
        return events

    good = read("0000")
    assert [(one.step, one.value) for one in good.Scalars("accuracy")] == [
        (1, pytest.approx(0.4)),
        (2, pytest.approx(0.8)),
    ]
    tags = good.PluginTagToContent("hparams")
    start = plugin_data_pb2.HParamsPluginData.FromString(tags[metadata.SESSION_START_INFO_TAG]).session_start_info
    assert start.hparams["method"].string_value == "alast" and start.hparams["method/alpha"].number_value == 0.5
    assert start.hparams["state"].string_value == "complete"
    experiment = plugin_data_pb2.HParamsPluginData.FromString(tags[metadata.EXPERIMENT_TAG]).experiment
    assert [one.name.tag for one in experiment.metric_infos] == ["accuracy", "train_flops", "peak_bytes"]
    shown = read("front")
    (share,) = shown.Scalars("front/hypervolume_share")
    assert (share.step, share.value) == (2, pytest.approx(front.hypervolume_share))


def test_a_folder_of_one_s_own_gets_it(tmp_path: Path) -> None:
    sweep = SweepConfig.model_validate({"storage": tmp_path / "runs", "name": "s", "space": SPACE})
    happen(TensorBoard(tmp_path / "board"), sweep)
    assert (tmp_path / "board" / "0000").is_dir() and not (tmp_path / "runs").exists()


def test_a_missing_package_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"TensorBoard: needs .*: pip install 'alast-tune\[tensorboard\]'"):
        TensorBoard()
