"""The ledger of the harvest, on SQLAlchemy: one write, one transaction."""

from __future__ import annotations

from harvester.ledger.accounts import AccountRecords
from harvester.ledger.certificates import CertificateRecords
from harvester.ledger.hints import WebhookRecords
from harvester.ledger.orders import OrderRecords
from harvester.ledger.owed import OwedRecords
from harvester.ledger.purchases import IntentionRecords
from harvester.ledger.schedule import LookRecords
from harvester.ledger.stuck import StuckRecords


class SqlLedger(
    AccountRecords,
    LookRecords,
    OrderRecords,
    CertificateRecords,
    OwedRecords,
    IntentionRecords,
    StuckRecords,
    WebhookRecords,
):
    """The :class:`harvester.domain.ledger.Ledger` on one database."""
