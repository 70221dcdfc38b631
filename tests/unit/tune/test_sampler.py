"""The cost-aware sampler: its closed forms against Monte Carlo, and what it learns from whom."""

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from alast_tune.config import SweepConfig, combinations, in_force, point_of
from alast_tune.errors import ConfigError
from alast_tune.front import hypervolume, pareto_mask
from alast_tune.results import DIRECTIONS
from alast_tune.tune import history as module
from alast_tune.tune.attributes import BASELINE
from alast_tune.tune.history import TrialHistory
from alast_tune.tune.improvement import Surrogate, _expected_excess, expected_improvement, uncovered_area
from alast_tune.tune.region import search_floor
from alast_tune.tune.sampler import GAINS, SPREAD, EhviSampler
from alast_tune.tune.space import conditions_of, to_optuna, trial_config
from tests.unit.tune import conditional

SPACE: dict[str, BaseDistribution] = {
    "alpha": FloatDistribution(1e-4, 1.0, log=True),
    "floor": FloatDistribution(0.1, 1.0),
    "blocks": IntDistribution(1, 12),
    "backward": CategoricalDistribution(["exact", "residual"]),
    "width": CategoricalDistribution([8, 2, 4]),
}


def costs(params: dict[str, Any]) -> tuple[float, float]:
    return params["blocks"] / 12 * params["floor"] + 0.1, params["floor"] / 2 + 0.2


def accuracy(params: dict[str, Any]) -> float:
    return 1 - math.exp(-3 * costs(params)[0]) * (1.2 if params["backward"] == "residual" else 1.0)


def study(seed: int = 0, space: dict[str, BaseDistribution] = SPACE, **options: Any) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    reference = options.pop("reference", (0.0, 1.2, 1.0))
    return optuna.create_study(directions=DIRECTIONS, sampler=EhviSampler(space, costs, reference, seed))


def search(study: optuna.Study, trials: int, space: dict[str, BaseDistribution] = SPACE) -> None:
    for _ in range(trials):
        trial = study.ask(space)
        study.tell(trial, (accuracy(trial.params), *costs(trial.params)))


def test_the_uncovered_area_is_what_monte_carlo_finds() -> None:
    draw = np.random.default_rng(0)
    others_K2, candidates_C2 = draw.random((6, 2)), draw.random((4, 2))
    points_N2 = draw.random((200_000, 2))
    covered_N = (points_N2[:, None] >= others_K2).all(-1).any(-1)
    for candidate_2, area in zip(candidates_C2, uncovered_area(candidates_C2, others_K2), strict=True):
        assert area == pytest.approx(((points_N2 >= candidate_2).all(-1) & ~covered_N).mean(), abs=0.004)
    assert uncovered_area(np.array([[0.25, 0.5], [1.0, 0.0]]), np.zeros((0, 2))) == pytest.approx([0.375, 0.0])


@pytest.mark.parametrize("points", [0, 1, 2, 40, 400])
@pytest.mark.parametrize("grid", [4, 1000], ids=["ties", "no ties"])
@pytest.mark.parametrize("least", [0.0, 0.45])
def test_the_expected_improvement_is_the_sum_over_slabs_between_accuracies(
    points: int, grid: int, least: float
) -> None:
    """Between two accuracies the area that nobody of higher accuracy covers, times the part of the slab reached."""
    draw = np.random.default_rng(points)
    mean_C, deviation_C, costs_C2 = draw.random(50), 0.01 + 0.2 * draw.random(50), 1.1 * draw.random((50, 2))
    points_F3 = np.round(1.1 * draw.random((points, 3)) * grid) / grid  # a Gaussian process may guess more than 1
    expected_C = np.zeros(50)
    used_F3 = points_F3[(points_F3[:, 1:] < 1).all(axis=1) & (points_F3[:, 0] > least)]
    used_F3 = used_F3[np.argsort(used_F3[:, 0])]
    levels = [least, *used_F3[:, 0], 1.0]
    for place, (low, high) in enumerate(itertools.pairwise(levels)):
        excess_low, excess_high = (
            _expected_excess(mean_C, deviation_C, np.array([[level]]))[0] for level in (low, high)
        )
        higher_K2 = used_F3[place:, 1:]
        higher_K2 = higher_K2[pareto_mask(higher_K2, DIRECTIONS[1:])] if len(higher_K2) else higher_K2
        expected_C += (excess_low - excess_high) * uncovered_area(costs_C2, higher_K2)
    found_C = expected_improvement(mean_C, deviation_C, costs_C2, points_F3, least)
    assert found_C == pytest.approx(expected_C, rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("least", [0.0, 0.45])
def test_the_expected_improvement_is_what_monte_carlo_finds(least: float) -> None:
    draw = np.random.default_rng(1)
    points_F3 = np.c_[draw.uniform(0.3, 0.9, 5), draw.uniform(0.3, 1.1, (5, 2))]
    mean_C, deviation_C, costs_C2 = np.array([0.6, 0.8]), np.array([0.1, 0.3]), np.array([[0.5, 0.4], [0.2, 0.9]])
    reference = (least, 1.0, 1.0)
    before = hypervolume(points_F3, reference, DIRECTIONS)
    for place, gain in enumerate(expected_improvement(mean_C, deviation_C, costs_C2, points_F3, least)):
        drawn = np.minimum(draw.normal(mean_C[place], deviation_C[place], 3000), 1.0)  # no accuracy is above 1
        after = [hypervolume([*points_F3, (one, *costs_C2[place])], reference, DIRECTIONS) for one in drawn]
        assert gain == pytest.approx(np.mean(after) - before, rel=0.06)


def test_proposals_lie_in_the_space_and_none_comes_twice() -> None:
    search(it := study(), 16)
    assert len({tuple(trial.params.values()) for trial in it.trials}) == 16
    for trial in it.trials:
        assert all(SPACE[path]._contains(SPACE[path].to_internal_repr(value)) for path, value in trial.params.items())


def test_a_countable_space_is_used_up_before_anything_repeats() -> None:
    space: dict[str, BaseDistribution] = {
        "blocks": IntDistribution(2, 6, step=2),
        "floor": CategoricalDistribution([0.5, 1.0]),
        "backward": CategoricalDistribution(["exact", "residual"]),
    }
    search(it := study(space=space), 12, space)
    assert len({tuple(trial.params.values()) for trial in it.trials}) == 12
    search(it, 1, space)


def test_it_needs_less_than_random_search_for_the_same_front() -> None:
    reference = (0.0, 1.2, 1.0)

    def spent(sampler: optuna.samplers.BaseSampler, trials: int) -> float:
        search(it := optuna.create_study(directions=DIRECTIONS, sampler=sampler), trials)
        values_TM = np.array([trial.values for trial in it.trials])
        reached_T = np.array([hypervolume(values_TM[: n + 1], reference, DIRECTIONS) for n in range(trials)])
        assert reached_T[-1] >= 0.54  # nine tenths of what there is
        return float(values_TM[: np.argmax(reached_T >= 0.54) + 1, 1].sum())

    ours = [spent(EhviSampler(SPACE, costs, reference, seed), 25) for seed in range(2)]
    theirs = [spent(optuna.samplers.RandomSampler(seed=seed), 100) for seed in range(2)]
    assert np.mean(ours) < 0.5 * np.mean(theirs)


def test_a_search_begins_with_the_cheapest_and_spreads_over_the_costs() -> None:
    sampler = EhviSampler(SPACE, costs, (0.0, 1.2, 1.0), seed=0)
    flops_C = np.arange(101.0)[::-1]
    assert [flops_C[sampler._explore(flops_C, count)] for count in range(5)] == [0, 25, 6, 56, 2]


def test_of_those_that_promise_as_much_the_cheapest_is_proposed(monkeypatch: pytest.MonkeyPatch) -> None:
    search(it := study(), 4)
    monkeypatch.setattr("alast_tune.tune.sampler.expected_improvement", lambda mean_C, *others: np.ones_like(mean_C))
    assert costs(it.ask(SPACE).params)[0] < 0.15


def test_what_runs_is_not_proposed_again_nor_its_neighbourhood() -> None:
    spreads = []
    for seed in range(6):
        search(it := study(seed), 10)
        out = [it.ask(SPACE).params for _ in range(4)]
        assert len({tuple(params.values()) for params in out}) == 4
        spreads.append(np.ptp([costs(params)[0] for params in out]))
    assert np.mean(spreads) > 0.02


def test_beyond_a_limit_nothing_is_proposed_once_costs_are_known() -> None:
    search(it := study(reference=(0.5, 0.6, 0.55)), 16)
    late = [costs(trial.params) for trial in it.trials[5:]]
    assert np.mean([flops < 0.6 and peak < 0.55 for flops, peak in late]) > 0.9


def trial(number: int, state: TrialState, values: Any = None, **attributes: Any) -> Any:
    params = PARAMS | {"blocks": 1 + number % 12}
    one = create_trial(state=state, params=params, distributions=SPACE, values=values, user_attrs=attributes)
    one.number = number
    return one


PARAMS = {"alpha": 0.1, "floor": 0.5, "blocks": 3, "backward": "exact", "width": 4}


def test_what_is_learnt_from_each_end() -> None:
    history = TrialHistory()
    history.update(
        [
            trial(0, TrialState.COMPLETE, [0.6, 4.0, 1.0], curve=[[0.3, 1, 1], [0.6, 4, 1]]),
            trial(1, TrialState.COMPLETE, [0.7, 4.0, 1.0], curve=[[0.3, 1, 0.5], [0.7, 4, 1]]),
            trial(2, TrialState.PRUNED, curve=[[0.2, 2.0, 0.9]]),
            trial(3, TrialState.FAIL, reason="the loss of epoch 2 is nan"),
            trial(4, TrialState.FAIL, reason="crashed"),
            trial(5, TrialState.PRUNED),
            trial(6, TrialState.RUNNING),
        ]
    )
    observations = history.observations()
    assert len(observations) == 4
    (projected,) = (observation for observation in observations if observation[2] > 0)
    # The mean gain of those that went on; costs have grown as theirs, whose second epoch was on larger images.
    assert projected[1] == pytest.approx((0.2 + 0.35, 8.0, 1.35))
    assert projected[2] == pytest.approx(0.05)  # and its spread
    (failed,) = (observation for observation in observations if math.isnan(observation[1][1]))
    assert failed[1][0] == 0.6  # the worst
    assert failed[0]["blocks"] == 1 + 3  # of the one that is to blame itself
    assert history.front().tolist() == [[0.7, 4.0, 1.0]]


def test_a_stopped_trial_teaches_nothing_before_another_has_gone_on() -> None:
    history = TrialHistory()
    history.update(
        [
            trial(0, TrialState.COMPLETE, [0.6, 4.0, 1.0], curve=[[0.6, 4.0, 1.0]]),
            trial(1, TrialState.PRUNED, curve=[[0.2, 2.0, 0.9]]),
        ]
    )
    assert [values for _, values, _ in history.observations()] == [(0.6, 4.0, 1.0)]


def test_what_is_not_in_the_space_is_drawn_at_random() -> None:
    it = study()
    assert 0 <= it.ask(SPACE).suggest_float("other", 0, 1) <= 1


def test_a_baseline_tells_its_accuracy_but_not_its_costs_and_only_where_it_is_a_point_of_the_space() -> None:
    history = TrialHistory(["full"])
    trials = [trial(0, TrialState.COMPLETE, [0.9, 9.0, 9.0], **{BASELINE: "full"})]
    history.update(trials)
    history.update([*trials, trial(1, TrialState.COMPLETE, [0.8, 9.0, 9.0], **{BASELINE: "paper"})])
    ((_, values, error),) = history.observations()
    assert (values[0], math.isnan(values[1]), error > 0) == (0.9, True, True)
    assert history.front().tolist() == [[0.9, 9.0, 9.0]]
    assert history.known == set()  # that point itself may still be tried


@pytest.mark.parametrize("state", [TrialState.RUNNING, TrialState.PRUNED, TrialState.COMPLETE])
def test_the_region_follows_from_few_trials_as_from_all(state: TrialState) -> None:
    sweep = SweepConfig.model_validate({"within": 0.02})
    values = [0.8, 9.0, 9.0] if state == TrialState.COMPLETE else None
    trials = [trial(0, TrialState.WAITING, **{BASELINE: "full"})]
    history = TrialHistory()
    history.update(trials)
    trials = [trial(0, state, values, **{BASELINE: "full"})]
    trials += [trial(number, TrialState.COMPLETE, [0.4 + number / 100, 4.0, 1.0]) for number in range(1, 30)]
    history.update(trials)
    assert len(history.telling(trials)) < 4
    assert search_floor(sweep, {}, history.telling(trials)) == search_floor(sweep, {}, trials) > 0


def test_where_memory_ran_out_little_more_is_proposed() -> None:
    """Memory runs out, unforeseen, where tokens are many, and accuracy would be best."""

    def wasted(notices: bool) -> int:
        one = study()
        for _ in range(40):
            asked = one.ask(SPACE)
            if asked.params["floor"] <= 0.4:
                one.tell(asked, (accuracy(asked.params), *costs(asked.params)))
                continue
            if notices:
                asked.set_constraint("max_memory", 1.0)
            one.tell(asked, state=TrialState.PRUNED)
        return sum(trial.state == TrialState.PRUNED for trial in one.trials)

    assert wasted(notices=True) <= wasted(notices=False) / 2


def test_time_and_memory_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY", 20)
    monkeypatch.setattr(module, "LARGEST_FRONT", 10)
    rising = [trial(n, TrialState.COMPLETE, [n / 100, 1.0 + n**2, 1.0]) for n in range(50)]
    history = TrialHistory()
    for number in range(50):
        history.update(rising[: number + 1])
    assert len(history.front()) == 10  # of 50
    assert [observation[1][0] for observation in history.observations()] == [n / 100 for n in range(35, 50)]
    history = TrialHistory()
    history.update([trial(n, TrialState.COMPLETE, [n / 100, 1.0, 1.0]) for n in range(50)])
    assert [observation[1][0] for observation in history.observations()] == [n / 100 for n in (49, *range(30, 49))]


def test_how_far_below_the_region_a_trial_lies_changes_no_proposal(monkeypatch: pytest.MonkeyPatch) -> None:
    def proposal(bad: float) -> dict[str, Any]:
        it = study(reference=(0.8, 1.2, 1.0))
        it.sampler, drawing = optuna.samplers.RandomSampler(seed=1), it.sampler
        for place in range(9):
            trial = it.ask(SPACE)
            it.tell(trial, (bad if place % 3 else 0.9, *costs(trial.params)))
        it.sampler = drawing
        return it.ask(SPACE).params

    assert proposal(0.1) == proposal(0.7)
    monkeypatch.setattr("alast_tune.tune.sampler.DEPTH", 1.0)
    assert proposal(0.1) != proposal(0.7)


def test_a_surrogate_interpolates_and_knows_less_far_away() -> None:
    X_TD = np.linspace(0, 0.5, 12)[:, None]
    surrogate = Surrogate(least=0.1)
    surrogate.fit(X_TD, np.sin(6 * X_TD[:, 0]), np.zeros(12), 12)
    mean_C, deviation_C = surrogate.predict(np.array([[0.26], [1.0]]))
    assert mean_C[0] == pytest.approx(math.sin(6 * 0.26), abs=0.05)
    assert deviation_C[1] > 2 * deviation_C[0]


def test_a_space_in_which_nothing_works_is_refused_with_the_reason() -> None:
    def refused(params: dict[str, Any]) -> tuple[float, float]:
        raise ConfigError("method.max_budget", 0.3, "is below the floor")

    sampler = EhviSampler(SPACE, refused, (0.0, 1.0, 1.0), seed=0)
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    with pytest.raises(ConfigError, match=r"space = .*: none of \d+ points of it works: method.max_budget = 0.3"):
        study.ask(SPACE)


def conditional_sampler(**options: Any) -> EhviSampler:
    config = conditional.sweep(**options)

    def costs_of(params: dict[str, Any]) -> tuple[float, float]:
        found = conditional.forecast(trial_config(config, params))
        return found.train_flops, found.peak_bytes

    conditions = conditions_of(config.space)
    return EhviSampler(to_optuna(config.space), costs_of, (0.0, 2e12, 4e7), seed=0, conditions=conditions)


def test_conditional_parameters_of_a_path_share_a_column_and_are_in_the_middle_where_none_is_in_force() -> None:
    points = [
        {"train/batch_size": 16, "way": "lora", "lora/method/rank": 16, "lora/train/learning_rate": 1e-2},
        {"train/batch_size": 32, "way": "full", "full/train/learning_rate": 1e-5, "full/train/optimizer": "sgd"},
        {"train/batch_size": 32, "way": "head"},
    ]
    assert conditional_sampler()._encode(points) == pytest.approx(
        np.array(
            [  # batch size; lora, full or head; rank; learning rate; adam, sgd
                [0, 1, 0, 0, 1, 0.5, 0, 0],
                [1, 0, 1, 0, 0.5, 0, 0, 1],
                [1, 0, 0, 1, 0.5, 0.5, 0, 0],
            ]
        )
    )


def test_candidates_have_each_variant_as_often_and_nothing_of_another() -> None:
    config, sampler = conditional.sweep(), conditional_sampler()
    drawn = sampler._points(3000)
    assert all(list(params) == in_force(config.space, params) for params in drawn)
    counts = Counter(params["way"] for params in drawn)
    assert counts.keys() == conditional.METHODS.keys()
    assert all(abs(count - 1000) < 120 for count in counts.values())


def test_half_of_the_candidates_keep_the_variant_and_half_of_what_is_in_force() -> None:
    sampler = conditional_sampler()
    other = {"train/batch_size": 16, "way": "lora", "lora/method/rank": 4, "lora/train/learning_rate": 0.05}
    near = sampler._points(4000, [other])[1::2]
    kept = [params for params in near if params["way"] == "lora"]
    assert len(kept) / len(near) == pytest.approx(0.5 + 0.5 / 3, abs=0.05)  # kept, or drawn by chance
    rates = [params["lora/train/learning_rate"] == 0.05 for params in kept]
    assert np.mean(rates) == pytest.approx(0.5, abs=0.05)
    assert all(set(params) == {"train/batch_size", "way"} for params in near if params["way"] == "head")


def test_a_countable_conditional_space_is_looked_at_as_a_whole() -> None:
    assert conditional_sampler()._all == []  # real parameters
    rates = {"type": "categorical", "choices": [1e-4, 1e-3, 1e-2]}
    methods = {name: settings | {"train/learning_rate": rates} for name, settings in conditional.METHODS.items()}
    space = conditional.SPACE | {"way": {"type": "variants", "variants": methods}}
    config = conditional.sweep(space=space)
    assert conditional_sampler(space=space)._all == list(combinations(config.space))
    assert len(list(combinations(config.space))) == 2 * (2 * 3 + 3 * 2 + 3)
    many = {"type": "int", "low": 0, "high": 1000}
    methods = {"lora": methods["lora"] | {"train/accumulate": many | {"low": 1}}, "head": methods["head"]}
    assert conditional_sampler(space={"way": {"type": "variants", "variants": methods}})._all == []


def test_a_conditional_space_is_searched_with_less_than_by_chance() -> None:
    """The made-up answer is LoRA at a high rate: its own range must be learnt, not its share of the space."""
    config = conditional.sweep()

    def best(sampler: optuna.samplers.BaseSampler) -> float:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        it = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
        for _ in range(20):
            trial = it.ask()
            params = point_of(config.space, lambda one, of=trial: of._suggest(one.name, space[one.name]))
            made = trial_config(config, params)
            costs = conditional.forecast(made)
            it.tell(trial, (conditional.accuracy(made), costs.train_flops, costs.peak_bytes))
        values = [(t.values[0], t.values[1] / 2e12, t.values[2] / 4e7) for t in it.trials]
        return hypervolume(values, (0.0, 1.0, 1.0), DIRECTIONS)

    space = to_optuna(config.space)
    by_chance = [best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(5)]
    assert best(conditional_sampler()) > max(by_chance)


def test_from_which_accuracy_on_a_proposal_is_worth_something_is_asked_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[float] = []

    def improvement(mean_C: Any, deviation_C: Any, costs_C2: Any, points_F3: Any, least: float) -> Any:
        used.append(least)
        return np.ones_like(mean_C)

    monkeypatch.setattr("alast_tune.tune.sampler.expected_improvement", improvement)
    sampler = EhviSampler(SPACE, costs, (0.0, 1.0, 1.0), 0, least=lambda trials: max(t.values[0] for t in trials))
    it = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    search(it, SPREAD + 2)
    best = list(itertools.accumulate((trial.values[0] for trial in it.trials), max))
    assert set(used) == {best[SPREAD - 1], best[SPREAD]}  # for the first two trials that are no exploration


def test_what_proposals_are_expected_to_add_is_known_and_falls_as_the_front_grows() -> None:
    it = study()
    gains = []
    for _ in range(SPREAD + 38):
        search(it, 1)
        gains.append(it.sampler.expected_gain)  # type: ignore[attr-defined]
    assert gains[:GAINS] == [None] * GAINS
    known = [gain for gain in gains if gain is not None]
    assert len(known) >= 30 and math.isfinite(known[-1])
    assert 0 <= known[-1] < 0.2 * known[0]
