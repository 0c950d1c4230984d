"""Integer keys for accounts and orders, and what repeats in every row written once.

Two thirds of a large ledger were ids of 32 characters, in each row and again in each index. What
belongs to an order refers to its key now; the statuses and the source of a transition are a row of
``moves``, the folder of a file is one of ``folders``. The views ``history`` and ``files`` tell
transitions and certificates in words, for those who read the ledger by hand.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from harvester.domain.errors import LedgerDamaged

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

_ACCOUNT = (
    "id, name, mode, scope, currency, beneficiary, organisation_id, is_default, first_seen_at,"
    " last_seen_at, sweep_number, joined_sweep, last_sweep_at, next_sweep_at, parked_reason"
)
_ORDER = (
    "id, idempotency_key, status, quantity, metadata, created_at, first_seen_at, last_seen_at,"
    " changed_at, next_check_at, first_sweep, beneficiary, missing_since, document_digest,"
    " certificate_state, owed_since, attempts, failure_reason, place, stuck_at"
)
_ANOMALY = "kind, recorded, served, first_at, last_at, count"
_CERTIFICATE = "version, kind, size, stored_at, cf_ray, lost_at"

# A planner that knows nothing of the new tables must not choose where to begin: SQLite's leaves a
# CROSS JOIN in the order written, so that each table is read once, and no row is kept in memory.
_ACCOUNT_OF_ITS_ORDER = "new_orders AS o CROSS JOIN new_accounts AS a CROSS JOIN "
_OF_ORDER = " WHERE a.key = o.account_key AND t.account_id = a.id AND t.order_id = o.id"
# Whose certificate is stored was not tried in vain: nothing asks when it was tried.
_TRIED_AT = "CASE t.certificate_state WHEN 'stored' THEN NULL ELSE t.tried_at END"

_HISTORY = """
    CREATE VIEW history AS
    SELECT accounts.id AS account_id, orders.id AS order_id, seq, from_status, to_status,
        observed_at, source
    FROM transitions
    JOIN moves ON moves.key = transitions.move_key
    JOIN orders ON orders.key = transitions.order_key
    JOIN accounts ON accounts.key = orders.account_key
"""
_FILES = """
    CREATE VIEW files AS
    SELECT accounts.id AS account_id, orders.id AS order_id, version, kind,
        path || certificates.name AS key, {} AS sha256, size, stored_at, cf_ray, lost_at
    FROM certificates
    JOIN folders ON folders.key = certificates.folder_key
    JOIN orders ON orders.key = certificates.order_key
    JOIN accounts ON accounts.key = orders.account_key
"""

_ROWS_AND_ROWS_PER_PREFIX = {
    ("accounts", "sqlite_autoindex_accounts_1"): "1000 1",
    ("certificates", "certificates"): "1000000 1 1",
    ("certificates", "sqlite_autoindex_certificates_2"): "1000000 1 1",
    ("folders", "sqlite_autoindex_folders_1"): "20000 1",
    ("hints", "sqlite_autoindex_hints_1"): "100 2 1",
    ("moves", "sqlite_autoindex_moves_1"): "40 7 2 1",
    ("orders", "orders_by_id"): "1000000 1 1",
    ("orders", "orders_by_key"): "1000000 1",
    ("orders", "orders_changed"): "1000000 1 1",
    ("orders", "orders_due"): "20000 2 2 1 1 1 1",
    ("orders", "orders_listing"): "1000000 200000 1 1",
    ("orders", "orders_newest"): "1000000 1",
    ("orders", "orders_unsettled"): "20000 3000 2000 1",
    ("orders", "orders_without_certificate"): "1000 200 1 1 1",
    ("transitions", "transitions"): "5000000 5 1",
}


def upgrade() -> None:
    _create_parents()
    _create_children()
    _copy_parents()
    _copy_children()
    for table in ("transitions", "certificates", "order_documents", "anomalies", "orders"):
        op.drop_table(table)
        op.rename_table(f"new_{table}", table)
    _replace_accounts()
    _create_indexes()
    _create_views()
    if _is_sqlite():
        _tell_the_planner()


def _is_sqlite() -> bool:
    return op.get_bind().dialect.name == "sqlite"


def _create_parents() -> None:
    op.create_table(
        "new_accounts",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("scope", sa.Text, nullable=False),
        sa.Column("currency", sa.Text),
        sa.Column("beneficiary", sa.Text),
        sa.Column("organisation_id", sa.Text),
        sa.Column("is_default", sa.Integer, nullable=False),
        sa.Column("first_seen_at", WHOLE, nullable=False),
        sa.Column("last_seen_at", WHOLE, nullable=False),
        sa.Column("sweep_number", sa.Integer, nullable=False, server_default="0"),
        sa.Column("joined_sweep", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_sweep_at", WHOLE),
        sa.Column("next_sweep_at", WHOLE, nullable=False, server_default="0"),
        sa.Column("parked_reason", sa.Text),
        sqlite_strict=True,
    )
    op.create_table(
        "new_orders",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("account_key", WHOLE, sa.ForeignKey("new_accounts.key"), nullable=False),
        sa.Column("id", sa.Text, nullable=False),
        sa.Column("idempotency_key", sa.Text),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("quantity", sa.Text),
        sa.Column("metadata", sa.Text, nullable=False),
        sa.Column("created_at", WHOLE, nullable=False),
        sa.Column("first_seen_at", WHOLE, nullable=False),
        sa.Column("last_seen_at", WHOLE, nullable=False),
        sa.Column("changed_at", WHOLE, nullable=False),
        sa.Column("next_check_at", WHOLE),
        sa.Column("first_sweep", sa.Integer, nullable=False),
        sa.Column("beneficiary", sa.Text),
        sa.Column("missing_since", WHOLE),
        sa.Column("document_digest", sa.LargeBinary, nullable=False),
        sa.Column("certificate_state", sa.Text),
        sa.Column("owed_since", WHOLE),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tried_at", WHOLE),
        sa.Column("failure_reason", sa.Text),
        sa.Column("place", WHOLE),
        sa.Column("stuck_at", WHOLE),
        sa.CheckConstraint(
            "certificate_state IN ('owed', 'stored', 'failed')", name="certificate_state_known"
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "moves",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.CheckConstraint(
            "source IN ('sweep', 'check', 'webhook', 'track', 'drain')", name="source_known"
        ),
        sa.UniqueConstraint("to_status", "source", "from_status"),
        sqlite_strict=True,
    )
    op.create_table(
        "folders",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("path", sa.Text, nullable=False, unique=True),
        sqlite_strict=True,
    )


def _order_key() -> sa.Column[int]:
    order = sa.ForeignKey("new_orders.key")
    return sa.Column("order_key", WHOLE, order, primary_key=True, autoincrement=False)


def _create_children() -> None:
    op.create_table(
        "new_order_documents",
        _order_key(),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "new_transitions",
        _order_key(),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("move_key", WHOLE, sa.ForeignKey("moves.key"), nullable=False),
        sa.Column("observed_at", WHOLE, nullable=False),
        sa.CheckConstraint("seq >= 1", name="seq_from_one"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "new_anomalies",
        _order_key(),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("recorded", sa.Text, primary_key=True),
        sa.Column("served", sa.Text, primary_key=True),
        sa.Column("first_at", WHOLE, nullable=False),
        sa.Column("last_at", WHOLE, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "new_certificates",
        _order_key(),
        sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("folder_key", WHOLE, sa.ForeignKey("folders.key"), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stored_at", WHOLE, nullable=False),
        sa.Column("cf_ray", sa.Text),
        sa.Column("lost_at", WHOLE),
        sa.CheckConstraint("version >= 1", name="version_from_one"),
        sa.CheckConstraint("kind IN ('interim', 'final')", name="kind_known"),
        # By name first: it holds the order's id, and so is all but unique in itself.
        sa.UniqueConstraint("name", "folder_key"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _copy(table: str, columns: str, values: str, source: str) -> None:
    """Copy a table's rows to the new one; fails when one of them belongs to nothing."""
    connection = op.get_bind()
    copy = f"INSERT INTO new_{table} ({columns}) SELECT {values} FROM {source}"  # noqa: S608 - texts of this file
    copied = connection.exec_driver_sql(copy).rowcount
    found = connection.scalar(sa.select(sa.func.count()).select_from(sa.table(table)))
    if copied != found:
        raise LedgerDamaged(
            f"the ledger is left as it was: {found} rows of {table}, {copied} of which belong to"
            " something; restore a backup, or move it away and let a new one be built"
        )


def _of(table: str, columns: str) -> str:
    return ", ".join(f"{table}.{column}" for column in columns.split(", "))


def _copy_parents() -> None:
    _copy("accounts", _ACCOUNT, _ACCOUNT, "accounts")
    _copy(
        "orders",
        f"account_key, {_ORDER}, tried_at",
        f"a.key, {_of('t', _ORDER)}, {_TRIED_AT}",
        "orders AS t CROSS JOIN new_accounts AS a WHERE a.id = t.account_id",
    )


def _copy_children() -> None:
    _copy(
        "order_documents",
        "order_key, document",
        "o.key, t.document",
        f"{_ACCOUNT_OF_ITS_ORDER} order_documents AS t {_OF_ORDER}",
    )
    op.execute(
        "INSERT INTO moves (from_status, to_status, source)"
        " SELECT DISTINCT from_status, to_status, source FROM transitions"
    )
    _copy(
        "transitions",
        "order_key, seq, move_key, observed_at",
        "o.key, t.seq, m.key, t.observed_at",
        f"{_ACCOUNT_OF_ITS_ORDER} transitions AS t CROSS JOIN moves AS m {_OF_ORDER}"
        " AND m.to_status = t.to_status AND m.source = t.source AND (m.from_status ="
        " t.from_status OR (m.from_status IS NULL AND t.from_status IS NULL))",
    )
    _copy(
        "anomalies",
        f"order_key, {_ANOMALY}",
        f"o.key, {_of('t', _ANOMALY)}",
        f"{_ACCOUNT_OF_ITS_ORDER} anomalies AS t {_OF_ORDER}",
    )
    _copy_certificates()


def _copy_certificates() -> None:
    # A folder is its files' keys up to the last slash; of files that lie in none it is ''.
    op.execute(
        "INSERT INTO folders (path)"
        " SELECT DISTINCT rtrim(key, replace(key, '/', '')) FROM certificates"
    )
    sha256 = "decode(t.sha256, 'hex')"
    if _is_sqlite():  # its own unhex() is there from 3.41 on
        driver: Any = op.get_bind().connection.driver_connection
        driver.create_function("from_hex", 1, bytes.fromhex, deterministic=True)
        sha256 = "from_hex(t.sha256)"
    _copy(
        "certificates",
        f"order_key, {_CERTIFICATE}, folder_key, name, sha256",
        f"o.key, {_of('t', _CERTIFICATE)}, f.key, substr(t.key, length(f.path) + 1), {sha256}",
        f"{_ACCOUNT_OF_ITS_ORDER} certificates AS t CROSS JOIN folders AS f {_OF_ORDER}"
        " AND f.path = rtrim(t.key, replace(t.key, '/', ''))",
    )


def _replace_accounts() -> None:
    if _is_sqlite():  # which leaves the tables that refer to accounts as they are
        op.drop_table("accounts")
        op.rename_table("new_accounts", "accounts")
        return
    op.execute("DROP TABLE accounts CASCADE")
    op.rename_table("new_accounts", "accounts")
    for table in ("set_aside", "intentions", "hints"):
        op.create_foreign_key(None, table, "accounts", ["account_id"], ["id"])


def _create_indexes() -> None:
    op.create_index("orders_by_id", "orders", ["id", "account_key"], unique=True)
    op.create_index("orders_by_key", "orders", ["idempotency_key"])
    op.create_index("orders_listing", "orders", ["account_key", "created_at", "place"])
    op.create_index("orders_newest", "orders", ["created_at"])
    op.create_index("orders_changed", "orders", ["changed_at", "account_key"])
    _create_partial_index(
        "orders_unsettled",
        ["status", "certificate_state", "changed_at"],
        "status <> 'complete' OR certificate_state IS NULL OR certificate_state <> 'stored'",
    )
    _create_partial_index(
        "orders_due",
        ["next_check_at", "account_key", "id", "place", "status", "certificate_state"],
        "next_check_at IS NOT NULL",
    )
    _create_partial_index(
        "orders_without_certificate",
        ["account_key", "id", "status", "certificate_state"],
        "certificate_state IN ('owed', 'failed')",
    )


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    only = sa.text(condition)
    op.create_index(name, "orders", columns, sqlite_where=only, postgresql_where=only)


def _create_views() -> None:
    op.execute(_HISTORY)
    op.execute(_FILES.format("lower(hex(sha256))" if _is_sqlite() else "encode(sha256, 'hex')"))


def _tell_the_planner() -> None:
    # Dropping a table drops what was written down of it.
    for (table, index), stat in _ROWS_AND_ROWS_PER_PREFIX.items():
        op.get_bind().exec_driver_sql(
            "INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", (table, index, stat)
        )
