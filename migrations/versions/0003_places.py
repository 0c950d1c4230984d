"""The orders' places in their listings, so that what to ask for need not be counted each time."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WHOLE = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("orders", sa.Column("place", WHOLE))
    op.execute(
        "UPDATE orders SET place = counted.place FROM ("
        "  SELECT account_id, id,"
        "    row_number() OVER (PARTITION BY account_id ORDER BY created_at) AS place FROM orders"
        ") AS counted WHERE counted.account_id = orders.account_id AND counted.id = orders.id"
    )
