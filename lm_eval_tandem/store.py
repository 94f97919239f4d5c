"""Finished calls on disk, so that a run that was killed continues without computing them again.

A store is one SQLite file. A row is written in one transaction when its call has finished, so a killed process leaves
either the whole row or none. Rows are handed to the operating system at once, and to the disk soon after: no killed
process loses one, but a computer that loses power may lose those of the last moments; the file stays whole. The key
covers everything that can change the output. Each row has a checksum of key and value; a row whose checksum does not
match is ignored and computed again. Failures are never stored.

`engines.cached.CachedEngine` puts a store in front of an engine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import StoreError

APPLICATION_ID = 0x74616E64
"""SQLite's application_id of a store ("tand"); it distinguishes a store from other programs' files."""
VERSION = 1
"""Version of the file format."""
LOCK_TIMEOUT = 60.0
"""Seconds to wait for another process that is writing."""
LOCK_POLL = 0.02
"""Seconds between two attempts to open a file that another process has locked."""

log = logging.getLogger(__name__)


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that can change an output, in canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """A mapping on disk from keys (`key_of`) to JSON values, safe for several processes and threads at once.

    Parameters
    ----------
    path
        The file; it and its folder are created where they do not exist.

    Attributes
    ----------
    corrupted_rows
        Number of rows read since the store was opened whose checksum did not match.
    failed_writes
        Number of values that could not be written since the store was opened, because the disk is full or fails.

    Raises
    ------
    StoreError
        The file is not a store, is damaged, or was written by another version.

    Examples
    --------
    >>> store = Store("run.sqlite")
    >>> store.put(key_of({"prompt": "1 + 1 ="}), {"text": " 2"})
    >>> store.get(key_of({"prompt": "1 + 1 ="}))
    {'text': ' 2'}
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.corrupted_rows = 0
        self.failed_writes = 0
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
            self._open_when_free()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"store={self.path} cannot be used as a store ({error}); "
                "name a new file, or delete this one if you do not need it."
            ) from error

    def _open_when_free(self) -> None:
        # SQLite's own timeout does not cover the switch to WAL mode, which another process may be making right now.
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(LOCK_POLL)

    def _open(self) -> None:
        is_new = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not is_new and application != APPLICATION_ID:
            raise StoreError(f"store={self.path} is an SQLite file of another program; name a new file.")
        if not is_new and version != VERSION:
            raise StoreError(
                f"store={self.path} was written by store version {version}, this package reads version {VERSION}; "
                "name a new file."
            )
        problem = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if problem != "ok":
            raise StoreError(f"store={self.path} is damaged ({problem}); name a new file, or remove this one.")
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION};"
            "CREATE TABLE IF NOT EXISTS finished (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT NOT NULL)"
            " WITHOUT ROWID; COMMIT;"
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """The value stored under `key`, or None.

        A row whose checksum does not match counts as missing and is logged as a warning.

        Raises
        ------
        StoreError
            The file cannot be read any more.
        """
        try:
            with self._lock:
                row = self._db.execute("SELECT value, digest FROM finished WHERE key = ?", (key,)).fetchone()
        except sqlite3.Error as error:
            raise StoreError(
                f"store={self.path} cannot be read any more ({error}); copy what you need of it, name a new file, and "
                "run again."
            ) from error
        if row is None:
            return None
        value, digest = row
        if _digest(key, value) != digest:
            with self._lock:
                self.corrupted_rows += 1
            log.warning("store=%s: entry %s is corrupted; it is ignored and will be computed again.", self.path, key)
            return None
        stored: dict[str, Any] = json.loads(value)
        return stored

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Write a finished value; the whole row is with the operating system when this returns (see above).

        A disk that is full or fails does not stop the run, since the caller has the value and earlier rows stay
        intact: `failed_writes` is increased, and the first failure is logged as a warning.
        """
        text = json.dumps(value, separators=(",", ":"))
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", (key, text, _digest(key, text)))
        except sqlite3.Error as error:
            with self._lock:
                self.failed_writes += 1
                first = self.failed_writes == 1
            if first:
                log.warning(
                    "store=%s cannot be written (%s); the run continues without storing further calls.",
                    self.path,
                    error,
                )

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM finished").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _digest(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\n{value}".encode()).hexdigest()
