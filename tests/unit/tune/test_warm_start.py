"""Earlier results fed into a new study: the same trials only, each once, and marked as another sweep's."""

from pathlib import Path
from typing import Any

import pytest

from alast_tune.config import SweepConfig, read_mapping
from alast_tune.errors import ConfigError
from alast_tune.fingerprints import Fingerprints, keep_fingerprints
from alast_tune.results import FrontFile
from alast_tune.summary import summarise
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.search import StudySearcher
from alast_tune.tune.trials import enqueue_first, open_study, results
from alast_tune.tune.warm_start import best_points, earlier_results, feed
from tests.unit.tune import conditional
from tests.unit.tune.test_search import Recorder, everywhere, forecast, report

ORIGIN = Fingerprints(data="d1", weights="w1")
SAID: list[str] = []
REFERENCE = (0.0, 2e12, 2e8)


def sweep(storage: Path, name: str, **options: Any) -> SweepConfig:
    values = {
        "name": name,
        "storage": storage,
        "study": "journal",
        "sampler": "random",
        "trials": 6,
        "trial": {"train": {"epochs": 3}},
        "space": {
            "method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True},
            "method/trainable_blocks": {"type": "int", "low": 1, "high": 12},
        },
    }
    return SweepConfig.model_validate(values | options)


@pytest.fixture
def before(tmp_path: Path) -> SweepConfig:
    """A sweep that is over: both baselines, three other complete trials, one failed."""
    config = sweep(tmp_path, "before")
    folder = tmp_path / "before"
    folder.mkdir()
    (folder / "sweep.json").write_text(config.model_dump_json())
    study = open_study(config, folder)
    study.set_user_attr("reference_point", (0.0, 2e12, 2e8))
    enqueue_first(study, config)
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    for number in range(6):
        search.suggest(str(number))
        search.on_trial_complete(
            str(number), report(accuracy=0.9 - number / 10, train_flops=1e12 - number * 1e11), error=number == 5
        )
    study.set_user_attr("test_accuracy", {"0": 0.875})
    summarise("before", results(study, config), REFERENCE, {0: 0.875}).write(folder / "front.json")
    return config


@pytest.mark.parametrize("source", ["before", "before/front.json"])
def test_results_of_a_sweep_or_a_front_come_first_and_are_no_trials_of_the_new_one(
    before: SweepConfig, tmp_path: Path, source: str
) -> None:
    config = sweep(tmp_path, "after", warm_start=tmp_path / source, min_accuracy=0.65)
    study = open_study(config, tmp_path)
    earlier = earlier_results(config, ORIGIN, SAID.append)
    assert feed(study, config, earlier) == 5
    enqueue_first(study, config)  # both are there
    assert len(study.trials) == 5
    (number,) = study.user_attrs["test_accuracy"]
    assert study.trials[int(number)].values[0] == 0.9
    told = results(study, config)
    assert sorted(result.values[0] for result in told if result.values) == pytest.approx([0.5, 0.6, 0.7, 0.8, 0.9])
    assert {result.origin for result in told} == {"before"}
    assert {result.baseline for result in told} == {"full", "paper", None}
    assert [result.state for result in told].count("infeasible") == 2
    study.set_user_attr("reference_point", (0.0, 2e12, 2e8))
    assert StudySearcher(study, config, Recorder(), everywhere(config), forecast).remaining == 6
    front = summarise("after", told, REFERENCE, limits=config.limits)
    assert front.trials.total == 0
    assert {member.origin for member in front.front} == {"before"}


def test_a_driver_killed_while_feeding_goes_on(before: SweepConfig, tmp_path: Path) -> None:
    config = sweep(tmp_path, "after", warm_start=tmp_path / "before")
    study, earlier = open_study(config, tmp_path), earlier_results(config, ORIGIN, SAID.append)
    feed(study, config, earlier[:2])
    feed(study, config, earlier)
    assert [result.values for result in results(study, config)] == [result.values for result in earlier]


def test_what_lies_outside_the_space_is_left_out(before: SweepConfig, tmp_path: Path) -> None:
    space = {"method/trainable_blocks": {"type": "int", "low": 9, "high": 9}}
    config = sweep(
        tmp_path,
        "after",
        warm_start=tmp_path / "before",
        space=space,
        trial={"method": {"name": "alast", "alpha": 0.5}, "train": {"epochs": 3}},
    )
    with pytest.raises(ConfigError, match=r"its trials have method/alpha = .*, this sweep's 0.5: such results do not"):
        earlier_results(config, ORIGIN, SAID.append)
    space = {"method/trainable_blocks": {"type": "int", "low": 9, "high": 9}} | {
        "method/alpha": {"type": "float", "low": 1e-4, "high": 1.0, "log": True}
    }
    config = sweep(tmp_path, "after", warm_start=tmp_path / "before", space=space)
    study = open_study(config, tmp_path)
    assert feed(study, config, earlier_results(config, ORIGIN, SAID.append)) == len(study.trials) < 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"trial": {"train": {"epochs": 4}}}, r"have train/epochs = 3, this sweep's 4"),
        ({"trial": {"data": {"dataset": "cifar100"}, "train": {"epochs": 3}}}, r"have data/dataset = digits"),
        (
            {"trial": {"train": {"epochs": 3, "score": "macro_f1"}}},
            r"have train/score = accuracy, this sweep's macro_f1",
        ),
        ({"warm_start": "nope"}, "is neither the folder of a sweep nor a front.json"),
        ({"warm_start": __file__}, "is not a front.json"),
    ],
)
def test_what_does_not_compare_is_refused_in_one_line(
    before: SweepConfig, tmp_path: Path, options: dict[str, Any], complaint: str
) -> None:
    config = sweep(tmp_path, "after", **{"warm_start": tmp_path / "before"} | options)
    with pytest.raises(ConfigError, match=rf"^warm_start = .*{complaint}"):
        earlier_results(config, ORIGIN, SAID.append)


@pytest.mark.parametrize("source", ["before", "before/front.json"])
def test_a_sweep_on_other_data_begins_with_the_best_points(before: SweepConfig, tmp_path: Path, source: str) -> None:
    """The own trials' accuracies are 0.7, 0.6 and 0.5, each cheaper than the one before; full fine-tuning's is 0.9."""
    trial = {"data": {"dataset": "cifar100"}, "train": {"epochs": 9}}
    study = open_study(before, tmp_path / "before")
    own = [trial.params for trial in study.trials if trial.values and BASELINE not in trial.user_attrs]
    assert [trial.values[0] for trial in study.trials if trial.params in own] == pytest.approx([0.7, 0.6, 0.5])

    def points(**options: Any) -> list[dict[str, Any]]:
        config = sweep(tmp_path, "after", begin_with=tmp_path / source, trial=trial, **options)
        return list(best_points(config))

    assert points(within=1) == own[::-1]
    assert points(within=0.31) == own[1::-1]
    blocks = {"method/trainable_blocks": {"type": "int", "low": 20, "high": 24}}
    assert points(within=1, space=blocks) == [{"method/trainable_blocks": 20}]  # the nearest of all three
    with pytest.raises(ConfigError, match=r"^begin_with = .*: has no trial near its full fine-tuning that could"):
        points(within=0.1)
    with pytest.raises(ConfigError, match=r"^begin_with = nope: is neither the folder of a sweep nor a front.json"):
        best_points(sweep(tmp_path, "after", begin_with="nope"))


def test_a_front_of_an_earlier_version_is_read(before: SweepConfig, tmp_path: Path) -> None:
    front = FrontFile.read(tmp_path / "before" / "front.json")
    plain = front.model_dump(mode="json", by_alias=True, exclude={"limits"})
    plain["trials"].pop("infeasible")
    for member in plain["front"]:
        member["landmark"] = member.pop("baseline")
    assert FrontFile.model_validate(plain).front == front.front
    for member in plain["front"]:
        member.pop("landmark"), member.pop("origin")
    assert FrontFile.model_validate(plain).front[0].baseline is None


@pytest.mark.parametrize("source", ["before", "before/front.json"])
def test_results_of_other_images_or_weights_do_not_compare(before: SweepConfig, tmp_path: Path, source: str) -> None:
    config, said = sweep(tmp_path, "after", warm_start=tmp_path / source), list[str]()
    earlier_results(config, ORIGIN, said.append)
    unknown = "whether its data and starting weights were these is not known"
    assert said == [f"note: there is no fingerprints.json of {tmp_path / source}; {unknown}"]
    keep_fingerprints(ORIGIN, tmp_path / "before", "resume", new=True)
    moved = config.model_copy(
        update={"trial": config.trial.model_copy(update={"data": config.trial.data.model_copy(update={"workers": 3})})}
    )
    assert len(earlier_results(moved, ORIGIN, said.append)) == 5 and len(said) == 1
    for other, words in {
        Fingerprints(data="d2", weights="w1"): r"other data \(fingerprint d2, not d1\)",
        Fingerprints(data="d1", weights="w2"): r"other starting weights \(fingerprint w2, not w1\)",
    }.items():
        with pytest.raises(ConfigError, match=rf"^warm_start = .*: was run otherwise: here are {words}"):
            earlier_results(config, other, said.append)


def test_choices_of_real_numbers_are_found_again_in_the_results_of_the_same_preset(tmp_path: Path) -> None:
    (tmp_path / "preset.yaml").write_text("{type: categorical, choices: [1e-5, 1e-4, 1e-3]}")
    space = {"train/learning_rate": read_mapping(tmp_path / "preset.yaml")}
    trial = {"train": {"epochs": 3, "learning_rate": 1e-3}}
    first = sweep(tmp_path, "first", space=space, trial=trial, sampler="random")
    study = open_study(first, tmp_path)
    enqueue_first(study, first)
    waiting = [trial.system_attrs["fixed_params"] for trial in study.get_trials(deepcopy=False)]
    assert waiting == [{"train/learning_rate": 1e-3}] * 2


def test_conditional_results_are_found_again_by_what_their_configuration_has(tmp_path: Path) -> None:
    def of(name: str, **options: Any) -> SweepConfig:
        return conditional.sweep(name=name, storage=tmp_path, sampler="random", trials=12, **options)

    config, folder = of("before"), tmp_path / "before"
    folder.mkdir()
    (folder / "sweep.json").write_text(config.model_dump_json())
    study = open_study(config, folder)
    study.set_user_attr("reference_point", (0.0, 2e12, 2e8))
    enqueue_first(study, config)
    search = StudySearcher(study, config, Recorder(), everywhere(config), forecast)
    while isinstance(search.suggest("a"), dict):
        search.on_trial_complete("a", report())
    before = [trial.params for trial in study.trials if trial.state.name == "COMPLETE"]
    rates = [params["lora/train/learning_rate"] for params in before if params["way"] == "lora"]
    assert len(before) == 13 and len(rates) > 1
    again = of("again", warm_start=folder)
    study = open_study(again, tmp_path)
    assert feed(study, again, earlier_results(again, ORIGIN, SAID.append)) == 13
    assert [trial.params for trial in study.trials] == before
    lora = conditional.METHODS["lora"]
    low = {"type": "float", "low": 1e-3, "high": min(rates) * 1.01}
    variants = {"lora": lora | {"train/learning_rate": low}, "full": conditional.METHODS["full"]}
    (tmp_path / "narrow").mkdir()
    narrow = of(
        "narrow", warm_start=folder, space=conditional.SPACE | {"way": {"type": "variants", "variants": variants}}
    )
    study = open_study(narrow, tmp_path / "narrow")
    heads = sum(params["way"] == "head" for params in before)  # there is no such variant
    assert feed(study, narrow, earlier_results(narrow, ORIGIN, SAID.append)) == 13 - heads - (len(rates) - 1)
