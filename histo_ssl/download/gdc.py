"""What the Genomic Data Commons lists of files by their names, and its own form of a list of files.

The API: https://docs.gdc.cancer.gov/API/Users_Guide/Search_and_Retrieval/. The form is the one that
`gdc-client download --manifest` reads: id, filename, md5, size and state with tabs between them.
"""

import http.client
import json
import re
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from histo_ssl.download.sets import NotObtainedError
from histo_ssl.download.transfer import UNREACHABLE

FILES = "https://api.gdc.cancer.gov/files"
FIELDS = ("file_id", "file_name", "md5sum", "file_size", "state")
HEADING = ("id", "filename", "md5", "size", "state")
PAGE_FILES = 500
MOST_BYTES = 10_000_000  # of one answer; a page of 500 files takes some 150,000
TIMEOUT_S = 60.0  # without a byte
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MD5 = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A file of the GDC."""

    id: str
    name: str
    md5: str
    n_bytes: int
    state: str  # such as "released"

    def __post_init__(self) -> None:
        texts = (self.id, self.name, self.md5, self.state)
        is_typed = all(isinstance(text, str) for text in texts) and type(self.n_bytes) is int
        if not is_typed or self.n_bytes < 0 or not self.state.isidentifier():
            raise ValueError(f"no file: {self}")
        if not (UUID.fullmatch(self.id) and MD5.fullmatch(self.md5)):
            raise ValueError(f"no file: {self}")


def listed(names: Sequence[str], *, address: str) -> list[Listed]:
    """The files of these names that the GDC lists, in the order of the names.

    Args:
        names: of files, each once.
        address: of the API's `files`.

    Raises:
        NotObtainedError: the GDC can't be reached, or answers something else; says what to do.
    """
    found = {file.id: file for page in _pages(names, address) for file in page}
    place = {name: i for i, name in enumerate(names)}
    foreign = [file.name for file in found.values() if file.name not in place]
    twice = [name for name, n in Counter(file.name for file in found.values()).items() if n > 1]
    if foreign or twice:
        said = f"has {foreign[0]}, which was not asked for" if foreign else f"has several files {twice[0]}"
        raise _failure(address, said)
    return sorted(found.values(), key=lambda file: place[file.name])


def manifest_text(files: Sequence[Listed]) -> str:
    """Files as `gdc-client` takes them: a heading and a line per file."""
    rows = [HEADING, *((file.id, file.name, file.md5, str(file.n_bytes), file.state) for file in files)]
    return "".join("\t".join(row) + "\n" for row in rows)


def _pages(names: Sequence[str], address: str) -> Iterator[list[Listed]]:
    """Answers, one after the other, until all that there is has come."""
    n_before, total = 0, 1
    while n_before < total:
        page, total = _page(names, address, n_before=n_before)
        if not page and n_before < total:
            raise _failure(address, f"sends {n_before} of {total} files and no more")
        n_before += len(page)
        yield page


def _page(names: Sequence[str], address: str, *, n_before: int) -> tuple[list[Listed], int]:
    """The files from number `n_before` on, as many as fit an answer, and how many there are in all."""
    asked = {
        "filters": {"op": "in", "content": {"field": "file_name", "value": list(names)}},
        **{"fields": ",".join(FIELDS), "format": "json", "sort": "file_id:asc"},
        **{"from": n_before, "size": PAGE_FILES},
    }
    try:
        data = json.loads(_answer(asked, address))["data"]
        return [_file(hit) for hit in data["hits"]], int(data["pagination"]["total"])
    except (ValueError, KeyError, TypeError) as error:
        raise _failure(address, f"is not the one expected ({type(error).__name__}: {error})") from error


def _answer(asked: Mapping[str, Any], address: str) -> bytes:
    headers = {"Content-Type": "application/json", "User-Agent": "histo_ssl"}
    request = urllib.request.Request(address, data=json.dumps(asked).encode(), headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
            return _body(response)
    except urllib.error.HTTPError as error:
        raise _failure(address, f"is {error.code} {error.reason}") from error
    except UNREACHABLE as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise NotObtainedError(
            f"{address}: no connection ({reason}); give this command on a machine that reaches it, and carry "
            "the two files that it writes over here"
        ) from error


def _body(response: http.client.HTTPResponse) -> bytes:
    content = response.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes")
    return content


def _file(hit: Mapping[str, Any]) -> Listed:
    file_id, name, md5, n_bytes, state = (hit[field] for field in FIELDS)
    return Listed(id=file_id, name=name, md5=md5, n_bytes=n_bytes, state=state)


def _failure(address: str, said: str) -> NotObtainedError:
    return NotObtainedError(
        f"{address}: the answer {said}; give the command again later, or make the manifest by hand at "
        "https://portal.gdc.cancer.gov"
    )
