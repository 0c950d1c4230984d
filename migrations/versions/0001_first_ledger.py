"""The first ledger: accounts, orders, transitions, certificates, and what was odd."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# STRICT knows INTEGER but not BIGINT; on SQLite they are the same 64 bits.
WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("id", sa.Text, primary_key=True),
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
        "orders",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
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
        sa.Column("mode", sa.Text, nullable=False),
        sa.Column("beneficiary", sa.Text),
        sa.Column("missing_since", WHOLE),
        sa.Column("document_digest", sa.LargeBinary, nullable=False),
        sa.Column("certificate_state", sa.Text),
        sa.Column("owed_since", WHOLE),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("tried_at", WHOLE),
        sa.Column("failure_reason", sa.Text),
        sa.CheckConstraint(
            "certificate_state IN ('owed', 'stored', 'failed')", name="certificate_state_known"
        ),
        sqlite_strict=True,
    )
    open_orders = sa.text("next_check_at IS NOT NULL")
    op.create_index(
        "orders_due",
        "orders",
        ["next_check_at", "account_id", "id"],
        sqlite_where=open_orders,
        postgresql_where=open_orders,
    )
    unhad = sa.text("certificate_state IN ('owed', 'failed')")
    op.create_index(
        "orders_without_certificate",
        "orders",
        ["account_id", "id"],
        sqlite_where=unhad,
        postgresql_where=unhad,
    )
    op.create_index("orders_listing", "orders", ["account_id", "created_at"])
    op.create_index("orders_by_id", "orders", ["id"])
    op.create_index("orders_by_key", "orders", ["idempotency_key"])
    _create_children()


def _order_of_this_row() -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint(["account_id", "order_id"], ["orders.account_id", "orders.id"])


def _create_children() -> None:
    op.create_table(
        "order_documents",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("order_id", sa.Text, primary_key=True),
        sa.Column("document", sa.LargeBinary, nullable=False),
        _order_of_this_row(),
        sqlite_strict=True,
    )
    op.create_table(
        "transitions",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("order_id", sa.Text, primary_key=True),
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("from_status", sa.Text),
        sa.Column("to_status", sa.Text, nullable=False),
        sa.Column("observed_at", WHOLE, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.CheckConstraint("seq >= 1", name="seq_from_one"),
        sa.CheckConstraint("(from_status IS NULL) = (seq = 1)", name="chain_starts_from_nothing"),
        sa.CheckConstraint(
            "source IN ('sweep', 'check', 'webhook', 'track', 'drain')", name="source_known"
        ),
        _order_of_this_row(),
        sqlite_strict=True,
    )
    op.create_table(
        "anomalies",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("order_id", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("recorded", sa.Text, primary_key=True),
        sa.Column("served", sa.Text, primary_key=True),
        sa.Column("first_at", WHOLE, nullable=False),
        sa.Column("last_at", WHOLE, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        _order_of_this_row(),
        sqlite_strict=True,
    )
    op.create_table(
        "certificates",
        sa.Column("account_id", sa.Text, primary_key=True),
        sa.Column("order_id", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Column("stored_at", WHOLE, nullable=False),
        sa.Column("cf_ray", sa.Text),
        sa.CheckConstraint("version >= 1", name="version_from_one"),
        sa.CheckConstraint("kind IN ('interim', 'final')", name="kind_known"),
        _order_of_this_row(),
        sqlite_strict=True,
    )
    op.create_table(
        "set_aside",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("reference", sa.Text, primary_key=True),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("first_at", WHOLE, nullable=False),
        sa.Column("last_at", WHOLE, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
        sqlite_strict=True,
    )
