"""However a command ends, it is one line and an exit code."""

import errno

import pytest
from botocore.exceptions import ClientError
from mlflow.exceptions import MlflowException
from ray.exceptions import GetTimeoutError, RayTaskError, WorkerCrashedError
from requests.exceptions import ConnectionError as NoConnection
from sqlalchemy.exc import OperationalError

from alast_tune.cli import guarded
from alast_tune.errors import ConfigError, DivergedError, NothingCompleteError, StorageError

LEAK = "http://me:hunter2@host/x \x1b[2J\nsecond line"


def ended(error: BaseException) -> object:
    @guarded
    def command() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        command()
    return stop.value.code


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("field", LEAK, LEAK), 2),
        (DivergedError(LEAK), 1),
        (StorageError(LEAK), 4),
        (NothingCompleteError(LEAK), 5),
        (OSError(errno.ENOSPC, LEAK), 4),
        (OSError(errno.EACCES, LEAK), 1),
        (OperationalError("SELECT 1", {}, RuntimeError(LEAK)), 4),
        (MlflowException(LEAK), 1),
        (NoConnection(LEAK), 1),
        (ClientError({"Error": {"Code": "403", "Message": LEAK}}, "PutObject"), 1),
        (GetTimeoutError(LEAK), 1),
        (WorkerCrashedError(), 1),
        (RayTaskError("score", f"Traceback\n  File x\nConfigError: {LEAK}", ConfigError("a", 1, LEAK)), 2),
        (KeyError(LEAK), 1),
        (RuntimeError(), 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_every_error_is_one_line_without_a_password(
    error: Exception, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(error) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    assert "hunter2" not in err and "\x1b" not in err


def test_what_nobody_foresaw_says_how_to_see_all_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ended(KeyError("name")) == 1
    assert capsys.readouterr().err == "error: KeyError: 'name'; ALAST_TRACEBACK=1 shows all of it\n"
    monkeypatch.setenv("ALAST_TRACEBACK", "1")
    assert ended(ValueError(LEAK)) == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and "hunter2" not in err and "second line" in err


def test_an_interruption_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"
