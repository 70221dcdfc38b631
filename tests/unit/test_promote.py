"""Who is picked, and what is written down of it."""

import json
import subprocess
from pathlib import Path

import pytest

from alast_tune import promote
from alast_tune.config import Limits, PromotedConfig, SweepConfig, TrialConfig, parse, with_whole_images
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints, keep_fingerprints
from alast_tune.production import read_config, write_config
from alast_tune.results import FrontFile, FrontMember, TrialResult
from alast_tune.summary import summarise, within

TRIAL = TrialConfig.model_validate(
    {
        "data": {"dataset": "digits", "train_images": 64, "root": "/somewhere/else"},
        "method": {"name": "alast", "reading": "paper", "alpha": 1e-5, "lora": {"rank": 2}},
        "train": {"epochs": 2, "device": "cpu", "seed": 3},
    }
)


@pytest.fixture
def front() -> FrontFile:
    values = [(0.9, 4e12, 9e8), (0.85, 2e12, 4e8), (0.6, 3e12, 1e8), (0.5, 1e12, 2e8), (0.4, 5e12, 9e8)]
    results = [TrialResult(n, "complete", TRIAL, {}, v, 2, mlflow_run_id=f"run{n}") for n, v in enumerate(values)]
    return summarise("mine", results, (0.0, 5e12, 1e9), {1: 0.8})


def member(front: FrontFile, trial: str) -> FrontMember:
    return promote.pick(front, trial)


def test_picking(front: FrontFile) -> None:
    assert {choice: promote.pick(front, choice).trial_id for choice in ("cheapest", "best", "0002", "2")} == {
        "cheapest": "0003", "best": "0000", "0002": "0002", "2": "0002",
    }  # fmt: skip
    assert promote.pick(front, "knee").trial_id == front.knee == "0001"
    # Limits first, then the pick: the knee is that of what is left.
    small = within(front, Limits.model_validate({"max_memory": "200MB"}))
    assert {choice: promote.pick(small, choice).trial_id for choice in ("cheapest", "best", "knee")} == {
        "cheapest": "0003", "best": "0002", "knee": small.knee,
    }  # fmt: skip
    for choice in ("4", "0004", "median"):  # dominated, dominated, no word
        with pytest.raises(ConfigError, match=r"one of 0003, 0001, 0002, 0000$"):
            promote.pick(front, choice)
    with pytest.raises(ConfigError, match=r"^pick = best: nobody on the front of mine keeps the limits"):
        promote.pick(within(front, Limits(min_accuracy=0.95)), "best")


def test_a_promoted_configuration_says_everything_and_reads_back_the_same(front: FrontFile, tmp_path: Path) -> None:
    config = promote.promoted_config(member(front, "1"), "mine", "http://me:secret@host:5000/x", "pets", verified=True)
    file = tmp_path / "deep" / "config.yaml"
    write_config(config, file)
    assert read_config(file) == config
    assert config.trial == TRIAL and type(config.trial) is TrialConfig
    text = file.read_text()
    assert "secret" not in text and "tracking_uri: http://host:5000/x" in text
    for setting in ("warmup_epochs: 0.0", "initial_budget: 1.0", "lora_alpha: 16.0", "split_seed: 0"):  # defaults too
        assert setting in text
    origin = config.provenance
    assert origin is not None
    assert (origin.sweep, origin.trial_id, origin.mlflow_run_id, origin.model_name) == ("mine", "0001", "run1", "pets")
    assert origin.objectives == {"accuracy": 0.85, "train_flops": 2e12, "peak_bytes": 4e8}
    assert (origin.test_accuracy, origin.epochs, origin.seed, origin.verified) == (0.8, 2, 3, True)
    assert origin.versions.keys() >= {"python", "alast-tune", "torch", "timm"}
    assert promote.version_tags(origin, "accuracy")["alast.train_flops"] == "2000000000000.0"
    tags = promote.version_tags(origin, "macro_f1")
    assert (tags["alast.macro_f1"], tags["alast.test_macro_f1"], tags["alast.score"]) == ("0.85", "0.8", "macro_f1")
    assert "alast.accuracy" not in tags
    other = TRIAL.model_copy(update={"data": TRIAL.data.model_copy(update={"split_seed": 1})})
    moved = promote.promoted_config(
        member(front, "1").model_copy(update={"config": other}), "mine", "sqlite:////x/m.db", "m"
    )
    assert moved.provenance is not None
    assert moved.provenance.data_fingerprint != origin.data_fingerprint
    assert moved.provenance.tracking_uri == "sqlite:////x/m.db"


def test_other_images_than_a_member_was_measured_with_are_refused(front: FrontFile) -> None:
    known = promote.promoted_config(member(front, "1"), "mine", "sqlite:///x", "m").provenance
    assert known
    same = Fingerprints(data=known.data_fingerprint, weights=known.weights_fingerprint)
    assert promote.promoted_config(member(front, "1"), "mine", "sqlite:///x", "m", origin=same).provenance
    with pytest.raises(ConfigError) as refused:
        promote.promoted_config(
            member(front, "1"), "mine", "sqlite:///x", "m", origin=same.model_copy(update={"data": "0" * 16})
        )
    assert str(refused.value) == (
        f"pick = 0001: was measured otherwise: here are other data (fingerprint {same.data}, not {'0' * 16}); "
        "put them back"
    )


def test_full_fine_tuning_started_from_the_images_of_a_sweep_that_caches_features(
    front: FrontFile, tmp_path: Path
) -> None:
    """It trains on no features itself, and on the same images."""
    data = {"dataset": "digits", "train_images": 64, "features": "auto"}
    space = {"method/alpha": {"type": "float", "low": 0.1, "high": 1.0}}
    sweep = parse(SweepConfig, {"trial": {"data": data}, "space": space})
    (tmp_path / "sweep.json").write_text(json.dumps(sweep.given_values()))
    known = Fingerprints(data="a", weights="b", meter=1)
    keep_fingerprints(known, tmp_path, "resume", new=True)
    full = member(front, "1").model_copy(update={"config": with_whole_images(sweep.trial)})
    assert full.config.data.features == "none" and promote.origin_of(full, tmp_path) == known
    others = sweep.trial.data.model_copy(update={"train_images": 32})
    full = full.model_copy(update={"config": full.config.model_copy(update={"data": others})})
    assert promote.origin_of(full, tmp_path) is None


def test_what_promotion_has_not_written_it_does_not_write_over(front: FrontFile, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    promote.check_output(file, "mine", member(front, "1"))
    write_config(promote.promoted_config(member(front, "1"), "mine", "sqlite:///x", "m"), file)
    promote.check_output(file, "mine", member(front, "1"))
    for sweep, trial in (("mine", "2"), ("other", "1")):
        with pytest.raises(ConfigError, match="exists, and is not of this trial"):
            promote.check_output(file, sweep, member(front, trial))
    write_config(PromotedConfig(), file)  # somebody's own
    with pytest.raises(ConfigError, match="exists, and is not of this trial"):
        promote.check_output(file, "mine", member(front, "1"))


def test_the_commit_is_that_of_the_checkout(tmp_path: Path) -> None:
    assert promote._git_commit(tmp_path) is None

    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    assert promote._git_commit(tmp_path) is None  # nothing committed yet
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-qm", "one")
    assert promote._git_commit(tmp_path) == git("rev-parse", "HEAD")
    (tmp_path / "file").write_text("two")
    assert promote._git_commit(tmp_path) == git("rev-parse", "HEAD") + "-dirty"
