"""The queue for MLflow: in order, at least once, over kills, full disks, older versions and many trials."""

import json
import resource
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from alast_tune.errors import ConfigError
from alast_tune.tracking import pending, queue, run_ids
from alast_tune.tracking.kept import ENDED, FILE, refused_operations
from alast_tune.tracking.operation import Operation
from alast_tune.tracking.queue import Queue


def opening(number: int) -> Operation:
    return Operation(f"{number:04d}", "open", 1, tags={"alast.sweep_id": "ours", "t": "x" * 50})


def waiting(one: Queue) -> list[Operation]:
    """Take all that waits, in order."""
    found = []
    while batch := one.batch():
        found += [operation for _, operation in batch]
        one.done(batch)
    return found


def test_what_is_asked_for_outlives_the_process_and_what_is_done_does_not(tmp_path: Path) -> None:
    first = Queue(tmp_path)
    operations = [opening(number) for number in range(3)]
    for operation in operations:
        first.ask(operation)
    first.opened("0000", "id-0")
    first.done(first.batch())
    second = Queue(tmp_path)  # the first was killed: nobody has closed it
    assert pending(tmp_path) == second.waiting == 2
    assert second.sweep_id == "ours" and second.run_ids() == {"0000": "id-0"} and run_ids(tmp_path) == {0: "id-0"}
    assert second.run("0000").status == "" and second.run("0003").status is None
    assert waiting(second) == operations[1:]


def test_operations_of_one_run_come_together_up_to_its_end(tmp_path: Path) -> None:
    one = Queue(tmp_path)
    log = [Operation("0000", "log", 1, metrics={"accuracy": 0.5}, step=step) for step in (1, 2)]
    other = opening(1)
    end = Operation("0000", "end", 2, status="FINISHED")
    again, upload = opening(0), Operation("sweep", "upload", 3)
    for operation in (opening(0), log[0], other, log[1], end, again, upload):
        one.ask(operation)
    batches = []
    while batch := one.batch():
        batches.append([operation for _, operation in batch])
        one.done(batch)
    assert batches == [[opening(0), *log, end], [other], [again], [upload]]


def test_a_sweep_ends_after_all_that_was_asked_for_before(tmp_path: Path) -> None:
    one = Queue(tmp_path)
    for operation in (Operation("sweep", "log", 1), opening(0), Operation("sweep", "end", 2, status="FINISHED")):
        one.ask(operation)
    assert [operation.do for operation in waiting(one)] == ["log", "open", "end"]


def test_a_full_disk_is_survived_in_memory(tmp_path: Path) -> None:
    one = Queue(tmp_path)
    operations = [opening(number) for number in range(200)]
    one.ask(operations[0])
    first = one.batch()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # files end there, as they do on a full disk
        for operation in operations[1:100]:
            one.ask(operation)
        with pytest.raises(sqlite3.OperationalError):  # nor can it be noted as done
            one.done(first)
        assert one.waiting == 100
        assert one.run("0099").status == ""  # though it is only in memory
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    for operation in operations[100:]:
        one.ask(operation)
    assert pending(tmp_path) == 200
    assert waiting(Queue(tmp_path)) == operations


@pytest.mark.parametrize("name", [FILE, "mlflow-journal.jsonl"])
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}\n" * 2000)
    with pytest.raises(ConfigError, match=f"sweep = .*{name}: is damaged; move it"):
        Queue(tmp_path)


def test_the_journal_of_an_older_version_is_adopted_once(tmp_path: Path) -> None:
    asked = [
        {"run": "sweep", "do": "open", "time": 1, "tags": {"alast.sweep_id": "ours"}},
        {"run": "0000", "do": "open", "time": 2},
        {"run": "0000", "do": "end", "time": 3, "status": "FINISHED"},
        {"run": "0001", "do": "open", "time": 4},
        {"run": "0001", "do": "log", "time": 5, "metrics": {"accuracy": 0.5}, "step": 3},
    ]
    done = [{"run": "sweep", "run_id": "p"}, {"run": "0000", "run_id": "a"}, {"run": "0000"}]
    journal, carried_out = tmp_path / "mlflow-journal.jsonl", tmp_path / "mlflow-done.jsonl"
    text = "".join(json.dumps(line) + "\n" for line in asked)
    journal.write_text(text + '{"run":"00')  # killed while it wrote
    carried_out.write_text("".join(json.dumps(line) + "\n" for line in done))
    assert pending(tmp_path) == 2 and run_ids(tmp_path) == {0: "a"}
    for _ in range(2):  # the second time killed after it was adopted and before it was removed
        one = Queue(tmp_path)
        assert not journal.exists() and not carried_out.exists()
        assert pending(tmp_path) == one.waiting == 2 and run_ids(tmp_path) == {0: "a"}
        assert one.sweep_id == "ours" and one.run_ids() == {"sweep": "p", "0000": "a"}
        assert (one.run("0000").status, one.run("0001").status, one.run("0001").step) == ("FINISHED", "", 3)
        journal.write_text(text)
    assert [operation.do for operation in waiting(one)] == ["open", "log"]


def test_what_is_known_of_runs_that_ended_leaves_the_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is sent to object storage whole, again and again; files that never change are sent once."""
    monkeypatch.setattr(queue, "_KEPT", 10)
    one = Queue(tmp_path)
    for number in range(45):
        one.ask(opening(number))
        one.ask(Operation(f"{number:04d}", "end", 2, status="FINISHED"))
        one.opened(f"{number:04d}", f"id-{number}")
        one.done(one.batch())
    kept = one._one("select count(*) from runs")[0]
    assert kept < 20 and len(list((tmp_path / ENDED).iterdir())) >= 2
    for again in (one, Queue(tmp_path)):
        assert again.run_ids() == {f"{number:04d}": f"id-{number}" for number in range(45)}
        assert {again.run(f"{number:04d}").status for number in range(45)} == {"FINISHED"}
    assert run_ids(tmp_path) == {number: f"id-{number}" for number in range(45)}
    one.ask(opening(0))  # gone on with
    assert (one.run("0000").status, one.run("0000").run_id) == ("", "id-0")


def test_what_was_set_aside_is_asked_for_again(tmp_path: Path) -> None:
    one = Queue(tmp_path)
    one.ask(opening(0))
    one.set_aside(one.batch(), "too long")
    assert (one.waiting, pending(tmp_path)) == (0, 1)
    assert [(line["run"], line["why"]) for line in refused_operations(tmp_path)] == [("0000", "too long")]
    one.retry()
    assert refused_operations(tmp_path) == [] and waiting(one) == [opening(0)]


def test_a_folder_that_nobody_may_write_can_be_read(tmp_path: Path) -> None:
    with closing(Queue(tmp_path)) as one:
        one.ask(opening(7))
        one.opened("0007", "id")
    (tmp_path / FILE).chmod(0o400)
    tmp_path.chmod(0o500)
    try:
        assert run_ids(tmp_path) == {7: "id"} and pending(tmp_path) == 1
    finally:
        tmp_path.chmod(0o700)
