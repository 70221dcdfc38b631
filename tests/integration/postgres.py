"""A PostgreSQL of the test's own, from the binaries that are on the machine."""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import free_port

PASSWORD = secrets.token_hex(16)
"""Of the server's user: clients find it in PGPASSWORD, and no URL holds it."""

USER = "alast"


@contextmanager
def postgres_server(database: str) -> Iterator[str]:
    """Run a server on a free port of 127.0.0.1, with an empty database; the URL, without the password.

    Sets nothing for the test: that puts :data:`PASSWORD` into ``PGPASSWORD`` of whoever connects.
    Skips, by name, where PostgreSQL is not installed, or may not be run.
    """
    found = shutil.which("postgres") or max(map(str, Path("/usr/lib/postgresql").glob("*/bin/postgres")), default=None)
    if found is None:
        pytest.skip("PostgreSQL is not installed")
    binaries, who = Path(found).resolve().parent, _somebody()
    # Not in pytest's folders, which only their owner may enter.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    port = free_port()
    address = ["--host", "127.0.0.1", "--port", str(port)]
    try:
        (folder / "password").write_text(PASSWORD)
        if who:
            for path in (folder, folder / "password"):
                shutil.chown(path, who["user"], who["group"])
        login = ["--username", USER, "--auth", "scram-sha-256", "--pwfile", folder / "password"]
        data = ["--encoding", "UTF8", "--locale", "C", "--no-sync", "--pgdata", folder / "data"]
        subprocess.run([binaries / "initdb", *login, *data], capture_output=True, check=True, cwd="/", **who)
        options = ["-c", "fsync=off", "-c", "unix_socket_directories=", "-h", "127.0.0.1", "-p", str(port)]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [binaries / "postgres", "-D", folder / "data", *options], stdout=log, stderr=log, cwd="/", **who
            )
        try:
            end = time.monotonic() + 240
            while subprocess.run([binaries / "pg_isready", *address], capture_output=True).returncode:
                assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.1)
            secret = os.environ | {"PGPASSWORD": PASSWORD}
            subprocess.run(
                [binaries / "createdb", *address, "--username", USER, database],
                env=secret,
                capture_output=True,
                check=True,
            )
            yield f"postgresql://{USER}@127.0.0.1:{port}/{database}"
        finally:
            server.send_signal(signal.SIGINT)  # at once, whoever is connected
            server.wait(timeout=60)
    finally:
        shutil.rmtree(folder)


def _somebody() -> dict[str, Any]:
    """Who runs the server: root may not."""
    if os.geteuid():
        return {}
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("root may not run PostgreSQL, and there is no user postgres")
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
