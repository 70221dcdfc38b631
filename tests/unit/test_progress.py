"""A sweep's progress: lines in a log, a panel on a terminal."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from alast_tune.config import TrialConfig
from alast_tune.progress import Running, SweepPanel, SweepProgress, SweepState, duration, front_plot
from alast_tune.results import TrialResult
from alast_tune.summary import summarise
from tests.unit import fronts


class Clock:
    """Seconds that pass when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def log(width: int = 200, terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=width, height=25, force_terminal=terminal, color_system=None)


def written(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined, no-any-return]


def start(progress: SweepProgress, result: TrialResult) -> None:
    progress.started(result.number, result.config, result.params, result.baseline)


def test_a_log_has_a_line_a_trial_with_method_settings_and_result() -> None:
    console, clock = log(), Clock()
    progress = SweepProgress("demo", 4, 0, console, clock)
    full, near = fronts.trials()[0], fronts.trial(2, (0.93, 5.1e11, 57))
    worse = fronts.trial(3, (0.5, 8e11, 70))
    failed = replace(fronts.trial(4, (0.5, 8e11, 70)), state="failed", values=None, reason="worker lost", epochs=1)
    ended: list[TrialResult] = []
    start(progress, full)
    start(progress, near)
    for result in (full, near, worse, failed):
        clock.now += 60
        ended.append(result)
        progress.ended(result, summarise("demo", ended, fronts.REFERENCE))
    progress.close()
    share = [f"{summarise('demo', ended[:n], fronts.REFERENCE).hypervolume_share:.3f}" for n in (1, 2, 3)]
    settings = "alpha 0.0001{}, K {}, floors 0.12/0.46/0.79, budget 0.54, frozen_backward exact, lr 0.0008{}"
    first, second, third, fourth = written(console)
    assert first == (
        "trial 0000 complete (full fine-tuning): accuracy 0.9400, 100% of the FLOPs, 100 MiB, on the front"
        f" | 1 of 4 trials done, 1 running, hypervolume {share[0]}, about 1 min 0 s left"
    )
    assert second == (
        f"trial 0002 complete (ALaST, {settings.format('3', 12, '1')}): accuracy 0.9300, 51% of the FLOPs, 57.0 MiB, "
        f"on the front | 2 of 4 trials done, 0 running, hypervolume {share[1]}, about 1 min 30 s left"
    )
    assert third.startswith("trial 0003 complete (ALaST, ")
    assert ": accuracy 0.5000, 80% of the FLOPs, 70.0 MiB | 3 of 4 trials done" in third
    assert fourth.startswith("trial 0004 failed (ALaST, ")
    assert fourth.endswith(f"): worker lost | 4 of 4 trials done, 0 running, 1 failed, hypervolume {share[2]}")


def test_the_rest_is_estimated_from_ended_trials_and_how_many_run_at_a_time() -> None:
    running = {n: Running("", 2, since=since) for n, since in ((3, 100.0), (4, 140.0))}
    state = SweepState("s", 10, 3, running=running, at_a_time=2, seconds=(180.0, 3))
    # 60 seconds a trial: the running ones need 40 and 0 more, five wait.
    assert state.seconds_left(now=200.0) == (0 + 0 + 5 * 60) / 2
    assert state.seconds_left(now=150.0) == (10 + 50 + 5 * 60) / 2
    last = replace(state, finished=9, running={9: Running("", 2, since=150.0)})
    assert last.seconds_left(now=160.0) == 50.0  # nothing shares the last one's time
    assert replace(state, seconds=(0.0, 0)).seconds_left(now=150.0) is None
    assert (duration(59.6), duration(90), duration(5400)) == ("1 min 0 s", "1 min 30 s", "1 h 30 min")


STATE = SweepState(
    "demo",
    16,
    5,
    fronts.front(),
    {7: Running("ALaST, K 4, lr 0.001", 2, 30.0, 1), 8: Running("ALaST, " + "a long setting, " * 9, 2, 30.0)},
    2,
    (100.0, 5),
)

PANEL = """\
demo: 5 of 16 trials done, 2 running, hypervolume 0.632, about 1 min 50 s left
  0007  epoch 2 of 2  ALaST, K 4, lr 0.001
  0008  epoch 1 of 2  ALaST, a long setting, a long setting, a long setting, a …
  0.940 │                           ●                        ●      F
        │                    ●
        │
        │
        │
        │
        │
  0.600 │●
        └────────────────────────────────────────────────────────────
         10%              FLOPs of full fine-tuning              100%
"""


def drawn(state: SweepState, width: int = 80, height: int = 25, now: float = 30.0) -> str:
    console = Console(file=io.StringIO(), width=width, height=height, record=True)
    console.print(SweepPanel(state, now))
    return console.export_text()


def test_the_panel_shows_running_trials_the_front_and_what_is_left() -> None:
    assert drawn(STATE) == PANEL
    begun = drawn(replace(STATE, front=None, finished=0, seconds=(0.0, 0)))
    assert begun.splitlines()[0] == "demo: 0 of 16 trials done, 2 running"  # no estimate yet
    assert len(begun.splitlines()) == 3
    pending = STATE.front.model_copy(update={"hypervolume_share": None})  # type: ignore[union-attr]
    assert "hypervolume" not in drawn(replace(STATE, front=pending))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (20, 6), (10, 3), (3, 2), (200, 60)])
def test_the_panel_keeps_to_the_terminal(width: int, height: int) -> None:
    many = {n: Running("ALaST, " + "a long setting, " * 20, 2, 0.0) for n in range(100)}
    for state in (STATE, replace(STATE, running=many), SweepState("demo", 3, 0)):
        lines = drawn(state, width, height).splitlines()
        assert len(lines) <= max(1, height - 2) and max(map(len, lines)) <= width
    assert ("and 92 more" in drawn(replace(STATE, running=many), width, height)) == (height > 10)


def test_a_plot_of_one_point_and_one_in_plain_characters() -> None:
    alone = summarise("s", fronts.trials()[2:3], fronts.REFERENCE)
    top, *_, axis, ends = front_plot(alone, 20, 3, ascii_only=True)
    assert top == "  0.930 |" + " " * 19 + "o" and axis == "        +" + "-" * 20
    assert ends == "         510 GFLOP  510 GFLOP"  # no room for more
    *_, ends = front_plot(fronts.front(), 20, 3)
    assert ends == "         10%    FLOPs    100%"
    assert list(front_plot(summarise("s", [], fronts.REFERENCE), 20, 3)) == []


def test_a_panel_leaves_the_terminal_with_its_cursor_and_one_line() -> None:
    console = log(terminal=True)
    progress = SweepProgress("demo", 2, 0, console)
    full = fronts.trials()[0]
    start(progress, full)
    progress.reported(0, 1)
    progress._live.refresh()  # type: ignore[union-attr]
    progress.ended(full, summarise("demo", [full], fronts.REFERENCE))
    progress.close()
    progress.close()  # twice does no harm
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "0000  epoch 2 of 2  full fine-tuning" in out
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1 and out.index("\x1b[?25l") < out.index("\x1b[?25h")
    (line,) = out.rpartition("\x1b[2K")[2].splitlines()
    assert line.startswith("demo: 1 of 2 trials done, 0 running, hypervolume ")
    assert "trial 0000 complete" not in out  # the panel says it


TEXTS = ("cannot open [/data/pets/a.jpg]", "[enforce fail at alloc.cpp:117]", ":smile: \x1b[2J at http://me:pw@h")
SHOWN = ("cannot open [/data/pets/a.jpg]", "[enforce fail at alloc.cpp:117]", ":smile: \ufffd[2J at http://h")


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_of_a_trial_is_markup_or_moves_the_cursor(terminal: bool) -> None:
    console = log(terminal=terminal)
    progress = SweepProgress("s", 3, 0, console)
    for text in TEXTS:
        progress.started(1, TrialConfig(), {"way": text}, None)
        if progress._live:
            progress._live.refresh()
        failed = TrialResult(1, "failed", TrialConfig(), {"way": text}, None, 1, reason=text)
        progress.note(text)
        progress.ended(failed, summarise("s", [failed], (0.0, 2e12, 2e8)))
    progress.close()
    out = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b[2J" not in out and "pw@" not in out
    for line in SHOWN:
        assert out.count(line) >= 3  # as a note, as a setting and as a reason


def test_of_many_trials_that_are_not_launched_the_first_is_said_and_then_how_many_more() -> None:
    console = log()
    progress = SweepProgress("demo", 2, 0, console)
    why = "never launched: predicted peak 9 MiB is above 1 MiB"
    skipped = [replace(trial, values=None, state="infeasible", reason=why) for trial in fronts.trials()]
    for trial in skipped[:3]:
        progress.skipped(trial)
    start(progress, fronts.trials()[3])
    for trial in skipped[3:]:
        progress.skipped(trial)
    progress.close()
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        f"trial 0000: {why}",
        "2 more trials were never launched, for such a reason",
        f"trial 0014: {why}",
        "1 more trial was never launched, for such a reason",
    ]


def test_a_trial_that_never_began_is_not_one_that_ran() -> None:
    console = log()
    progress = SweepProgress("s", 3, 1, console)
    progress.started(0, TrialConfig(), {}, None)
    failed = TrialResult(1, "failed", TrialConfig(), {}, None, 0, reason="contradicts itself")
    progress.ended(failed, summarise("s", [failed], (0.0, 2e12, 2e8)))
    progress.close()
    (line,) = written(console)
    assert "): contradicts itself | 2 of 3 trials done, 1 running, 1 failed, hypervolume 0.000" in line
    assert "left" not in line  # nobody knows how long a trial takes
