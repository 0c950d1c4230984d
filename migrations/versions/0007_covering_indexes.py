"""What a round is planned from and what is counted, within indexes: no row has to be fetched."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

_ROWS_AND_ROWS_PER_PREFIX = {
    "orders_due": "20000 2 2 1 1 1 1",
    "orders_listing": "1000000 200000 1 1",
    "orders_states": "1000000 150000 100000 1",
}


def upgrade() -> None:
    dated = sa.text("next_check_at IS NOT NULL")
    op.drop_index("orders_due", "orders")
    op.create_index(
        "orders_due",
        "orders",
        ["next_check_at", "account_id", "id", "place", "status", "certificate_state"],
        sqlite_where=dated,
        postgresql_where=dated,
    )
    op.drop_index("orders_listing", "orders")
    op.create_index("orders_listing", "orders", ["account_id", "created_at", "place"])
    op.drop_index("orders_states", "orders")
    op.create_index("orders_states", "orders", ["status", "certificate_state", "changed_at"])
    if op.get_bind().dialect.name != "sqlite":
        return
    # Dropping an index drops what 0006 wrote down of it.
    for index, stat in _ROWS_AND_ROWS_PER_PREFIX.items():
        op.get_bind().exec_driver_sql(
            "INSERT INTO sqlite_stat1 VALUES ('orders', ?, ?)", (index, stat)
        )
