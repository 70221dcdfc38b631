"""What others have written shows no password and moves no cursor."""

import pytest

from alast_tune.text import one_line, printable, without_passwords

SECRET = "hun-ter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hun-ter2@db/x", "postgresql://me:...@db/x"),
        ("MLflow at http://me:hun-ter2@host:5000 is away", "MLflow at http://host:5000 is away"),
        ("https://hun-ter2@host/x", "https://host/x"),  # a token for a user
        ("mysql+pymysql://me:a@hun-ter2/b@h:3306/x", "mysql+pymysql://me:...@h:3306/x"),  # @ and / unquoted
        ("no folder s3:/key:hun-ter2@bucket/x", "no folder s3:/key:...@bucket/x"),  # as a path writes it
        ("RAY_ADDRESS = me:hun-ter2@head:6379: no", "RAY_ADDRESS = me:...@head:6379: no"),
        ("password=hun-ter2 host=db", "password=... host=db"),
        ("https://h/p?X-Amz-Signature=hun-ter2&a=1", "https://h/p?X-Amz-Signature=...&a=1"),
        ("{'MLFLOW_TRACKING_PASSWORD': 'hun-ter2'}", "{'MLFLOW_TRACKING_PASSWORD': ...}"),
        ("{'Authorization': 'Bearer hun-ter2'}", "{'Authorization': 'Bearer ...'}"),
    ],
)
def test_passwords_are_hidden(text: str, shown: str) -> None:
    assert SECRET in text and without_passwords(text) == shown


@pytest.mark.parametrize(
    "text",
    ["sqlite:////a/b.db", "http://host:5000/a@b", "models:/pets@champion", "ray://127.0.0.1:10001", "max_tokens=512"],
)
def test_what_holds_no_password_stays(text: str) -> None:
    assert without_passwords(text) == text


def test_escape_sequences_and_changes_of_direction_are_not_printed() -> None:
    assert printable("a\x1b[31mb\x9b2J\u202ec\r\td\n") == "a\ufffd[31mb\ufffd2J\ufffdc\ufffd\td\n"
    assert printable("größer [1/2] 🙂") == "größer [1/2] 🙂"


def test_errors_of_other_libraries_in_one_line() -> None:
    assert one_line(OSError("first\nsecond")) == "OSError: first"
    assert one_line(RuntimeError()) == "RuntimeError"
    worker = 'ray::task() (pid=1)\n  File "x.py", line 1\nValueError: at http://me:pw@h'
    assert one_line(RuntimeError(worker)) == "ValueError: at http://h"
