"""A driver's folder for checkpoints has a number that no other had."""

from pathlib import Path

from alast_tune.tune.attempts import next_attempt


def test_a_drivers_folder_is_numbered_above_all_that_are_there(tmp_path: Path) -> None:
    assert next_attempt(tmp_path) == "driver-00"
    for there in ("driver-01", "driver-10", "else"):
        (tmp_path / "tune" / there).mkdir(parents=True)
    assert next_attempt(tmp_path) == "driver-11"
