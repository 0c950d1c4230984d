"""The JSON shapes that commands and the API print; other programs depend on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvester.domain.certificates import Certificate
from harvester.domain.explain import waits_for
from harvester.domain.instants import rfc3339
from harvester.domain.stuck import StuckOrder
from harvester.ledger.lock import Holder
from harvester.ledger.queries import CountedAnomaly, KeptRejection, OrderDetail, OrderRow
from harvester.ledger.statistics import Statistics

if TYPE_CHECKING:
    from harvester.runtime.drain import DrainReport

Locate = Callable[[str], Path | str]
"""Turns a path in the archive into the one that a person can open."""


def instant(at: datetime | None) -> str | None:
    """Write an instant as RFC 3339 UTC; null when there is none."""
    return None if at is None else rfc3339(at)


def order(row: OrderRow, locate: Locate) -> dict[str, Any]:
    """Return a row of ``orders --json``; ``certificate`` is null until one is owed."""
    return {
        "id": row.id,
        "account_id": row.account_id,
        "idempotency_key": row.idempotency_key,
        "status": row.status,
        "quantity": row.quantity,
        "metadata": row.metadata,
        "created_at": instant(row.created_at),
        "first_seen_at": instant(row.first_seen_at),
        "last_seen_at": instant(row.last_seen_at),
        "next_check_at": instant(row.next_check_at),
        "certificate": _current_certificate(row, locate),
    }


def _current_certificate(row: OrderRow, locate: Locate) -> dict[str, Any] | None:
    if row.certificate_state is None:
        return None
    # While one is owed there is none to show, though an interim one may lie in the archive.
    stored = row.certificate if row.certificate_state == "stored" else None
    return {"state": row.certificate_state, **_file(stored, locate)}


def _file(stored: Certificate | None, locate: Locate) -> dict[str, Any]:
    if stored is None:
        return dict.fromkeys(("version", "path", "sha256", "size", "stored_at"))
    return {
        "version": stored.version,
        "path": str(locate(stored.file.path)),
        "sha256": stored.file.sha256,
        "size": stored.file.size,
        "stored_at": instant(stored.stored_at),
    }


def order_detail(detail: OrderDetail, locate: Locate) -> dict[str, Any]:
    """Return ``show --json``: the row, what it waits for, its chain, versions and anomalies."""
    row = detail.order
    return order(row, locate) | {
        "mode": row.mode,
        "beneficiary": row.beneficiary,
        "waits_for": waits_for(
            row.status, row.certificate_state, row.failure_reason, detail.document
        ),
        "not_found_since": instant(row.not_found_since),
        "transitions": [
            {
                "seq": step.seq,
                "from": step.before,
                "to": step.after,
                "observed_at": instant(step.observed_at),
                "source": step.source,
            }
            for step in detail.transitions
        ],
        "certificates": [_file(one, locate) | {"kind": one.kind} for one in detail.certificates],
        "anomalies": [_anomaly(one) for one in detail.anomalies],
    }


def _anomaly(one: CountedAnomaly) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "recorded": one.recorded,
        "served": one.served,
        "first_at": instant(one.first_at),
        "last_at": instant(one.last_at),
        "count": one.count,
    }


def statistics(found: Statistics) -> dict[str, Any]:
    """Return the counts of ``status --json``."""
    return {
        "orders": dict(found.by_status),
        "certificates": dict(found.by_certificate),
        "backlog": found.due,
        "next_wake_at": instant(found.next_wake_at),
        "accounts": [
            {
                "id": account.id,
                "name": account.name,
                "mode": account.mode,
                "scope": account.scope,
                "last_sweep_at": instant(account.last_sweep_at),
                "next_sweep_at": instant(account.next_sweep_at),
                "parked_reason": account.parked_reason,
            }
            for account in found.accounts
        ],
    }


def anomaly(one: CountedAnomaly) -> dict[str, Any]:
    """Return an anomaly of ``status --json``, with its order."""
    return {"account_id": one.account_id, "id": one.order_id} | _anomaly(one)


def rejection(one: KeptRejection) -> dict[str, Any]:
    """Return a rejected order of ``status --json``."""
    return {
        "account_id": one.account_id,
        "reference": one.reference,
        "reason": one.reason,
        "first_at": instant(one.first_at),
        "last_at": instant(one.last_at),
        "count": one.count,
    }


def stuck_order(one: StuckOrder) -> dict[str, Any]:
    """Return a stuck order of ``status --json``."""
    return {
        "account_id": one.account_id,
        "id": one.order_id,
        "status": one.status,
        "since": instant(one.since),
        "bound_seconds": round(one.bound.after.total_seconds()),
        "basis": one.bound.basis,
        "waits_for": waits_for(one.status, None, None, one.document),
    }


def daemon(holder: Holder | None) -> dict[str, Any] | None:
    """Return who runs, for ``status --json``; null when nobody does."""
    return None if holder is None else asdict(holder)


def drain_report(report: DrainReport, exit_code: int) -> dict[str, Any]:
    """Return the report of ``run --drain``."""
    finished = report.finished_at or report.started_at
    return {
        "started_at": instant(report.started_at),
        "finished_at": instant(finished),
        "seconds": round((finished - report.started_at).total_seconds(), 3),
        "exit_code": exit_code,
        "interrupted": report.interrupted,
        "accounts": report.accounts,
        "orders_seen": report.swept.seen,
        "orders_new": report.swept.new,
        "orders_changed": report.swept.changed,
        "anomalies": report.swept.anomalies,
        "requests": report.requests,
        "certificates_stored": report.collected.stored,
        "certificates_recovered": report.collected.recovered,
        "bytes_stored": report.collected.bytes,
        "events_delivered": report.dispatched.delivered,
        "deliveries_failed": report.dispatched.failed,
        "certificates_missing": [
            {
                "account_id": one.account_id,
                "id": one.order_id,
                "state": one.state,
                "reason": one.reason,
                "attempts": one.attempts,
                "next_check_at": instant(one.next_attempt_at),
            }
            for one in report.missing
        ],
        "rejected_orders": [
            {"account_id": account, "reference": reference, "reason": why}
            for (account, reference), why in report.swept.rejected.items()
        ],
        "accounts_parked": report.swept.parked,
        "accounts_failed": report.swept.failed,
        "unreachable": report.unreachable,
        "storage": report.collected.storage,
        "open_by_status": report.open_by_status(),
        "open": [
            {
                "account_id": one.account_id,
                "id": one.order_id,
                "status": one.status,
                "waits_for": waits_for(one.status, None, None),
                "next_check_at": instant(one.next_check_at),
            }
            for one in report.open
        ],
    }
