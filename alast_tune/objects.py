"""Objects of a folder in object storage, each write of which depends on what was last seen there."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore import PutMode, UpdateVersion
    from obstore.store import ObjectStore

_SAID = re.compile(r"<Code>(\w+)</Code>(?:\s*<Message>([^<]*)</Message>)?")


class OverwrittenError(OSError):
    """An object is not as this process left or found it: somebody else writes it."""


class Objects:
    """A folder's objects, by their names in it.

    Nothing is overwritten or created unseen: a write is refused by the store unless the object is still what
    this process last read, listed or wrote, or still not there if it never saw one.

    Args:
        address: ``s3://bucket/folder`` or ``gs://bucket/folder``.
        region: of the bucket, for S3.
        seconds: that a request may take.
    """

    def __init__(self, address: str, region: str | None, seconds: float) -> None:
        self._store = _open(address, region, seconds)
        self._seen: dict[str, UpdateVersion] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of each object seen."""

    def list(self, without: frozenset[str] = frozenset()) -> None:
        """See what there is, in folders as well, except for what lies directly in this one under the names given.

        Raises:
            OSError: it cannot be read.
        """
        import obstore

        with _said():
            top = obstore.list_with_delimiter(self._store)
            found = [meta for meta in top["objects"] if meta["path"] not in without]
            for folder in top["common_prefixes"]:
                if folder not in without:
                    found += obstore.list(self._store, folder).collect()
        folders = {str(folder) for meta in found for folder in PurePosixPath(meta["path"]).parents}
        folders |= {"", *top["common_prefixes"]}
        self._seen.clear()
        self.sizes.clear()
        for meta in found:
            if meta["path"] not in folders:  # pyarrow puts an empty object in the place of a folder
                self._see(meta["path"], meta, meta["size"])

    def get(self, name: str) -> bytes | None:
        """Read an object; None if it is not there.

        Raises:
            OSError: it cannot be read.
        """
        import obstore

        try:
            with _said():
                result = obstore.get(self._store, name)
                contents = bytes(result.bytes())
        except FileNotFoundError:
            self._forget(name)
            return None
        self._see(name, result.meta, len(contents))
        return contents

    def put(self, name: str, contents: bytes) -> None:
        """Write an object, whole and in one request.

        Raises:
            OverwrittenError: it is not what was last seen.
            OSError: it cannot be written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            with _said():
                mode: PutMode = self._seen.get(name, "create")
                result = obstore.put(self._store, name, contents, mode=mode, use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            # This very write may have arrived before, its answer lost on the way.
            if self.get(name) != contents:
                raise OverwrittenError(f"{name} was written by somebody else") from None
        else:
            self._see(name, result, len(contents))

    def refuses(self, name: str, contents: bytes) -> bool:
        """Whether the store refuses to write over an object that is there if it should not be, or should be another.

        Raises:
            OSError: it cannot be written.
        """
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        other: UpdateVersion = {"e_tag": f'"{"0" * 32}"', "version": "1"}
        modes: tuple[PutMode, PutMode] = ("create", other)
        for mode in modes:
            with suppress(AlreadyExistsError, PreconditionError), _said():
                obstore.put(self._store, name, contents, mode=mode, use_multipart=False)
                return False
        return True

    def delete(self, name: str) -> None:
        """Delete an object if it is there.

        Raises:
            OSError: it cannot be deleted.
        """
        import obstore

        try:
            with _said():
                obstore.delete(self._store, name)
        except FileNotFoundError:
            pass
        self._forget(name)

    def _see(self, name: str, version: Any, size: int) -> None:
        kept = {key: version[key] for key in ("e_tag", "version") if version[key] is not None}
        self._seen[name] = kept  # type: ignore[assignment] # S3 tells by the one, GCS by the other
        self.sizes[name] = size

    def _forget(self, name: str) -> None:
        self._seen.pop(name, None)
        self.sizes.pop(name, None)


def _open(address: str, region: str | None, seconds: float) -> ObjectStore:
    from obstore.store import GCSStore, S3Store

    scheme, _, rest = address.partition("://")
    bucket, _, prefix = rest.partition("/")
    tries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=seconds)}
    limits = {"timeout": timedelta(seconds=seconds), "connect_timeout": timedelta(seconds=min(5, seconds))}
    if scheme == "gs":
        return GCSStore(bucket, prefix=prefix, client_options=limits, retry_config=tries)  # type: ignore[arg-type]
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: Any = limits | {"allow_http": (endpoint or "").startswith("http:")}
    given: Any = {"region": region} if region else {}
    if endpoint:
        given["endpoint"] = endpoint
    if credentials := _credentials():
        given["credential_provider"] = credentials
    return S3Store(bucket, prefix=prefix, client_options=options, retry_config=tries, **given)


def _credentials() -> Any:
    """Find credentials where Amazon's tools do: variables, profiles, single sign-on, roles of machines and pods."""
    from obstore.auth.boto3 import Boto3CredentialProvider

    try:
        return Boto3CredentialProvider()
    except ValueError:  # none
        return None


@contextmanager
def _said() -> Iterator[None]:
    """Put the store's errors, which say much, into a few words.

    Raises:
        OSError: in the place of all but those of a condition.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError

    try:
        yield
    except (AlreadyExistsError, PreconditionError):
        raise
    except (BaseError, FileNotFoundError) as error:
        said = _SAID.search(str(error))
        words = ": ".join(filter(None, said.groups())) if said else str(error).splitlines()[0].rpartition(" - ")[2]
        missing = isinstance(error, FileNotFoundError) and not (said and said[1] == "NoSuchBucket")
        raise (FileNotFoundError(words) if missing else OSError(words)) from None
