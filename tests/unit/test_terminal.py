"""What a person sees: lines of progress, and the front."""

import io

from rich.console import Console

from alast_tune.config import TrialConfig, apply_params
from alast_tune.results import TrialResult
from alast_tune.summary import summarise
from alast_tune.terminal import SweepProgress, describe, front_table


def shown(thing: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(thing)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_progress_counts_trials_and_says_why_one_failed() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = SweepProgress(3, 0, console)
    complete = TrialResult(0, "complete", TrialConfig(), {}, (0.75, 1e12, 1e8), 3)
    failed = TrialResult(1, "failed", TrialConfig(), {}, None, 1, reason="crashed")
    progress.started()
    progress.started()
    progress.ended(complete, summarise("s", [complete], (0.0, 2e12, 2e8)))
    progress.ended(failed, summarise("s", [complete, failed], (0.0, 2e12, 2e8)))
    progress.close()
    first, second = console.file.getvalue().strip().splitlines()  # type: ignore[attr-defined]
    assert first.startswith(
        "trial 0000 complete | 1/3 finished, 1 running, 0 failed | best accuracy 0.750 | hypervolume"
    )
    assert second.startswith("trial 0001 failed (crashed) | 2/3 finished, 0 running, 1 failed")


def test_table_names_only_the_settings_that_differ() -> None:
    results = [
        TrialResult(
            n, "complete", apply_params(TrialConfig(), {"method/trainable_blocks": n + 1}), {}, (n / 4, n, n), 3
        )
        for n in (1, 2)
    ]
    text = shown(front_table(summarise("s", results, (0.0, 9.0, 9.0))))
    assert "trainable_blocks 2" in text and "trainable_blocks 3" in text
    assert "alpha" not in text and "epochs" not in text


def test_an_empty_front_says_so() -> None:
    assert "0 of 0 complete trials" in shown(front_table(summarise("s", [], (0.0, 1.0, 1.0))))


def test_no_text_of_a_trial_is_markup_or_moves_the_cursor() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = SweepProgress(3, 0, console)
    for text in (
        "cannot open [/data/pets/a.jpg]",
        "[enforce fail at alloc.cpp:117]",
        ":smile: \x1b[2J at http://me:pw@h",
    ):
        failed = TrialResult(1, "failed", TrialConfig(), {}, None, 1, reason=text)
        progress.note(text)
        progress.ended(failed, summarise("s", [failed], (0.0, 2e12, 2e8)))
    progress.close()
    out = console.file.getvalue()  # type: ignore[attr-defined]
    for line in ("cannot open [/data/pets/a.jpg]", "[enforce fail at alloc.cpp:117]", ":smile: \ufffd[2J at http://h"):
        assert out.count(line) == 2
    table = shown(describe({"[b]a": "[/] \x1b]0;x\x07 sqlite://me:pw@h"}, "[red]title"))
    assert "[b]a" in table and "[/] \ufffd]0;x\ufffd sqlite://me:...@h" in table and "[red]title" in table


def test_values_of_a_front_are_shown_as_they_are() -> None:
    results = [
        TrialResult(n, "complete", TrialConfig(), {"way": way}, (0.5 + n / 10, 1e12 + n, 1e8), 3)
        for n, way in enumerate(("[/red]", "\x1b[31mb"))
    ]
    text = shown(front_table(summarise("s", results, (0.0, 2e12, 2e8))))
    assert "way [/red]" in text and "way \ufffd[31mb" in text


def test_a_trial_that_never_began_is_not_one_that_ran() -> None:
    console = Console(file=io.StringIO(), width=200)
    progress = SweepProgress(3, 1, console)
    progress.started()
    failed = TrialResult(1, "failed", TrialConfig(), {}, None, 0, reason="contradicts itself")
    progress.ended(failed, summarise("s", [failed], (0.0, 2e12, 2e8)), ran=False)
    progress.close()
    assert "| 2/3 finished, 1 running" in console.file.getvalue()  # type: ignore[attr-defined]
