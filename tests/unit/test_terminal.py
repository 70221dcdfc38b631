"""What a person sees: what a sweep has found, and its front as a table."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from alast_tune.config import TrialConfig, apply_params
from alast_tune.other_seeds import reseeded
from alast_tune.plots import fronts_html, report_html
from alast_tune.plots.cloud import Cloud
from alast_tune.progress import outcome
from alast_tune.results import FrontFile, Region, Reseeded, SeedRun, TrialResult
from alast_tune.summary import joint_front, summarise, within
from alast_tune.terminal import SeedsTable, answers, comparison_table, describe, front_table
from tests.unit import fronts


def shown(thing: object, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


PROMOTE = "alast-tune promote demo --pick {} -o best.yaml"
NEAR = "trial 0013 (ALaST, K 11): 0.9300, 51% of the FLOPs, 57% of the memory, 0.55 of the time"
CHEAP = "trial 0014 (ALaST, K 12): 0.9000, 40% of the FLOPs, 50% of the memory, 0.40 of the time"


def test_the_answers_are_the_cheapest_near_full_fine_tuning_with_what_they_take() -> None:
    assert list(answers(fronts.front(), ["demo"])) == [
        f"within 1 point of full fine-tuning: {NEAR}; {PROMOTE.format('0013')}",
        f"within 5 points of full fine-tuning: {CHEAP}; {PROMOTE.format('0014')}",
    ]


def test_the_answers_end_with_how_sure_they_are_where_chance_is_larger_than_a_point() -> None:
    *_, last = answers(fronts.front().model_copy(update={"validation_images": 24}), ["demo"])
    assert last.startswith("how sure: one of 24 validation images is 4.2 points, the standard error of ")


def test_a_trial_that_is_two_answers_is_said_once() -> None:
    lead = "within 1 point of full fine-tuning, also within 2 points"
    assert list(answers(fronts.front(), ["demo"], tolerances=[0.01, 0.02])) == [
        f"{lead}: {NEAR}; {PROMOTE.format('0013')}"
    ]


def test_under_limits_the_most_accurate_trial_that_keeps_them_is_an_answer() -> None:
    small = within(fronts.front(), fronts.front(max_memory="60MiB").limits)
    best, cheap = answers(small, ["demo"])
    assert best.startswith("within 1 point of full fine-tuning, also best under your limits: trial 0013 (ALaST, K 11)")
    assert cheap.startswith("within 5 points of full fine-tuning: trial 0014")
    smaller = within(fronts.front(), fronts.front(max_memory="50MiB").limits)
    near, best = answers(smaller, ["demo"])
    assert near == "within 1 point of full fine-tuning: nothing"
    assert best.startswith("within 5 points of full fine-tuning, also best under your limits: trial 0014")
    (nothing,) = answers(within(smaller, fronts.front(max_flops=1.0).limits), ["demo"], tolerances=[0.01])
    assert nothing == "within 1 point of full fine-tuning, also best under your limits: nothing"


def over_seeds(front: FrontFile, **accuracies: tuple[float, float]) -> Reseeded:
    """Members, ``t0013`` one of them, with two other seeds at their own cost."""
    members = [member for member in front.front if f"t{member.trial_id}" in accuracies]
    runs = {
        member.trial_id: [
            SeedRun(seed=1 + n, objectives=member.objectives | {"accuracy": accuracy}, test_accuracy=accuracy)
            for n, accuracy in enumerate(accuracies[f"t{member.trial_id}"])
        ]
        for member in members
    }
    return reseeded(members, front.sweep, runs)


def test_answers_are_by_the_means_of_other_seeds_where_all_that_counts_has_them() -> None:
    front = fronts.front().model_copy(update={"region": Region(source="full", floor=0.89, within=0.05)})
    again = over_seeds(front, t0000=(0.92, 0.94), t0001=(0.9, 0.9), t0013=(0.91, 0.93), t0014=(0.87, 0.90))
    near, cheap = answers(front, ["demo"], again)
    mean = NEAR.replace("0.9300", "0.9200").removesuffix(", 0.55 of the time")  # which the first runs took
    assert near == f"within 1 point of full fine-tuning, in the mean of 2 other seeds: {mean}; {PROMOTE.format('0013')}"
    assert cheap.startswith(
        "within 5 points of full fine-tuning, in the mean of 2 other seeds: trial 0014 (ALaST, K 12): "
    )
    *found, newer = answers(front, ["demo"], over_seeds(front, t0000=(0.92, 0.94), t0001=(0.9, 0.9), t0014=(0.87, 0.9)))
    assert found == list(answers(front, ["demo"]))
    assert newer == "other seeds: not of 0013; so answers are of the first runs, until --reseed has run all"


def test_the_table_of_other_seeds_fits_eighty_columns_and_says_who_is_who() -> None:
    front = fronts.front().model_copy(update={"region": Region(source="full", floor=0.89, within=0.05)})
    again = over_seeds(front, t0000=(0.92, 0.94), t0001=(0.9, 0.9), t0013=(0.91, 0.93), t0014=(0.87, 0.90))
    lines = shown(SeedsTable(front, again), 80).splitlines()
    assert max(map(len, lines)) <= 80 and "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    rows = {row.split()[0]: row for row in lines if row.strip().startswith("00")}
    assert rows["0013"].split()[1:] == ["*", "ALaST", "0.9200", "±", "0.0141", "0.9200", "51%", "57%", "96%"]
    assert "full fine-tuning" in rows["0000"] and lines[-1].startswith("front: the probability")


def test_where_full_fine_tuning_is_unknown_costs_are_said_as_they_are() -> None:
    alone = summarise("s", fronts.trials()[2:], fronts.REFERENCE, limits=fronts.front(min_accuracy=0.5).limits)
    (line,) = answers(alone, ["s"])
    lead = "best under your limits: trial 0013 (ALaST, K 11): 0.9300, 510 GFLOP of FLOPs, 57.0 MiB of memory;"
    assert line.startswith(lead)
    assert list(answers(alone.model_copy(update={"limits": fronts.front().limits}), ["s"])) == []


def test_times_of_other_devices_are_left_out() -> None:
    full, near = fronts.trials()[0], fronts.trial(13, (0.93, 5.1e11, 57), device="another")
    (line,) = answers(summarise("s", [full, near], fronts.REFERENCE), ["s"], tolerances=[0.01])
    assert "57% of the memory; alast-tune" in line and "time" not in line


@pytest.mark.parametrize("beside", [True, False], ids=["of full", "absolute"])
def test_the_table_fits_eighty_columns_and_loses_nothing(beside: bool) -> None:
    front = fronts.front() if beside else summarise("demo", fronts.trials()[1:], fronts.REFERENCE)
    lines = shown(front_table(front), 80).splitlines()
    assert max(map(len, lines)) <= 80 and "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    assert lines[1] == f"hypervolume {front.hypervolume_share:.4f} of everything, from accuracy 0 on"
    head = next(number for number, line in enumerate(lines) if line.startswith("trial"))
    assert lines[head].split() == ["trial", "method", "accuracy", "test", "FLOPs", "memory"]
    rows = lines[head + 2 :]
    (place,) = (number for number, row in enumerate(rows) if row.startswith("0013"))
    costs = ["51%", "57%", "(57.0", "MiB)"] if beside else ["510", "GFLOP", "57.0", "MiB"]
    star = ["*"] if beside else []  # of the whole front another is the knee
    assert rows[place].split() == ["0013", *star, "ALaST", "0.9300", "0.9300", *costs]
    words = "alpha 0.00014, K 11, floors 0.12/0.46/0.79, budget 0.54, residual, lr 0.00083"
    assert rows[place + 1] == f"  {words}" and len(rows[place + 1]) == 79
    paper = next(row for row in rows if row.startswith("0001"))
    assert paper.split()[1:6] == ["ALaST", "as", "in", "the", "paper"]
    assert not rows[rows.index(paper) + 1].startswith(" ")  # it has no settings of the search


def test_settings_that_are_longer_than_a_line_go_on_in_the_next() -> None:
    results = [
        TrialResult(n, "complete", TrialConfig(), {f"a-rather-long-name-{place}": n + place for place in range(6)},
                    (0.5 + n / 10, 1e12 + n, 1e8), 3)
        for n in range(2)
    ]  # fmt: skip
    lines = shown(front_table(summarise("s", results, (0.0, 2e12, 2e8))), 80).splitlines()
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    for place in range(6):
        assert f"a-rather-long-name-{place} {place}" in text


def test_the_wide_table_has_a_row_a_trial_with_everything() -> None:
    lines = shown(front_table(fronts.front(), wide=True), 10_000).splitlines()
    (row,) = (line.split() for line in lines if line.startswith(" 0013 *"))
    values = ["0.000136", "11", "0.123", "0.457", "0.789", "0.543", "residual", "0.000825"]
    costs = ["510", "GFLOP", "51.0%", "57.0", "MiB", "57.0%", "0.55", "2"]
    assert row == ["0013", "*", "ALaST", "0.9300", "0.9300", *costs, *values]
    assert "train/learning_rate" in "".join(lines) and "floors/early" in "".join(lines)


def caption(front: FrontFile) -> str:
    return shown(front_table(front), 80).splitlines()[-1]


def test_the_table_says_among_whom_the_knee_was_chosen() -> None:
    front = fronts.front()
    assert caption(front) == "* the knee: the best compromise within 5 points of full fine-tuning"
    none = within(front, fronts.front(max_memory="30MiB").limits)
    assert none.knee == "0015"
    assert caption(none) == "* the knee: the best compromise of all; none is so near full fine-tuning"
    alone = summarise("s", fronts.trials()[1:], fronts.REFERENCE)
    assert caption(alone) == "* the knee: the best compromise of all; full fine-tuning is not known"


def test_table_names_only_the_settings_that_differ() -> None:
    results = [
        TrialResult(
            n, "complete", apply_params(TrialConfig(), {"method/trainable_blocks": n + 1}), {}, (n / 4, n, n), 3
        )
        for n in (1, 2)
    ]
    text = shown(front_table(summarise("s", results, (0.0, 9.0, 9.0))))
    assert "\n  K 2\n" in text and "\n  K 3\n" in text
    assert "alpha" not in text and "epochs" not in text


def test_an_empty_front_says_so() -> None:
    empty = summarise("s", [], (0.0, 1.0, 1.0))
    assert "0 of 0 complete trials" in shown(front_table(empty))
    assert "0 of 0 complete trials" in shown(front_table(empty, wide=True))


def test_no_text_of_a_description_is_markup_or_moves_the_cursor() -> None:
    table = shown(describe({"[b]a": "[/] \x1b]0;x\x07 sqlite://me:pw@h"}, "[red]title"))
    assert "[b]a" in table and "[/] \ufffd]0;x\ufffd sqlite://me:...@h" in table and "[red]title" in table


@pytest.mark.parametrize("wide", [False, True])
def test_values_of_a_front_are_shown_as_they_are(wide: bool) -> None:
    results = [
        TrialResult(n, "complete", TrialConfig(), {"way": way}, (0.5 + n / 10, 1e12 + n, 1e8), 3)
        for n, way in enumerate(("[/red]", "\x1b[31mb"))
    ]
    text = shown(front_table(summarise("s", results, (0.0, 2e12, 2e8)), wide=wide))
    assert "[/red]" in text and "\ufffd[31mb" in text


def test_a_front_by_another_score_says_so() -> None:
    def by_f1(one: TrialResult) -> TrialResult:
        train = one.config.train.model_copy(update={"score": "macro_f1"})
        return replace(one, config=one.config.model_copy(update={"train": train}))

    results = [by_f1(one) for one in fronts.trials()]
    region = Region(source="full", floor=0.89, within=0.05)
    front = summarise("f1", results, fronts.REFERENCE, region=region, validation_images=24)
    for wide in (False, True):
        text = shown(front_table(front, wide=wide))
        assert "macro F1" in text and "accuracy" not in text
    assert not any("how sure" in line for line in answers(front, ["f1"]))  # which is known of accuracy alone
    assert "trial 0013 complete" in (line := outcome(results[2], front)) and "macro F1 0.9300" in line
    cloud = Cloud.of(front, results)
    assert cloud.labels[0] == "Validation macro F1" and all("macro F1 0." in hover for hover in cloud.hover)
    joint = joint_front([front, front.model_copy(update={"sweep": "again"})])
    assert "best macro F1" in shown(comparison_table(*joint))
    for page in (report_html(front, results), fronts_html([front])):
        assert "Validation macro F1" in page and "Validation accuracy" not in page
