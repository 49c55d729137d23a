"""Opening the database: SQLite by a path, any other by its SQLAlchemy URL.

SQLite keeps a write-ahead log and flushes it to the disk at every commit: what is committed
survives the death of the process and of the machine. A transaction that will write takes the
write lock at its start, so that what it read still holds when it writes.
"""

from __future__ import annotations

from pathlib import Path
from sqlite3 import Connection as SQLiteConnection

from sqlalchemy import URL, Connection, Engine, create_engine, event
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
    """An engine on a database that holds the tables; missing ones are made.

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


def _engine(database: Path | str) -> Engine:
    if isinstance(database, str) and not database.startswith("sqlite"):
        return create_engine(database, pool_pre_ping=True)
    if isinstance(database, Path):
        database.parent.mkdir(parents=True, exist_ok=True)
    url = URL.create("sqlite", database=str(database)) if isinstance(database, Path) else database
    engine = create_engine(url)
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
    if isinstance(database, Path):
        return str(database)
    head, at, tail = database.rpartition("@")
    return f"{head.split('://')[0]}://...@{tail}" if at else database
