"""Indexes for ledgers of very many orders, and what SQLite's planner should take the orders for.

Without statistics it takes an index of few rows for one of all, and reads years of orders at every
turn. Written down rather than counted (``ANALYZE``), so that plans are the same on every ledger.
"""

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

_ROWS_AND_ROWS_PER_PREFIX = {
    "orders_due": "20000 2 2 1",
    "orders_without_certificate": "1000 200 1",
    "orders_listing": "1000000 200000 1",
    "orders_by_id": "1000000 1",
    "orders_by_key": "1000000 1",
    "orders_newest": "1000000 1",
    "orders_changed": "1000000 1",
    "orders_states": "1000000 150000 100000",
    "sqlite_autoindex_orders_1": "1000000 200000 1",
}


def upgrade() -> None:
    op.create_index("orders_newest", "orders", ["created_at"])
    op.create_index("orders_changed", "orders", ["changed_at"])
    op.create_index("orders_states", "orders", ["status", "certificate_state"])
    if op.get_bind().dialect.name != "sqlite":
        return
    op.execute("ANALYZE")  # makes the table
    op.execute("DELETE FROM sqlite_stat1")
    for index, stat in _ROWS_AND_ROWS_PER_PREFIX.items():
        op.get_bind().exec_driver_sql(
            "INSERT INTO sqlite_stat1 VALUES ('orders', ?, ?)", (index, stat)
        )
