"""Finished generations on disk: what a killed run had finished is not generated again.

One SQLite file. A row is written when its generation has ended, in one transaction, so a killed process leaves either
the whole row or nothing. The key covers everything that can change the output; a row carries a checksum over key and
value, and one that does not fit is refused and generated anew. Failures are never stored.
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

APPLICATION = 0x74616E64
"""SQLite's application_id of our files ("tand")."""
VERSION = 1
WAIT = 60.0
"""Seconds to wait for another process that writes."""

log = logging.getLogger(__name__)


def key_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of everything that can change an output, in canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store:
    """A durable mapping from keys (`key_of`) to JSON values. Safe for several processes and threads at once.

    Raises
    ------
    StoreError
        The file is no store, is damaged, or was written by another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.refused = 0
        """Rows whose checksum did not fit since this store was opened."""
        self.unkept = 0
        """Values that could not be written since this store was opened: the disk is full, or failed."""
        self._lock = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._open_when_free()
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"store={self.path} cannot be used as a store ({error}); "
                "name a new file, or remove this one if it may be lost."
            ) from error

    def _open_when_free(self) -> None:
        # SQLite's own timeout does not cover the switch to WAL, which another process may be making just now.
        deadline = time.monotonic() + WAIT
        while True:
            try:
                return self._open()
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    def _open(self) -> None:
        fresh = not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._db.execute("PRAGMA application_id").fetchone()[0]
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if not fresh and application != APPLICATION:
            raise StoreError(f"store={self.path} is an SQLite file of another program; name a new file.")
        if not fresh and version != VERSION:
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
            f"BEGIN IMMEDIATE; PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {VERSION};"
            "CREATE TABLE IF NOT EXISTS finished (key TEXT PRIMARY KEY, value TEXT NOT NULL, digest TEXT NOT NULL)"
            " WITHOUT ROWID; COMMIT;"
        )

    def get(self, key: str) -> dict[str, Any] | None:
        """The value stored under `key`, or None. A row whose checksum does not fit is refused: None, and a warning."""
        with self._lock:
            row = self._db.execute("SELECT value, digest FROM finished WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        value, digest = row
        if _digest(key, value) != digest:
            self.refused += 1
            log.warning("store=%s: entry %s is corrupted; it is not used and will be generated again.", self.path, key)
            return None
        found: dict[str, Any] = json.loads(value)
        return found

    def put(self, key: str, value: Mapping[str, Any]) -> None:
        """Keep a finished value; the row is whole on disk when this returns.

        Where the disk is full or fails the run goes on without: the value is in the caller's hands, and what was kept
        before stays. The first time a warning says so, and `unkept` counts.
        """
        text = json.dumps(value, separators=(",", ":"))
        try:
            with self._lock:
                self._db.execute("INSERT OR REPLACE INTO finished VALUES (?, ?, ?)", (key, text, _digest(key, text)))
        except sqlite3.OperationalError as error:
            self.unkept += 1
            if self.unkept == 1:
                log.warning("store=%s cannot be written (%s); the run goes on without keeping more.", self.path, error)

    def __len__(self) -> int:
        with self._lock:
            return int(self._db.execute("SELECT count(*) FROM finished").fetchone()[0])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()


def _digest(key: str, value: str) -> str:
    return hashlib.sha256(f"{key}\n{value}".encode()).hexdigest()
