"""The ledger: accounts, orders, transitions, certificates, purchases, events, webhooks.

Ids of Lune's are texts of 32 characters; in each row and again in each index they would be two
thirds of a large ledger. So accounts and orders have integer keys, and what belongs to an order
refers to its key. What repeats in very many rows is written once: the statuses and the source of a
transition are a row of ``moves``, the folder of a file is one of ``folders``. The views ``history``
and ``files`` have transitions and certificates in words, for those who read the ledger by hand.
"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# STRICT knows INTEGER but not BIGINT; on SQLite they are the same 64 bits.
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

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
        folders.path || certificates.name AS path, {} AS sha256, size, stored_at, cf_ray, lost_at
    FROM certificates
    JOIN folders ON folders.key = certificates.folder_key
    JOIN orders ON orders.key = certificates.order_key
    JOIN accounts ON accounts.key = orders.account_key
"""

# Without statistics SQLite's planner takes an index of few rows for one of all, and reads years of
# orders at every turn. Written down rather than counted (ANALYZE), so that plans are the same on
# every ledger.
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
    ("orders", "orders_without_certificate"): "1000 200 1 1 1 1",
    ("transitions", "transitions"): "5000000 5 1",
}


def upgrade() -> None:
    _create_accounts_and_orders()
    _create_what_belongs_to_orders()
    _create_what_belongs_to_accounts()
    _create_events()
    _create_webhooks()
    _create_indexes()
    is_sqlite = op.get_bind().dialect.name == "sqlite"
    op.execute(_HISTORY)
    op.execute(_FILES.format("lower(hex(sha256))" if is_sqlite else "encode(sha256, 'hex')"))
    if is_sqlite:
        _tell_the_planner()


def _create_accounts_and_orders() -> None:
    op.create_table(
        "accounts",
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
        sa.Column("sweep_number", sa.Integer, nullable=False),
        sa.Column("joined_sweep", sa.Integer, nullable=False),
        sa.Column("last_sweep_at", WHOLE),
        sa.Column("next_sweep_at", WHOLE, nullable=False),
        sa.Column("parked_reason", sa.Text),
        sqlite_strict=True,
    )
    op.create_table(
        "orders",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("account_key", WHOLE, sa.ForeignKey("accounts.key"), nullable=False),
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
        sa.Column("not_found_since", WHOLE),
        sa.Column("document_digest", sa.LargeBinary, nullable=False),
        sa.Column("certificate_state", sa.Text),
        sa.Column("owed_since", WHOLE),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("tried_at", WHOLE),
        sa.Column("failure_reason", sa.Text),
        sa.Column("position", WHOLE),
        sa.Column("stuck_at", WHOLE),
        sa.CheckConstraint(
            "certificate_state IN ('owed', 'stored', 'failed')", name="certificate_state_known"
        ),
        sqlite_strict=True,
    )


def _order_key() -> sa.Column[int]:
    order = sa.ForeignKey("orders.key")
    return sa.Column("order_key", WHOLE, order, primary_key=True, autoincrement=False)


def _create_what_belongs_to_orders() -> None:
    op.create_table(
        "order_documents",
        _order_key(),
        sa.Column("document", sa.LargeBinary, nullable=False),
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
        "transitions",
        _order_key(),
        sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("move_key", WHOLE, sa.ForeignKey("moves.key"), nullable=False),
        sa.Column("observed_at", WHOLE, nullable=False),
        sa.CheckConstraint("seq >= 1", name="seq_from_one"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "anomalies",
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
        "folders",
        sa.Column("key", WHOLE, primary_key=True),
        sa.Column("path", sa.Text, nullable=False, unique=True),
        sqlite_strict=True,
    )
    op.create_table(
        "certificates",
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


def _create_what_belongs_to_accounts() -> None:
    op.create_table(
        "rejected_orders",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("reference", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("first_at", WHOLE, nullable=False),
        sa.Column("last_at", WHOLE, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sqlite_strict=True,
    )
    op.create_table(
        "purchases",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("idempotency_key", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("recorded_at", WHOLE, nullable=False),
        sa.Column("settled_at", WHOLE),
        sa.Column("order_id", sa.Text),
        sa.Column("refusal", sa.Text),
        sa.CheckConstraint(
            "(settled_at IS NULL) = (order_id IS NULL AND refusal IS NULL)",
            name="settled_one_way",
        ),
        sqlite_strict=True,
    )
    op.create_table(
        "hints",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("order_id", sa.Text, primary_key=True),
        sa.Column("hinted_at", WHOLE, nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("sequence", sa.Text, nullable=False),
        sa.Column("due_at", WHOLE, nullable=False),
        sqlite_strict=True,
    )


def _create_events() -> None:
    op.create_table(
        "events",
        sa.Column("seq", WHOLE, primary_key=True, autoincrement=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text, nullable=False),
        sa.Column("order_id", sa.Text),
        sa.Column("at", WHOLE, nullable=False),
        sa.Column("data", sa.Text, nullable=False),
        sqlite_strict=True,
        sqlite_autoincrement=True,  # a number is never given twice, though old events are deleted
    )
    op.create_table(
        "receivers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("types", sa.Text),
        sa.Column("accounts", sa.Text),
        sa.Column("parked_reason", sa.Text),
        sqlite_strict=True,
    )
    op.create_table(
        "deliveries",
        sa.Column(
            "receiver",
            sa.Text,
            sa.ForeignKey("receivers.name", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "seq",
            WHOLE,
            sa.ForeignKey("events.seq", ondelete="CASCADE"),
            primary_key=True,
            autoincrement=False,
        ),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", WHOLE),
        sa.Column("failure", sa.Text),
        sa.CheckConstraint("attempts >= 0", name="attempts_counted"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _create_webhooks() -> None:
    op.create_table(
        "webhook_events",
        sa.Column("reference", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("api_version", sa.Text, nullable=False),
        sa.Column("sequence", sa.Text, nullable=False),
        sa.Column("account_id", sa.Text),
        sa.Column("order_id", sa.Text),
        sa.Column("problem", sa.Text),
        sa.Column("is_stale", sa.Integer, nullable=False),
        sa.Column("signed_at", WHOLE, nullable=False),
        sa.Column("received_at", WHOLE, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )


def _create_indexes() -> None:
    op.create_index("orders_by_id", "orders", ["id", "account_key"], unique=True)
    op.create_index("orders_by_key", "orders", ["idempotency_key"])
    op.create_index("orders_listing", "orders", ["account_key", "created_at", "position"])
    op.create_index("orders_newest", "orders", ["created_at"])
    op.create_index("orders_changed", "orders", ["changed_at", "account_key"])
    _create_partial_index(
        "orders_unsettled",
        ["status", "certificate_state", "changed_at"],
        "status <> 'complete' OR certificate_state IS NULL OR certificate_state <> 'stored'",
    )
    # What a round is planned from, within the index: no row has to be fetched.
    _create_partial_index(
        "orders_due",
        ["next_check_at", "account_key", "id", "position", "status", "certificate_state"],
        "next_check_at IS NOT NULL",
    )
    _create_partial_index(
        "orders_without_certificate",
        ["account_key", "id", "status", "certificate_state", "owed_since"],
        "certificate_state IN ('owed', 'failed')",
    )
    op.create_index("events_of_order", "events", ["account_id", "order_id"])
    op.create_index("deliveries_of_event", "deliveries", ["seq"])
    op.create_index("deliveries_in_order", "deliveries", ["receiver", "attempts", "seq"])
    op.create_index("webhook_events_by_account", "webhook_events", ["account_id", "received_at"])
    op.create_index("webhook_events_by_age", "webhook_events", ["received_at"])


def _create_partial_index(name: str, columns: list[str], condition: str) -> None:
    only = sa.text(condition)
    op.create_index(name, "orders", columns, sqlite_where=only, postgresql_where=only)


def _tell_the_planner() -> None:
    op.execute("ANALYZE")  # makes the table of statistics
    op.execute("DELETE FROM sqlite_stat1")
    for (table, index), stat in _ROWS_AND_ROWS_PER_PREFIX.items():
        op.get_bind().exec_driver_sql(
            "INSERT INTO sqlite_stat1 VALUES (?, ?, ?)", (table, index, stat)
        )
