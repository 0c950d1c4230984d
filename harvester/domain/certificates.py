"""Certificate versions, and the events that a newly stored one makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from harvester.domain.events import EventType, NewEvent
from harvester.domain.orders import CertificateKind, StoredFile


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate version; ``stored_at`` is when it was recorded."""

    version: int
    kind: CertificateKind
    file: StoredFile
    stored_at: datetime


@dataclass(frozen=True, slots=True)
class NewCertificate:
    """A certificate version that lies in the archive and is to be recorded.

    ``cf_ray`` identifies the download to Lune's support; None for a recovered file.
    """

    account_id: str
    order_id: str
    certificate: Certificate
    cf_ray: str | None


@dataclass(frozen=True, slots=True)
class RecordedVersion:
    """A version the ledger has; ``is_lost`` when its file was found missing or changed."""

    certificate: Certificate
    is_lost: bool


def certificate_events(
    new: NewCertificate, idempotency_key: str | None, recorded: Iterable[RecordedVersion]
) -> list[NewEvent]:
    """Return the events of a certificate that is about to be recorded beside others of its order.

    None for what is recorded already, in the same way. A later version also supersedes the newest
    final one before it.
    """
    certificate, file = new.certificate, new.certificate.file
    versions = {one.certificate.version: one for one in recorded}
    before = versions.get(certificate.version)
    if before is not None and (
        before.certificate.file.sha256 != file.sha256
        or (before.certificate.kind == certificate.kind and not before.is_lost)
    ):
        return []

    def event(kind: EventType, data: Mapping[str, object]) -> NewEvent:
        whole = {"idempotency_key": idempotency_key, **data}
        return NewEvent(kind, new.account_id, new.order_id, certificate.stored_at, whole)

    stored = {
        "version": certificate.version,
        "kind": certificate.kind,
        "sha256": file.sha256,
        "size": file.size,
        "path": file.path,
    }
    made = [event(EventType.CERTIFICATE_STORED, stored)]
    earlier = [
        version
        for version, one in versions.items()
        if version < certificate.version and one.certificate.kind is CertificateKind.FINAL
    ]
    if before is None and earlier:
        replaced = versions[max(earlier)].certificate
        superseded = {
            "version": replaced.version,
            "sha256": replaced.file.sha256,
            "path": replaced.file.path,
            "superseded_by": certificate.version,
        }
        made.append(event(EventType.CERTIFICATE_SUPERSEDED, superseded))
    return made
