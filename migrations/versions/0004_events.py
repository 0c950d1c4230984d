"""The outbox: events in the order they happened, who is told of them, and what was not taken."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
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
    op.create_index("events_of_order", "events", ["account_id", "order_id"])
    op.create_table(
        "receivers",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("cursor", WHOLE, nullable=False),
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
        sa.Column("next_try_at", WHOLE, nullable=False),
        sa.Column("failure", sa.Text),
        sa.CheckConstraint("attempts >= 0", name="attempts_counted"),
        sqlite_strict=True,
    )
    op.create_index("deliveries_by_event", "deliveries", ["seq"])
    op.create_index("deliveries_due", "deliveries", ["receiver", "next_try_at"])
