"""Intentions to buy, written down before Lune is asked; certificate versions that were lost."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("certificates", sa.Column("lost_at", WHOLE))
    op.create_table(
        "intentions",
        sa.Column("account_id", sa.Text, sa.ForeignKey("accounts.id"), primary_key=True),
        sa.Column("idempotency_key", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("request", sa.Text, nullable=False),
        sa.Column("intended_at", WHOLE, nullable=False),
        sa.Column("settled_at", WHOLE),
        sa.Column("order_id", sa.Text),
        sa.Column("refusal", sa.Text),
        sa.CheckConstraint(
            "(settled_at IS NULL) = (order_id IS NULL AND refusal IS NULL)",
            name="settled_one_way",
        ),
        sqlite_strict=True,
    )
