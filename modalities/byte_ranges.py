"""Byte ranges of files: local files, and all storage that fsspec supports (s3://, gs://, https://, filecache::…).

A failed read is retried after increasing pauses, since shared storage fails occasionally.
"""

from __future__ import annotations

import glob
import os
import random
import re
import threading
import time
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.cached import CachingFileSystem
from fsspec.implementations.local import LocalFileSystem

from multisagd.libraries import failed_import

T = TypeVar("T")

ATTEMPTS = 7
PAUSE = 0.5
"""Approximate pause before the second attempt, in seconds; each pause is twice the previous one (30 s in total)."""

OPEN_FILES = 64
"""Maximum number of local files kept open."""

PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, EOFError, NotImplementedError, ImportError)
"""Errors that a retry cannot fix."""

IDENTITY = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime", "created")
"""Keys of file system metadata that change with a file's content, most reliable first."""

SYSTEM_FILES = {
    "__macosx", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot", "$recycle.bin",
    "system volume information", "lost+found", "thumbs.db", "ehthumbs.db", "desktop.ini",
}  # fmt: skip
"""Names, in lower case, of system files and folders on macOS, Windows, file servers and file systems."""


NO_CREDENTIALS = {
    "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError", "DefaultCredentialsError",
    "LocalTokenNotFoundError", "GatedRepoError", "ClientAuthenticationError",
}  # fmt: skip
"""Errors of the libraries of storage systems that no retry can fix either, by name: importing them takes seconds."""

REMEDIES = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket",
    "gs": "run `gcloud auth application-default login` or set GOOGLE_APPLICATION_CREDENTIALS, or FSSPEC_GS_TOKEN=anon "
    "for a public bucket",
    "hf": "set HF_TOKEN to a token that may read it, and accept the terms of the dataset on its page",
    "http": "check that the address is right, may be read without logging in, and has not expired",
    "": "check that you may read it",
}
"""How to obtain access, by protocol."""


class AccessError(PermissionError):
    """The storage does not let this user read; the message gives the remedy."""


class PartsError(OSError):
    """The server does not support byte ranges."""


class Source:
    """One file that is read in parts; `url` names it in messages, and `local` is True for a file on this machine."""

    def __init__(self, url: str, system: Any, path: str) -> None:
        self.url, self.system, self.path = url, system, path
        self.local = isinstance(system, LocalFileSystem)
        # fsspec's caches treat a file that another thread is still downloading as complete.
        self._turn = threading.Lock() if isinstance(system, CachingFileSystem) else nullcontext()

    def state(self) -> tuple[int, str]:
        """Return the size in bytes, and a string that changes with the file, if its storage reports changes.

        Raises:
            OSError: If it does not exist or cannot be reached.
        """
        if self.local:
            status = with_retries(self.url, lambda: Path(self.path).stat())
            return status.st_size, str(status.st_mtime_ns)
        # fsspec's caches would look the file up in a folder listing, which most web servers do not provide.
        origin = self.system.fs if isinstance(self.system, CachingFileSystem) else self.system
        facts = with_retries(self.url, lambda: origin.info(self.path))
        if not isinstance(facts.get("size"), int):
            raise OSError(
                f"{self.url}: its server does not report a size, so parts cannot be read: copy the file to this machine"
            )
        return facts["size"], next((str(facts[key]) for key in IDENTITY if facts.get(key)), "")

    def read(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`.

        Raises:
            PartsError: If the server does not support byte ranges.
            OSError: If they do not exist or cannot be reached.
        """

        def attempt() -> bytes:
            if self.local:
                data = OPENED.read(self, start, stop - start)
            else:
                with self._turn:
                    data = bytes(self.system.cat_file(self.path, start=start, end=stop))
            if not self.local and len(data) > stop - start:
                raise PartsError(
                    f"{self.url}: its server sends whole files, whatever part is requested: put simplecache:: in front "
                    "of the URL, so that each file is downloaded once and kept on this machine's disk"
                )
            if len(data) != stop - start:
                raise EOFError(f"received {len(data)} of the {stop - start} bytes requested, starting at byte {start}")
            return data

        return with_retries(self.url, attempt) if stop > start else b""


@cache
def _local() -> LocalFileSystem:
    return LocalFileSystem()


def local(path: Path) -> Source:
    """Return a source for a local file."""
    return Source(str(path), _local(), str(path))


class OpenFiles:
    """A thread-safe cache of the most recently read local files, which are kept open."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Source, _Descriptor] = OrderedDict()

    def read(self, source: Source, start: int, count: int) -> bytes:
        """Return up to `count` bytes; a file whose reading fails is reopened next time."""
        with self._lock:
            # Keyed by source, not by path: a later source of the same path may be another file.
            file = self._files.pop(source, None) or _Descriptor(source.path)
            self._files[source] = file
            if len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)
        try:
            parts = []
            # One call reads at most 2 GiB, and may be interrupted.
            while count and (part := os.pread(file.number, count, start)):
                parts.append(part)
                start, count = start + len(part), count - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except OSError:
            with self._lock:
                self._files.pop(source, None)
            raise


class _Descriptor:
    """An open file that closes when its last reference is gone: a thread may still be reading an evicted file."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.number)


OPENED = OpenFiles()


def with_retries(url: str, action: Callable[[], T]) -> T:
    """Return the result of an action on a file; the action is retried if it fails.

    Raises:
        BrokenLibraryError: If a library of the storage cannot be imported.
        AccessError: If access is denied, or there are no credentials.
        OSError: If the action fails `ATTEMPTS` times, or with a permanent error; the message names the file.
    """
    for attempt in range(ATTEMPTS):
        try:
            return action()
        except Exception as error:  # each storage system raises its own errors
            if (library := failed_import(error)) is not None:
                raise library from error
            if isinstance(error, PartsError):
                raise
            _check_access(url, error)
            if isinstance(error, PERMANENT):
                # fsspec says that a file is not found whatever goes wrong with a web server.
                cause = error.__cause__ if isinstance(error, FileNotFoundError) else None
                reason = error if cause is None or getattr(cause, "status", None) in (404, 410) else cause
                raise OSError(f"{url}: {type(reason).__name__}: {reason}") from reason
            failure = error
        if attempt + 1 < ATTEMPTS:
            # Random jitter, so that many processes do not all retry at the same moment.
            time.sleep(PAUSE * 2**attempt * random.SystemRandom().uniform(0.5, 1.0))
    raise OSError(f"{url}: {type(failure).__name__}: {failure}, in {ATTEMPTS} attempts") from failure


def _check_access(url: str, error: BaseException) -> None:
    """Raise an AccessError if the cause of an error is that this user may not read, which no retry can fix."""
    named = (re.findall(r"(\w+)://", url) or [""])[-1]
    protocol = {"https": "http", "gcs": "gs", "file": "", "local": ""}.get(named, named)
    cause: BaseException | None = error
    for _ in range(10):
        if cause is None:
            return
        response = getattr(cause, "response", None)
        status = getattr(cause, "status", None) or getattr(response, "status_code", None)
        if isinstance(response, dict):  # of boto
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        denied = status in (401, 403) or (isinstance(cause, PermissionError) and protocol)
        if denied or type(cause).__name__ in NO_CREDENTIALS:
            why = (
                f"its storage denies access (status {status})"
                if status in (401, 403)
                else f"access is denied ({cause})"
            )
            raise AccessError(f"{url}: {why}: {REMEDIES.get(protocol, REMEDIES[''])}") from error
        cause = cause.__cause__ or cause.__context__


def find(urls: str | Sequence[str], ending: str, local: bool = False) -> list[Source]:
    """Return the files named by one URL or a list of URLs, in order.

    A URL may contain ranges of numbers (`{000..099}`) and lists (`{train,extra}`), or be a pattern with *, whose
    matches are sorted; a folder stands for the files in it whose paths end in `ending`. If `local` is True, every URL
    is treated as a local path.

    Raises:
        OSError: If a pattern or folder has no files, or storage cannot be reached.
        ValueError: If no URL is given, a file is named twice, or fsspec does not support a URL.
    """
    given_urls = [urls] if isinstance(urls, str) else urls
    sources = [source for given in given_urls for url in expanded(given) for source in _files(url, ending, local)]
    if not sources:
        raise ValueError("no URL is given: specify at least one file or folder")
    url, count = Counter(source.url for source in sources).most_common(1)[0]
    if count > 1:
        raise ValueError(f"{url} is named twice: remove one")
    return sources


def _files(url: str, ending: str, local_only: bool) -> list[Source]:
    try:
        system, path = (LocalFileSystem(), _plain(url)) if local_only else url_to_fs(url)
    except Exception as error:
        if (failure := failed_import(error)) is not None:
            raise failure from error
        if isinstance(error, ImportError | ValueError):
            raise ValueError(f"{url}: {error}") from error
        raise
    local = isinstance(system, LocalFileSystem)
    if "*" not in path:
        if path.endswith(ending) or not with_retries(url, lambda: system.isdir(path)):
            return [Source(path if local else url, system, path)]
        path = f"{glob.escape(path.rstrip('/'))}/*{ending}"
    matches = sorted(each for each in with_retries(url, lambda: system.glob(path)) if not is_hidden(Path(each).name))
    if not matches:
        raise FileNotFoundError(f"{url}: there is no file {path}")
    return [Source(each if local else system.unstrip_protocol(each), system, each) for each in matches]


def _plain(path: str) -> str:
    """Return the absolute path of a local file or pattern; a protocol in it is not interpreted."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - it may be a pattern


def expanded(url: str) -> list[str]:
    """Return the URLs of a pattern with ranges of numbers and lists: `{08..10}` is 08, 09 and 10, as is `{08,09,10}`.

    Raises:
        ValueError: If a range is descending.
    """
    parts = re.split(r"\{(\d+\.\.\d+|[^{},]*(?:,[^{},]*)+)\}", url)
    choices = []
    for inside in parts[1::2]:
        first, dots, last = inside.partition("..")
        if not dots or "," in inside:
            choices.append(inside.split(","))
        elif int(first) > int(last):
            raise ValueError(f"{url}: the range from {first} to {last} is descending")
        else:
            choices.append([f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)])
    return ["".join(_interleave(parts[0::2], chosen)) for chosen in product(*choices)]


def _interleave(texts: Sequence[str], numbers: Sequence[str]) -> list[str]:
    return [piece for text, number in zip(texts, [*numbers, ""], strict=True) for piece in (text, number)]


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a system file."""
    return (name.startswith(".") and name not in (".", "..")) or name.lower() in SYSTEM_FILES


def any_hidden(path: str) -> bool:
    """Whether a file, or a folder on its path, is hidden or a system file."""
    return any(is_hidden(part) for part in PurePosixPath(path).parts)
