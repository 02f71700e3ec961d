"""A file in a store, by fsspec: what is known of it, and ranges of its bytes, asked again where one fails.

Whatever goes wrong is told in a sentence without addresses' queries, in which signatures stand.
"""

import contextlib
import logging
import math
import random
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import fsspec
from aiohttp import ClientError, ClientResponseError
from fsspec.asyn import sync

from histo_ssl.folders.redaction import redact

Result = TypeVar("Result")
Range = tuple[int, int]  # first byte, and the one after the last

PAUSE_S = 0.5  # before a request is made again; doubled each time, up to
LONGEST_PAUSE_S = 30.0
AT_A_TIME = 16  # requests of one reader that a store has to answer together
WHOLE_BYTES = 2**26  # largest file that is taken from a server that sends no ranges
PASSING = (408, 425, 429)  # statuses of HTTP below 500 that another try may end
GONE = (404, 410)
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of ours
# What these libraries raise beside the errors of Python; they are not imported for a slide that needs none.
FOREIGN = {
    "botocore.exceptions": "BotoCoreError",
    "gcsfs.retry": "HttpError",
    "google.auth.exceptions": "GoogleAuthError",
}
TALKATIVE = ("botocore", "aiobotocore", "gcsfs", "google")  # say in the log where they found credentials
MODIFIED = ("LastModified", "Last-Modified", "last_modified", "mtime", "updated", "created")
VERSION = ("ETag", "etag", "md5Hash", "content_md5", "generation", "VersionId")
QUERY = re.compile(r"\?[^\s'\")]+")

_silent: set[str] = (
    set()
)  # hosts that failed all tries of a request: the next ones are tried once, until one answers


@dataclass(frozen=True)
class Known:
    """What a store says of a file. Another version of it differs."""

    n_bytes: int
    modified_ns: int  # 0 where the store does not say
    version: str  # whatever else it knows it by, "" for nothing


class RemoteObject:
    """A file in a store.

    Args:
        url: that fsspec understands.
        timeout_s: seconds after which a request has failed.
        n_tries: of each request.

    Raises:
        FileNotFoundError: the store has no such file.
        OSError: the store does not answer, or refuses to.
        ValueError: the library for such addresses is not installed.
    """

    def __init__(self, url: str, *, timeout_s: float, n_tries: int) -> None:
        self.files, self.path = filesystem(url)
        self.host = "/".join(url.split("/")[:3])
        self.timeout_s, self.n_tries = timeout_s, n_tries
        self.n_requests = self.n_again = 0

    def known(self) -> Known:
        """What the store says of it now."""
        return self._patiently(lambda: _known(self._asked_once()))

    def ranges(self, wanted: Sequence[Range]) -> list[bytes]:
        """The bytes of some ranges, asked together; all of the file where its server knows no ranges."""
        found: dict[Range, bytes] = {}

        def ask() -> list[bytes]:
            missing = [each for each in wanted if each not in found]
            starts, stops = ([each[i] for each in missing] for i in (0, 1))
            self.n_requests += len(missing)
            paths = [self.path] * len(missing)
            more = {"batch_size": AT_A_TIME} if self.files.async_impl else {}
            answers = self._call("cat_ranges", paths, starts, stops, on_error="return", **more)
            for each, answer in zip(missing, answers, strict=True):
                if not isinstance(answer, Exception) and len(answer) >= each[1] - each[0]:
                    found[each] = bytes(answer)
            for each, answer in zip(missing, answers, strict=True):
                if isinstance(answer, Exception):
                    raise answer
                if each not in found:
                    raise ConnectionError(
                        f"{len(answer)} bytes came where {each[1] - each[0]} were asked for"
                    )
            return [found[each] for each in wanted]

        return self._patiently(ask)

    def _asked_once(self) -> Mapping[str, Any]:
        self.n_requests += 1
        self.files.invalidate_cache()
        try:
            info: Mapping[str, Any] = self._call("info", self.path)
        except FileNotFoundError as error:
            # fsspec says so of any failure of HTTP.
            if isinstance(error.__cause__, ClientError | TimeoutError) and not _has_status(
                error.__cause__, GONE
            ):
                raise error.__cause__ from error
            raise
        return info

    def _patiently(self, ask: Callable[[], Result]) -> Result:
        """The answer, asked for up to `n_tries` times."""
        n_tries = 1 if self.host in _silent else self.n_tries
        for i in range(n_tries):
            try:
                answer = ask()
            except (FileNotFoundError, PermissionError):
                raise
            except _failures() as error:
                if i + 1 == n_tries or not _may_pass(error):
                    if _may_pass(error):
                        _silent.add(self.host)
                    raise OSError(_told(error, timeout_s=self.timeout_s, n_tries=i + 1)) from error
            else:
                _silent.discard(self.host)
                return answer
            time.sleep(min(LONGEST_PAUSE_S, PAUSE_S * 2**i) * random.uniform(0.5, 1.0))
            self.n_again += 1
        raise AssertionError

    def _call(self, name: str, *arguments: Any, **more: Any) -> Any:
        if self.files.async_impl:
            call = getattr(self.files, f"_{name}")
            return sync(self.files.loop, call, *arguments, timeout=self.timeout_s, **more)
        return getattr(self.files, name)(*arguments, **more)


@contextlib.contextmanager
def in_words(url: str) -> Iterator[None]:
    """Whatever a store raises, said as one sentence that begins with an address."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{redact(url)}: the store has no such file or folder") from error
    except _failures() as error:
        raise OSError(f"{redact(url)}: {_told(error)}") from error


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of an address, made in this process, and the path on it.

    Raises:
        ValueError: its library is not installed, or there is none for such addresses.
    """
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        files, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        extra = EXTRAS.get(protocol)
        how = f"pip install 'histo-ssl[{extra}]'" if extra else " ".join(str(error).split())
        raise ValueError(f"a library that reads {protocol}:// is not installed: {how}") from error
    return files, str(path)


def _known(info: Mapping[str, Any]) -> Known:
    size = info.get("size")
    if info.get("type") == "directory" or size is None:
        raise ValueError("the store does not say how large it is; a file is expected")
    if info.get("partial") is False and size > WHOLE_BYTES:
        raise ValueError(no_ranges(size))
    modified = next((info[name] for name in MODIFIED if info.get(name)), None)
    version = " ".join(str(info[name]) for name in VERSION if info.get(name))
    return Known(n_bytes=int(size), modified_ns=_ns(modified), version=version)


def no_ranges(n_bytes: int) -> str:
    """Why a large file can't be read from a server that sends whole files only."""
    return (
        f"its server sends all of its {n_bytes / 1e6:,.0f} MB where a range is asked for; copy it to another"
    )


def _ns(modified: Any) -> int:
    """Nanoseconds since 1970 of what a store says; 0 where it says nothing that we know."""
    if isinstance(modified, int | float):
        return int(modified * 1e9)
    if isinstance(modified, str):
        try:
            modified = datetime.fromisoformat(modified)
        except ValueError:
            try:
                modified = parsedate_to_datetime(modified)
            except ValueError:
                return 0
    return round(modified.timestamp() * 1e6) * 1000 if isinstance(modified, datetime) else 0


def _told(error: Exception, *, timeout_s: float = math.inf, n_tries: int = 1) -> str:
    times = f", {n_tries} times in a row" if n_tries > 1 else ""
    if isinstance(error, TimeoutError):
        within = f" within store.timeout_s={timeout_s:g}" if math.isfinite(timeout_s) else ""
        return f"the store did not answer{within}{times}"
    if isinstance(error, ClientResponseError):
        return f"the store answered {error.status} {error.message}{times}"
    said = QUERY.sub("", redact(" ".join(str(error).split()))) or type(error).__name__
    return f"the store failed{times}: {said}"


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed a little later."""
    if "Credential" in type(error).__name__:
        return False
    status = getattr(error, "status", None) or getattr(error, "code", None)
    return not isinstance(status, int) or status >= 500 or status in PASSING


def _has_status(error: BaseException | None, statuses: Sequence[int]) -> bool:
    return isinstance(error, ClientResponseError) and error.status in statuses


def _failures() -> tuple[type[Exception], ...]:
    """What a request to a store raises when it fails."""
    modules = ((sys.modules.get(module), name) for module, name in FOREIGN.items())
    return OSError, ClientError, *(getattr(module, name) for module, name in modules if module is not None)
