"""From trials to front.json: who may be a member, and what is said of the others."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alast_tune.config import Limits, TrialConfig
from alast_tune.errors import ConfigError, NothingCompleteError
from alast_tune.results import FrontFile, FrontMember, Region, TrialCounts, TrialResult
from alast_tune.summary import (
    FrontTracker,
    check_complete,
    joint_front,
    summarise,
    within,
)

REFERENCE = (0.0, 4.0, 8.0)


def result(
    number: int, state: Any = "complete", values: tuple[float, ...] | None = None, epochs: int = 3
) -> TrialResult:
    return TrialResult(number, state, TrialConfig(), {}, values, epochs)


def test_only_complete_trials_are_members_cheapest_first() -> None:
    front = summarise(
        "s",
        [
            result(0, values=(0.9, 3.0, 4.0)),
            result(1, values=(0.5, 1.0, 2.0)),
            result(2, values=(0.4, 2.0, 2.0)),
            result(3, "pruned", epochs=1),
            result(4, "failed"),
            result(5, "running"),
        ],
        REFERENCE,
        {0: 0.8},
    )
    assert [member.trial_id for member in front.front] == ["0001", "0000"]
    assert [member.test_accuracy for member in front.front] == [None, 0.8]
    assert front.trials == TrialCounts(total=6, complete=3, pruned=1, failed=1)
    # Two boxes, 0.9 x 1 x 4 and 0.5 x 3 x 6, that share 0.5 x 1 x 4.
    assert front.hypervolume == pytest.approx(3.6 + 9.0 - 2.0)
    assert front.hypervolume_share == pytest.approx(10.6 / 32)
    assert front.knee in {"0000", "0001"}


def test_a_front_is_made_again_only_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr("alast_tune.summary.FrontMember", lambda **values: made.append(values) or FrontMember(**values))
    tracker = FrontTracker("s", REFERENCE, Limits(), [result(0, values=(0.9, 3.0, 4.0))])
    before = tracker.front
    assert not tracker.add(result(1, values=(0.8, 3.0, 4.0))) and not tracker.add(result(2, "failed"))
    assert tracker.front.front is before.front and tracker.front.trials.total == 3
    assert len(made) == 1
    assert tracker.add(result(3, values=(0.9, 3.0, 4.0)))  # as good as the first: both are on it
    assert [member.trial_id for member in tracker.front.front] == ["0000", "0003"]
    assert tracker.add(result(4, values=(0.95, 1.0, 1.0)))
    assert [member.trial_id for member in tracker.front.front] == ["0004"]
    assert tracker.front == summarise("s", ENDED, REFERENCE)


ENDED = [
    result(0, values=(0.9, 3.0, 4.0)),
    result(1, values=(0.8, 3.0, 4.0)),
    result(2, "failed"),
    result(3, values=(0.9, 3.0, 4.0)),
    result(4, values=(0.95, 1.0, 1.0)),
]


def test_trials_that_were_never_launched_are_no_progress() -> None:
    foreseen = replace(result(1, "infeasible", epochs=0), launched=False)
    live = FrontTracker("s", REFERENCE, Limits(), [result(0, values=(0.9, 3.0, 4.0))])
    live.add(foreseen)
    live.add(result(2, "failed"))
    resumed = FrontTracker("s", REFERENCE, Limits(), [result(0, values=(0.9, 3.0, 4.0)), foreseen, result(2, "failed")])
    assert live.launched == resumed.launched == 2
    assert live.counts.total == resumed.counts.total == 3


def test_no_complete_trial_is_an_empty_front(tmp_path: Path) -> None:
    front = summarise("s", [result(0, "failed")], REFERENCE)
    assert (front.front, front.hypervolume, front.hypervolume_share, front.knee) == ((), 0.0, 0.0, None)
    front.write(tmp_path / "front.json")
    assert FrontFile.read(tmp_path / "front.json") == front
    assert [path.name for path in tmp_path.iterdir()] == ["front.json"]


NEAR = Region(source="full", floor=0.6, within=0.05)
PENDING = Region(source="pending", within=0.05)
TWO = [result(0, values=(0.9, 3.0, 4.0)), result(1, values=(0.5, 1.0, 2.0))]


def test_hypervolume_counts_the_region_and_the_front_has_everybody() -> None:
    front = summarise("s", TWO, REFERENCE, region=NEAR)
    assert [member.trial_id for member in front.front] == ["0001", "0000"]
    assert front.reference_point == (0.6, 4.0, 8.0) and front.region == NEAR
    assert front.hypervolume == pytest.approx(0.3 * 1 * 4)
    assert front.hypervolume_share == pytest.approx(0.3 * 1 * 4 / (0.4 * 4 * 8))
    assert within(front, Limits(max_flops=3.5)).hypervolume == front.hypervolume  # limits move no reference


def test_of_two_limits_the_stricter_one_holds() -> None:
    front = summarise("s", TWO, REFERENCE, limits=Limits(max_flops=2.0, min_accuracy=0.4))
    asked = within(front, Limits(max_flops=3.0, min_accuracy=0.5, max_memory=5)).limits
    assert asked == Limits(max_flops=2.0, min_accuracy=0.5, max_memory=5)
    assert joint_front([front, front])[1].limits == front.limits
    assert joint_front([front, summarise("t", TWO, REFERENCE)])[1].limits == Limits()


def test_hypervolume_is_not_known_before_the_region_is() -> None:
    tracker = FrontTracker("s", REFERENCE, Limits(), TWO, region=PENDING)
    assert (tracker.front.hypervolume, tracker.front.hypervolume_share) == (None, None)
    assert tracker.front.hypervolumes == {} and tracker.front.best_accuracy == 0.9
    tracker.measure_in(NEAR)
    assert tracker.front == summarise("s", TWO, REFERENCE, region=NEAR)
    assert tracker.front.hypervolumes.keys() == {"hypervolume", "hypervolume_share"}


@pytest.mark.parametrize("region", [NEAR, PENDING])
def test_the_region_is_in_the_file_and_older_files_count_everything(tmp_path: Path, region: Region) -> None:
    file = tmp_path / "front.json"
    front = summarise("s", TWO, REFERENCE, region=region)
    front.write(file)
    assert FrontFile.read(file) == front
    summarise("s", TWO, REFERENCE).write(file)
    values = json.loads(file.read_text())
    del values["region"]
    file.write_text(json.dumps(values))
    old = FrontFile.read(file)
    assert old.region == Region() and old.reference_point == REFERENCE
    assert old.hypervolume_share == pytest.approx(10.6 / 32)


def test_fronts_of_one_reference_keep_their_numbers_and_others_have_the_lower_one() -> None:
    one, same = (summarise(name, TWO, REFERENCE, region=NEAR) for name in "ab")
    (a, _), joint = joint_front([one, same])
    assert a.hypervolume == one.hypervolume == joint.hypervolume and joint.region == Region(source="joint", floor=0.6)
    lower = summarise("c", TWO, REFERENCE, region=Region(source="min_accuracy", floor=0.5))
    (a, c), joint = joint_front([one, lower])
    assert a.reference_point == c.reference_point == joint.reference_point == (0.5, 4.0, 8.0)
    assert a.hypervolume == c.hypervolume == lower.hypervolume == pytest.approx(0.4 * 1 * 4)
    assert joint_front([one, summarise("d", TWO, REFERENCE, region=PENDING)])[1].reference_point == REFERENCE


def test_fronts_of_several_sweeps_are_measured_from_one_point_and_joined() -> None:
    first = summarise("a", [result(0, values=(0.9, 3.0, 4.0)), result(1, values=(0.5, 1.0, 2.0))], (0.0, 4.0, 4.0))
    second = summarise("b", [result(0, values=(0.8, 2.0, 2.0)), result(1, values=(0.5, 1.0, 3.0))], (0.0, 2.0, 8.0))
    (a, b), joint = joint_front([first, second])
    assert a.reference_point == b.reference_point == joint.reference_point == REFERENCE
    # Two boxes each, measured from (0, 4, 8), less what they share.
    assert a.hypervolume == pytest.approx(0.9 * 1 * 4 + 0.5 * 3 * 6 - 0.5 * 1 * 4)
    assert b.hypervolume == pytest.approx(0.8 * 2 * 6 + 0.5 * 3 * 5 - 0.5 * 2 * 5)
    assert [member.trial_id for member in joint.front] == ["a/0001", "b/0000", "a/0000"]
    assert joint.hypervolume >= max(a.hypervolume, b.hypervolume)
    assert joint.trials.complete == 4 and joint.sweep == "a + b"


def test_a_result_that_a_warm_start_carried_over_is_in_the_joint_front_once() -> None:
    values = (0.9, 3.0, 4.0)
    carried = TrialResult(0, "complete", TrialConfig(), {}, values, 3, origin="a")
    _, joint = joint_front(
        [summarise("a", [result(5, values=values)], REFERENCE), summarise("b", [carried], REFERENCE)]
    )
    assert [member.trial_id for member in joint.front] == ["a/0005"]


def test_sweeps_on_other_images_do_not_compare() -> None:
    other = TrialConfig.model_validate({"data": {"split_seed": 7}})
    fronts = [
        summarise(name, [TrialResult(0, "complete", config, {}, (0.5, 1.0, 1.0), 3)], REFERENCE)
        for name, config in (("a", TrialConfig()), ("b", other))
    ]
    with pytest.raises(ConfigError, match="sweep = b: has data/split_seed = 7, a has 0: such accuracies do not"):
        joint_front(fronts)
    assert joint_front([fronts[0], summarise("empty", [], REFERENCE)])[1].front  # nothing to compare with


def test_sweeps_by_other_measures_of_quality_do_not_compare() -> None:
    by_f1 = TrialConfig.model_validate({"train": {"score": "macro_f1"}})
    fronts = [
        summarise(name, [TrialResult(0, "complete", config, {}, (0.5, 1.0, 1.0), 3)], REFERENCE)
        for name, config in (("a", TrialConfig()), ("b", by_f1), ("c", by_f1))
    ]
    assert [(front.score, front.objectives[0].name) for front in fronts[:2]] == [
        ("accuracy", "accuracy"),
        ("macro_f1", "accuracy"),
    ]
    assert fronts[1].objectives[0].unit.startswith("macro F1") and fronts[1].score_label == "macro F1"
    with pytest.raises(ConfigError, match="sweep = b: has train/score = macro_f1, a has accuracy: such accuracies do"):
        joint_front(fronts[:2])
    joint = joint_front([summarise("empty", [], REFERENCE), *fronts[1:]])[1]
    assert joint.score == within(fronts[1], Limits()).score == "macro_f1"


def test_earlier_results_are_counted_apart() -> None:
    trials = [result(0, values=(0.9, 2.0, 4.0)), replace(result(1, values=(0.8, 1.0, 2.0)), origin="before")]
    front = summarise("s", trials, REFERENCE)
    assert (front.trials.total, front.trials.complete, front.trials.earlier) == (1, 1, 1)
    assert f"{len(front.front)} of {front.candidates}" == "2 of 2 results (1 complete trials, 1 earlier)"
    old = front.model_copy(update={"trials": front.trials.model_copy(update={"earlier": 0})})
    assert old.candidates == front.candidates  # files of before say it by their members alone


def test_a_sweep_without_a_complete_trial_says_the_commonest_reason() -> None:
    one, *others = (replace(result(n, "failed"), reason=why) for n, why in enumerate(("lost", "[a]", "[a]")))
    earlier = replace(result(3, values=(0.8, 1.0, 2.0)), origin="before")
    with pytest.raises(NothingCompleteError, match=r"^sweep s has no complete trial; 2 of 3 failed, \[a\]$"):
        check_complete("s", [one, *others, earlier])
    with pytest.raises(NothingCompleteError, match=r"^sweep s has no complete trial$"):
        check_complete("s", [])
    check_complete("s", [one, result(4, values=(0.8, 1.0, 2.0))])
    reasons = {"peak 900 MiB is above 1.00 MiB": 899.0, "peak 1.50 GiB is above 1.00 MiB": 1535.0}
    over = [replace(one, number=n, reason=why, excess=by) for n, (why, by) in enumerate(reasons.items())]
    with pytest.raises(NothingCompleteError, match=r"trial; 2 of 2 failed, peak 900 MiB is above 1.00 MiB$"):
        check_complete("s", over[::-1])  # of the same reason the nearest
