"""Lune's webhooks: the events that came, the looks they ask for, and which orders are stuck."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
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
        sa.Column("heard_at", WHOLE, nullable=False),
        sa.Column("document", sa.LargeBinary, nullable=False),
        sqlite_strict=True,
    )
    op.create_index("webhook_events_by_account", "webhook_events", ["account_id", "heard_at"])
    op.create_index("webhook_events_by_age", "webhook_events", ["heard_at"])
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
    op.create_index("transitions_by_time", "transitions", ["account_id", "observed_at"])
    op.add_column("orders", sa.Column("stuck_at", WHOLE))
