"""Searches replayed on a table (benchmarks/replay.py, measures.py, searchers.py, search.py)."""

import json
import math
from functools import partial
from typing import Any

import numpy as np
import optuna
import pytest

from alast_tune.errors import ConfigError
from benchmarks import search
from benchmarks.measures import Judge, floor_of, needed, quantiles
from benchmarks.replay import Found, Table, replay
from benchmarks.rivals import _columns
from benchmarks.searchers import Cheapest, Optuna, Ours, Random, RayOptuna
from benchmarks.tabular import everything, sweep_of

SPEC: dict[str, Any] = {
    "trial": {
        "data": {"dataset": "digits", "train_images": 64},
        "model": {"name": "embedded", "image_size": 16},
        "method": {"name": "full"},
        "train": {"epochs": 4, "batch_size": 32, "device": "cpu"},
    },
    "space": {
        "method": {
            "type": "variants",
            "variants": {
                "full": {
                    "method": {"name": "full"},
                    "method/from_block": {"type": "categorical", "choices": [0, 6]},
                    "train/token_keep": {"type": "categorical", "choices": [1.0, 0.5]},
                },
                "reader": {
                    "method": {"name": "reader"},
                    "method/read": {"type": "categorical", "choices": ["linear", "attentive"]},
                },
            },
        }
    },
    "methods": {"full": {"name": "full"}, "paper": {"name": "alast", "reading": "paper"}},
}
SHARES = [1.0, 0.5, 0.6, 0.4, 0.2, 0.3, 1.0, 0.9]
"""FLOPs and peak of the six points and the two baselines, full fine-tuning's being 1."""
ACCURACY = [0.90, 0.894, 0.87, 0.86, 0.60, 0.84, 0.90, 0.88]


def make_table(seeds: int = 2) -> Table:
    """Seed 0 is two points lucky, seed 1 unlucky; an epoch takes its share of seconds."""
    epochs_E = np.arange(1, 5) / 4
    luck_S = [0.02, -0.02][:seeds]
    accuracy_CSE = (np.array(ACCURACY)[:, None] + luck_S)[:, :, None] * epochs_E**0.1
    flops_CSE = np.broadcast_to(np.array(SHARES)[:, None, None] * epochs_E * 1e12, accuracy_CSE.shape)
    peaks_CSE = np.broadcast_to(np.array(SHARES)[:, None, None] * 1e9, accuracy_CSE.shape)
    values_CSEM = np.stack([accuracy_CSE, flops_CSE, peaks_CSE], axis=-1)
    return Table(
        sweep=sweep_of(SPEC),
        baselines=SPEC["methods"],
        seeds=list(range(seeds)),
        values_CSEM=values_CSEM,
        seconds_CSE=np.array(flops_CSE) / 1e11,
        forecasts_C2=values_CSEM[:6, 0, -1, 1:],
    )


class Scripted(Random):
    """Proposes what it is told to, and stops the second trial after an epoch."""

    script = (0, 5, 3)

    def ask(self, number: int, params: dict[str, Any] | None) -> int | None:
        return self.script[number] if number < len(self.script) else None

    def hear(self, number: int, epoch: int, values: Any) -> bool:
        return number != 1


class Resuming(Scripted):
    """Goes on with the stopped one."""

    script = (0, 5, 5)

    def continues(self, number: int) -> int | None:
        return 1 if number == 2 else None


def test_every_point_has_a_number_by_what_is_in_force() -> None:
    table = make_table()

    assert [table.index(params) for params in table.points] == list(range(6))
    assert table.points[5] == {"method": "reader", "reader/method/read": "attentive"}
    everything_drawn = {"method": "reader", "reader/method/read": "linear", "full/method/from_block": 6}
    assert table.index(everything_drawn) == 4  # what is not in force says nothing
    assert [table.baseline(name) for name in ("full", "paper")] == [6, 7]
    assert table.point_of_baseline("full") == 0  # all blocks, all tokens
    assert table.point_of_baseline("paper") is None


def test_a_table_is_read_of_the_seeds_that_all_configurations_have(tmp_path) -> None:
    results = tmp_path / "rows.jsonl"
    curve = {"accuracy": [0.1] * 4, "train_flops": [1] * 4, "peak_bytes": [1] * 4, "seconds": [1.0] * 4}
    keys = [key for key, _ in everything(SPEC, [])]
    rows = [key | {"seed": seed} | curve for seed in (0, 2) for key in keys] + [keys[0] | {"seed": 1} | curve]
    results.write_text("".join(json.dumps(row) + "\n" for row in rows))

    table = Table.read(SPEC, results)

    assert table.seeds == [0, 2]
    assert table.values_CSEM.shape == (8, 2, 4, 3)
    assert (np.diff(table.forecasts_C2[[4, 0], 0]) > 0).all()  # a reader costs less than full fine-tuning
    kept = tmp_path / "rows.costs.json"
    kept.write_text(json.dumps(json.loads(kept.read_text()) | {"costs": [[7.0, 7.0]] * 6}))
    assert (Table.read(SPEC, results).forecasts_C2 == 7.0).all()  # which takes no second forecast

    results.write_text(json.dumps(rows[-1]) + "\n")
    with pytest.raises(ConfigError, match="1 of 8 configurations have a run of one seed"):
        Table.read(SPEC, results)


def test_a_seed_of_the_table_can_be_left_out() -> None:
    table = make_table()
    unlucky = table.of_seeds([1])

    assert unlucky.seeds == [1]
    assert unlucky.finals[0, 0] == pytest.approx(table.finals[0, 0] - 0.02)
    assert unlucky.seconds_CSE.shape == (8, 1, 4)
    with pytest.raises(ConfigError, match="the table has 0, 1"):
        table.of_seeds([0, 2])


def test_a_replay_counts_epochs_when_they_begin_and_stopped_trials_too() -> None:
    found = replay(make_table(), Scripted(make_table(), 0), seed=0, workers=2)

    # Two workers: 0 runs its 4 epochs of 0.25; 5 is stopped after 0.075; 3 begins then, and ends with 0.4 in all.
    assert [trial.config for trial in found] == [3, 0]
    assert found[-1].spent == pytest.approx(1.0 + 0.075 + 0.4)


def test_a_stopped_trial_that_is_gone_on_with_pays_only_for_its_later_epochs() -> None:
    found = replay(make_table(), Resuming(make_table(), 0), seed=0, workers=2)

    assert [trial.config for trial in found] == [5, 0]
    assert found[-1].spent == pytest.approx(1.0 + 0.3)


def test_the_noise_of_a_replay_is_not_drawn_from_the_stream_of_a_search() -> None:
    table = make_table()
    found = replay(table, Random(table, 0), seed=0, workers=1)

    lucky = [trial.values[0] > table.finals[trial.config, 0] for trial in found]
    assert len(lucky) > 30 and lucky != (np.random.default_rng(0).integers(2, size=len(lucky)) == 0).tolist()


def test_a_replay_ends_with_its_budget() -> None:
    found = replay(make_table(), Random(make_table(), 0), seed=0, workers=1, budget=5.0)

    assert 4.0 < found[-1].spent < 6.0


def test_only_what_comes_near_full_fine_tuning_counts() -> None:
    table = make_table()
    judge, everywhere = Judge(table, floor_of(table, 0.05)), Judge(table, floor_of(table, None))
    cheap, good = Found(1.0, 4, (0.62, 0.2e12, 0.2e9)), Found(2.0, 1, (0.914, 0.5e12, 0.5e9))

    assert judge.curve([cheap]) == [(1.0, 0.0)]
    assert everywhere.curve([cheap])[0][1] > 0.5
    # Of the box above 0.85, between 1.1 times the cost of full and nothing: (0.894 - 0.85) x (0.6 / 1.1) ** 2.
    (_, _), (spent, share) = judge.curve([cheap, good])
    whole = judge.curve(Found(0.0, config, (0.0, 0.0, 0.0)) for config in range(8))[-1][1]
    assert whole == pytest.approx(1.0)
    assert share * judge.attainable == pytest.approx((0.894 - 0.85) / 0.15 * (0.6 / 1.1) ** 2)
    assert needed([(1.0, 0.0), (spent, share)], share) == 2.0
    assert needed([(1.0, 0.0)], 0.5) == math.inf


def test_an_answer_is_as_accurate_as_the_best_and_as_cheap_as_such_can_be() -> None:
    judge = Judge(make_table(), 0.85)

    assert judge.answers == {1}  # 0.894 against 0.90, at half of the cost
    assert judge.answered([Found(1.0, 0, (0.9, 1.0, 1.0)), Found(3.0, 1, (0.9, 1.0, 1.0))]) == 3.0
    assert judge.answered([]) == math.inf


def test_luck_is_what_the_believed_front_saw_above_the_mean_of_other_runs() -> None:
    judge = Judge(make_table(), 0.85)
    lucky, dominated = Found(1.0, 1, (0.914, 0.5e12, 0.5e9)), Found(2.0, 0, (0.88, 1e12, 1e9))
    useless = Found(3.0, 4, (0.58, 0.2e12, 0.2e9))

    assert judge.luck([lucky, dominated, useless]) == pytest.approx(0.04)  # the other run is as unlucky
    assert math.isnan(judge.luck([useless]))
    assert math.isnan(Judge(make_table(seeds=1), 0.85).luck([lucky]))
    assert quantiles([math.nan, 0.04]) == [0.04, 0.04, 0.04]
    assert search._cell(quantiles([math.nan]), "luck", 30.0) == "-"


def test_quantiles_are_the_median_and_between_what_most_seeds_lie() -> None:
    assert quantiles(iter([math.inf, *map(float, range(10))])) == [5.0, 1.0, 9.0]
    for seeds in (24, 30):  # the lower of two, however many
        assert quantiles([*map(float, range(seeds // 2)), *[math.inf] * (seeds // 2)])[0] == seeds / 2 - 1
        assert quantiles([*map(float, range(seeds // 2 - 1)), *[math.inf] * (seeds // 2 + 1)])[0] == math.inf


@pytest.mark.parametrize(
    "searcher",
    [
        Random,
        Cheapest,
        RayOptuna,
        partial(Optuna, optuna.samplers.NSGAIISampler),
        partial(Optuna, partial(optuna.samplers.TPESampler, multivariate=True, group=True), constrained=True),
        partial(Optuna, optuna.samplers.TPESampler, flat=True),
        partial(Ours, scheduler="none"),
    ],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_search_begins_with_the_baseline_and_finds_points_of_every_variant(searcher) -> None:
    table = make_table()

    found = replay(table, searcher(table, 1, ["full"]), seed=1, workers=2, budget=10.0)

    assert table.baseline("full") in [trial.config for trial in found]
    assert {table.points[trial.config]["method"] for trial in found if trial.config < 6} == {"full", "reader"}


@pytest.mark.parametrize("searcher", [Random, partial(Optuna, optuna.samplers.TPESampler)])
def test_what_has_been_proposed_is_not_tried_again(searcher) -> None:
    table = make_table()
    searcher = searcher(table, 0, ["full"])

    assert sorted(searcher.suggest(number) for number in range(6)) == [1, 2, 3, 4, 5, 6]  # not 0, which is full's point
    assert searcher.suggest(6) in range(6)  # when all have been


def test_a_sampler_of_optunas_knows_the_order_of_numbers_and_where_the_baseline_stands_in_it() -> None:
    table = make_table()
    searcher = Optuna(optuna.samplers.RandomSampler, table, 0, ["full"])
    searcher.suggest(0)
    trial = searcher._trials[0]

    assert trial.params == {"method": "full", "full/method/from_block": 0, "full/train/token_keep": 1}  # of 0.5, 1.0
    assert trial.distributions["full/train/token_keep"] == optuna.distributions.IntDistribution(0, 1)


def test_cheapest_first_goes_through_all_points_by_their_forecast_flops() -> None:
    searcher = Cheapest(table := make_table(), 0)
    asked = [searcher.suggest(number) for number in range(7)]
    assert asked.pop() is None and sorted(place for place in asked if place is not None) == list(range(6))
    assert (np.diff(table.forecasts_C2[asked, 0]) >= 0).all() and table.forecasts_C2[0, 0] > table.forecasts_C2[5, 0]


def test_many_workers_of_ours_get_different_points_at_once() -> None:
    table = make_table()
    searcher = Ours(table, 0, ["full"])

    asked = [searcher.suggest(number) for number in range(16)]

    assert sorted(place for place in asked if place is not None) == [0, 1, 2, 3, 4, 5, 6]


def test_columns_are_shared_by_parameters_of_one_path_and_names_have_one_each() -> None:
    columns_CD = _columns(make_table())

    assert columns_CD.shape == (6, 2 + 1 + 1 + 2)  # variants, block, tokens, two ways to read
    assert columns_CD[5].tolist() == [0.0, 1.0, 0.5, 0.5, 0.0, 1.0]


def test_a_rival_that_is_not_installed_is_refused_in_a_line(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["search.py", "benchmarks/specs/grid-digits.yaml", "--only", "MOASHA"])

    with pytest.raises(SystemExit):
        search.main()

    assert "pip install --no-deps syne-tune; or leave it out" in capsys.readouterr().err
