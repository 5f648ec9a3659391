"""Folders for KV that is of use to one process only, and what becomes of a killed one's.

Each process that offloads has a folder ``idle-…`` of its own under ``offload_url`` and a lock (flock)
on it as long as it lives; the kernel lets go of the lock however the process ends. So whoever starts
on the same disk, in another container too, can tell a folder that somebody uses from one that was
left behind, and deletes the latter. An object store has no locks: what a killed process left there
goes with ``snapshot_retention_h``, or stream by stream when one is forgotten.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import uuid
import weakref
from pathlib import Path

from operators.errors import ConfigError
from pipelines.storage.bounded import BoundedStore
from pipelines.storage.snapshots import SnapshotStore

log = logging.getLogger(__name__)


def idle_store(url: str, may_be_away: bool = False) -> BoundedStore | None:
    """A folder under ``url`` that no other process has; None for no URL. On a disk it deletes those
    whose owners are dead.

    Raises ConfigError. A store that ``may_be_away`` is not asked before it is needed; a disk that is
    away then is done without (None): host memory holds all streams until the next start.
    """
    if not url:
        return None
    name = f"idle-{uuid.uuid4().hex}"
    try:
        here = SnapshotStore(url, may_be_away).folder
        lock = _claim(here / name) if here is not None else None
        store = SnapshotStore(f"{url.rstrip('/')}/{name}", may_be_away)
    except ConfigError as error:
        if not may_be_away:
            raise
        log.warning("KV of idle streams stays in host memory: %s", error)
        return None
    if lock is not None:
        weakref.finalize(store, os.close, lock)
    if here is not None:
        clear_left(here)
    return BoundedStore(store)


def clear_left(here: Path) -> int:
    """Delete the folders whose owners are dead; how many there were."""
    count = 0
    for folder in here.glob("idle-*"):
        lock = _lock(folder)
        if lock is None:
            continue  # somebody's, or the file system has no locks
        try:
            shutil.rmtree(folder)
            count += 1
        except OSError as error:
            log.warning("%s, left by a process that was killed, stays: %s", folder, error)
        finally:
            os.close(lock)
    if count:
        log.info("deleted %d folders of KV left by processes that ended", count)
    return count


def _claim(folder: Path) -> int | None:
    """Make the folder, locked before it has the name by which others look for it."""
    made = folder.with_name(f".{folder.name}")
    try:
        made.mkdir(mode=0o700)
        lock = _lock(made)
        made.rename(folder)
    except OSError as error:
        raise ConfigError(f"offload_url {folder.parent}: {error}") from error
    return lock


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder's lock; None if it is not to be had."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
