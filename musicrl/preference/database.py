"""Opening the database: SQLite by a path, any other by its SQLAlchemy URL (which holds "://").

SQLite keeps a write-ahead log and flushes it to the disk at every commit: what is committed
survives the death of the process and of the machine. A transaction that will write takes the
write lock at its start, so that what it read still holds when it writes.
"""

from __future__ import annotations

from pathlib import Path
from sqlite3 import Connection as SQLiteConnection

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from musicrl.preference.tables import metadata

PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
    "PRAGMA busy_timeout=30000",  # ms
)
READS = {"musicrl_reads": True}
"""Execution options of a connection that only reads."""


def open_database(database: Path | str) -> Engine:
    """An engine on a database that holds the tables; missing ones are made, and so is a file.

    Raises ValueError naming a URL that SQLAlchemy does not understand, and a database that cannot
    be opened or is none.
    """
    try:
        engine = _engine(database)
        metadata.create_all(engine)
    except ArgumentError as fault:
        raise ValueError(f"{_shown(database)} is not the URL of a database: {fault}") from fault
    except SQLAlchemyError as fault:
        reason = fault.orig if isinstance(fault, OperationalError) else fault
        raise ValueError(f"cannot open the database {_shown(database)}: {reason}") from fault
    return engine


def database_file(database: Path | str) -> Path | None:
    """The file that a database is, if it is one of SQLite's."""
    if isinstance(database, Path) or "://" not in database:
        return Path(database)
    url = make_url(database)
    return Path(url.database) if url.drivername.startswith("sqlite") and url.database else None


def _engine(database: Path | str) -> Engine:
    path = database_file(database)
    if path is None:
        return create_engine(str(database), pool_pre_ping=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(URL.create("sqlite", database=str(path)))
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: SQLiteConnection, entry: ConnectionPoolEntry) -> None:
    # Python's module would open transactions of its own, later than `_begin` does.
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(pragma)


def _begin(connection: Connection) -> None:
    reads = READS.items() <= connection.get_execution_options().items()
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _shown(database: Path | str) -> str:
    """Without the password that a URL may hold."""
    head, at, tail = str(database).rpartition("@")
    return f"{head.split('://')[0]}://...@{tail}" if at and "://" in head else str(database)
