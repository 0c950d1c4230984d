"""The schema of a release to come, for what happens while a ledger is upgraded.

    python -m tests.faults.next_release LEDGER MIGRATIONS

upgrades a ledger as ``harvester db upgrade`` of that release would: locked, with a backup, and with
its exit codes. Its revision makes a table anew, the way SQLite's documents say, and leaves the
ledger readable for this release.
"""

from __future__ import annotations

import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

from harvester.cli.exits import exit_code_of, explain
from harvester.ledger import migrate
from harvester.ledger.lock import LedgerLock

UPGRADE = "upgrade-to-next-release"
"""What a fork server is asked with for this instead of a command."""

_REVISION = '''
"""What a later release may do."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("accounts", sa.Column("region", sa.Text))
    op.execute("UPDATE accounts SET region = mode")
    op.execute(
        "CREATE TABLE documents_anew (order_key INTEGER NOT NULL PRIMARY KEY"
        " REFERENCES orders (key), document BLOB NOT NULL) STRICT"
    )
    op.execute("INSERT INTO documents_anew SELECT order_key, document FROM order_documents")
    op.execute("DROP TABLE order_documents")
    op.execute("ALTER TABLE documents_anew RENAME TO order_documents")
'''


def next_migrations(folder: Path) -> Path:
    """Make the chain of the next release in an empty or missing folder; return it."""
    shutil.copytree(migrate.migrations_folder(), folder, dirs_exist_ok=True)
    (folder / "versions" / "0002_next.py").write_text(_REVISION, "utf-8")
    return folder


def go_back(ledger: Path) -> None:
    """Let this release use an upgraded ledger; nothing in it is in the way."""
    with closing(sqlite3.connect(ledger)) as connection, connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (migrate.head(),))


def main() -> None:
    """Upgrade; end with a code of the table."""
    ledger, migrations = (Path(one).absolute() for one in sys.argv[1:])
    try:
        with LedgerLock(ledger, "db upgrade"):
            migrate.upgrade(ledger, migrations)
    except Exception as error:  # noqa: BLE001 - as the command's last door does
        explain(error)
        sys.exit(exit_code_of(error))


if __name__ == "__main__":
    main()
