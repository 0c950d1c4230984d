"""The ledger of the harvest, on SQLAlchemy: one write, one transaction."""

from __future__ import annotations

from harvester.ledger.accounts import AccountRecords
from harvester.ledger.certificates import CertificateRecords
from harvester.ledger.intentions import IntentionRecords
from harvester.ledger.looks import LookRecords
from harvester.ledger.orders import OrderRecords
from harvester.ledger.owed import OwedRecords
from harvester.ledger.stuck import StuckRecords
from harvester.ledger.webhooks import WebhookRecords


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
