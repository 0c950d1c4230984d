"""Alembic's environment: one chain for every database the ledger runs on.

The harvester hands in an open connection; ``alembic -x url=sqlite:///FILE`` makes its own.
"""

from alembic import context
from sqlalchemy import Connection, NullPool, create_engine


def _migrate(connection: Connection) -> None:
    # SQLite's DDL is transactional; Alembic assumes otherwise, and an interrupted migration must
    # leave the ledger as it was.
    context.configure(connection=connection, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    _migrate(given)
else:
    url = context.get_x_argument(as_dictionary=True)["url"]
    with create_engine(url, poolclass=NullPool).begin() as made:
        _migrate(made)
