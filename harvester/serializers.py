"""The JSON shapes that commands and the API print; other programs depend on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harvester.domain.explain import waits_for
from harvester.domain.records import KnownCertificate
from harvester.domain.stuck import StuckOrder
from harvester.ledger.lock import Holder
from harvester.ledger.queries import OrderDetail, OrderRow, Summary

if TYPE_CHECKING:
    from harvester.runtime.drain import DrainReport

PathOf = Callable[[str], Path | str]
"""Turns an archive key into the path a person can open."""


def instant(at: datetime | None) -> str | None:
    """Write an instant as RFC 3339 UTC."""
    if at is None:
        return None
    utc = at if at.tzinfo is UTC else at.astimezone(UTC)
    return utc.replace(tzinfo=None).isoformat() + "Z"  # the offset would be asked for and cut off


def order(row: OrderRow, path_of: PathOf) -> dict[str, Any]:
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
        "certificate": _current_certificate(row, path_of),
    }


def _current_certificate(row: OrderRow, path_of: PathOf) -> dict[str, Any] | None:
    if row.certificate_state is None:
        return None
    # While one is owed there is none to show, though an interim one may lie in the archive.
    stored = row.certificate if row.certificate_state == "stored" else None
    return {"state": row.certificate_state, **_file(stored, path_of)}


def _file(stored: KnownCertificate | None, path_of: PathOf) -> dict[str, Any]:
    if stored is None:
        return dict.fromkeys(("version", "path", "sha256", "size", "stored_at"))
    return {
        "version": stored.version,
        "path": str(path_of(stored.file.key)),
        "sha256": stored.file.sha256,
        "size": stored.file.size,
        "stored_at": instant(stored.stored_at),
    }


def order_detail(detail: OrderDetail, path_of: PathOf) -> dict[str, Any]:
    """Return ``show --json``: the row, what it waits for, its chain, versions and anomalies."""
    row = detail.order
    return order(row, path_of) | {
        "mode": row.mode,
        "beneficiary": row.beneficiary,
        "waits_for": waits_for(
            row.status, row.certificate_state, row.failure_reason, detail.document
        ),
        "missing_since": instant(row.missing_since),
        "transitions": [
            {
                "seq": step.seq,
                "from": step.from_status,
                "to": step.to_status,
                "observed_at": instant(step.observed_at),
                "source": step.source,
            }
            for step in detail.transitions
        ],
        "certificates": [_file(one, path_of) | {"kind": one.kind} for one in detail.certificates],
        "anomalies": [
            {
                "kind": odd.kind,
                "recorded": odd.recorded,
                "served": odd.served,
                "first_at": instant(odd.first_at),
                "last_at": instant(odd.last_at),
                "count": odd.count,
            }
            for odd in detail.anomalies
        ],
    }


def summary(
    state: Summary, holder: Holder | None, stuck: Sequence[StuckOrder] = ()
) -> dict[str, Any]:
    """Return ``status --json``."""
    return {
        "orders": dict(state.by_status),
        "certificates": dict(state.by_certificate),
        "backlog": state.overdue,
        "next_wake_at": instant(state.next_wake_at),
        "anomalies": [
            {
                "account_id": odd.account_id,
                "id": odd.order_id,
                "kind": odd.kind,
                "recorded": odd.recorded,
                "served": odd.served,
                "last_at": instant(odd.last_at),
                "count": odd.count,
            }
            for odd in state.anomalies
        ],
        "stuck": [
            {
                "account_id": one.account_id,
                "id": one.order_id,
                "status": one.status,
                "since": instant(one.since),
                "bound_seconds": round(one.bound.after.total_seconds()),
                "basis": one.bound.basis,
                "waits_for": waits_for(one.status, None, None, one.document),
            }
            for one in stuck
        ],
        "set_aside": [
            {
                "account_id": odd.account_id,
                "reference": odd.reference,
                "reason": odd.reason,
                "first_at": instant(odd.first_at),
                "last_at": instant(odd.last_at),
                "count": odd.count,
            }
            for odd in state.set_aside
        ],
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
            for account in state.accounts
        ],
        "daemon": None
        if holder is None
        else {
            "pid": holder.pid,
            "host": holder.host,
            "command": holder.command,
            "since": holder.since,
        },
    }


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
        "certificates_filed": report.collected.filed,
        "certificates_adopted": report.collected.adopted,
        "bytes_filed": report.collected.bytes,
        "events_announced": report.announced.taken,
        "events_not_taken": report.announced.failed,
        "certificates_missing": [
            {
                "account_id": one.account_id,
                "id": one.order_id,
                "state": one.state,
                "reason": one.reason,
                "attempts": one.attempts,
                "next_check_at": instant(one.next_try_at),
            }
            for one in report.missing
        ],
        "set_aside": [
            {"account_id": account, "reference": reference, "reason": why}
            for (account, reference), why in report.swept.set_aside.items()
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
