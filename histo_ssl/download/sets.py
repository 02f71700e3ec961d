"""Brings a public set into a folder: what is there is left alone, what is new appears whole or not at all."""

import logging
import os
import shutil
from pathlib import Path

from histo_ssl.download import archives
from histo_ssl.download.arrays import LABELS, write_images
from histo_ssl.download.catalogue import PublicSet, RemoteFile
from histo_ssl.download.transfer import TransferError, fetch
from histo_ssl.folders.artifacts import TEMPORARY, exclusive

log = logging.getLogger(__name__)


class NotObtainedError(Exception):
    """A set is not there. Its text is a sentence that says what to do by hand."""


def obtain(public: PublicSet, folder: Path) -> Path:
    """The folder that the set's task expects, with all of the set in it.

    Raises:
        NotObtainedError: says why not, where the files are and where to put them.
    """
    if public.by_hand:
        _check_by_hand(public, folder)
        return folder
    root = folder / public.root
    if public.arrays and (folder / LABELS).exists():
        log.info("%s is there already", folder / LABELS)
        return root
    make_folder(folder)  # before the lock, which would wait where none can be made
    with exclusive(folder, label=f"download {public.name}"):
        for file in public.files:
            _obtain_file(file, folder, sums=public.sums)
        if public.arrays:
            log.info("%s: %d images written", folder / LABELS, write_images(public.arrays, folder))
            for file in public.files:
                (folder / file.makes).unlink()
    return root


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, where there is none.

    Raises:
        NotObtainedError: none can be made there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise NotObtainedError(f"--to {folder}: no folder can be made there ({reason})") from error


def _check_by_hand(public: PublicSet, folder: Path) -> None:
    missing = [name for name in public.needs if not (folder / name).exists()]
    if missing:
        raise NotObtainedError(
            f"{public.name} can't be fetched by a program: {public.source}; {public.by_hand}, in {folder}; "
            f"not there yet: {', '.join(missing)}"
        )


def _obtain_file(file: RemoteFile, folder: Path, *, sums: str) -> None:
    if (folder / file.makes).exists():
        log.info("%s is there already", folder / file.makes)
        return
    try:
        archive = fetch(file, folder)
        _unpack(archive, file, folder)
    except (TransferError, archives.ArchiveError) as error:
        known = f"MD5 {file.md5}, {sums}" if file.md5 else "its MD5 is not known here"
        raise NotObtainedError(
            f"{file.name}: {error}; by hand: fetch {file.url} ({known}), put it into {folder} as {file.name} "
            "and give the command again"
        ) from error
    archive.unlink()


def _unpack(archive: Path, file: RemoteFile, folder: Path) -> None:
    """Unpack into a folder of its own, of which only what is expected then takes its name."""
    fresh = folder / f"{TEMPORARY}{file.makes}"
    archives.remove(fresh)  # of a process that was killed
    try:
        if archive.suffix == ".gz":
            fresh.mkdir()
            archives.gunzip(archive, fresh / file.makes, most_bytes=file.most_bytes)
        else:
            _check_room(archive, folder)
            archives.unzip(archive, fresh, most_bytes=file.most_bytes, most_files=file.most_files)
        if not (fresh / file.makes).exists():
            raise archives.ArchiveError(f"{file.makes} is not in it")
        os.sync()  # a name in the folder shall mean that the content is on the disk
        (fresh / file.makes).rename(folder / file.makes)
        log.info("%s: unpacked", folder / file.makes)
    finally:
        archives.remove(fresh)


def _check_room(archive: Path, folder: Path) -> None:
    needed, free = archives.unpacked_bytes(archive), shutil.disk_usage(folder).free
    if needed > free:
        raise TransferError(f"{needed:,} bytes to unpack, {folder} has room for {free:,}")
