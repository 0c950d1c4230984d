"""The ledger of the harvest, on SQLAlchemy: one write, one transaction."""

from __future__ import annotations

from harvester.ledger.accounts import AccountRecords
from harvester.ledger.certificates import CertificateRecords
from harvester.ledger.intentions import IntentionRecords
from harvester.ledger.orders import OrderRecords


class SqlLedger(AccountRecords, OrderRecords, CertificateRecords, IntentionRecords):
    """The :class:`harvester.domain.ports.Ledger` on one database."""
