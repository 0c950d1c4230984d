"""Is this a whole PDF? Asked of every answer before it may have a final name."""

from __future__ import annotations

import io
import logging
import os
import re
import time
from typing import TYPE_CHECKING

from harvester.domain.errors import CertificateRejected, StorageUnavailable

if TYPE_CHECKING:
    from pypdf import PdfReader

_SMALLEST = 200
"""Bytes. A catalogue, a page tree, a page and the table that finds them need about 290."""

_MARGIN = 1024
"""Bytes of junk borne before the header and after the end, as PDF readers do
(ISO 32000-1, annex H)."""

_CPU_SECONDS = 10.0
_READS_BETWEEN = 32
_END = re.compile(rb"startxref\s+(\d{1,10})\s*%%EOF\r?\n?")
_LONGEST_END = 64
_XREF = re.compile(rb"xref\s|\d{1,10}\s+\d{1,5}\s+obj\b")


def check_pdf(data: bytes, *, cpu_seconds: float = _CPU_SECONDS) -> None:
    """Raise ``CertificateRejected`` unless ``data`` is a whole PDF with at least one page.

    Whole means: ``%PDF-`` within the first KiB, ``startxref`` and ``%%EOF`` followed by at most
    a KiB, a cross-reference table where ``startxref`` says (counted from the header), and a page
    tree that pypdf's strict mode walks to every page. ``/Count`` is not believed, a cyclic tree is
    rejected, content streams are not decoded. An encrypted PDF passes when it opens without a
    password by what pypdf has at hand. The message never quotes the document. A fault of the
    machine while looking is ``StorageUnavailable``: it says nothing about the document.

    Takes CPU time in proportion to the page tree, cut off at one of the first reads of the file
    after ``cpu_seconds``; an object stream, whose size pypdf limits, is still unpacked to its end.
    """
    body = _trimmed(data)
    reader = _load_reader()
    try:
        pages = _count_pages(reader, body, cpu_seconds)
        fault = "" if pages else "it has no page"
    except _OutOfTimeError:
        fault = f"reading its pages took more than {cpu_seconds:g} s"
    except Exception as error:  # noqa: BLE001 - pypdf raises many kinds, all of them mean "no"
        if isinstance(error, OSError) and error.errno is not None:
            # The document is in memory: it is this process that has, say, no descriptors left.
            words = f"no certificate can be checked: {os.strerror(error.errno)}"
            raise StorageUnavailable(words) from None
        fault = f"its pages cannot be read ({type(error).__name__})"
    # Raised out here so that it carries no context: pypdf's own messages quote the document.
    if fault:
        raise CertificateRejected(f"not a whole PDF: {fault}")


def _trimmed(data: bytes) -> bytes:
    """Return the bytes from the header to the last end marker; offsets count from the header."""
    if len(data) < _SMALLEST:
        raise CertificateRejected(f"not a whole PDF: {len(data)} bytes are too few")
    header = data.find(b"%PDF-", 0, _MARGIN)
    if header < 0:
        raise CertificateRejected("not a whole PDF: it does not start like one")
    ends = list(_END.finditer(data, max(header, len(data) - _MARGIN - _LONGEST_END)))
    if not ends or len(data) - ends[-1].end() > _MARGIN:
        raise CertificateRejected("not a whole PDF: it does not end like one, as if cut short")
    body = data[header : ends[-1].end()]
    if _XREF.match(body, int(ends[-1][1])) is None:
        raise CertificateRejected("not a whole PDF: no cross-reference table where it should be")
    return body


def _load_reader() -> type[PdfReader]:
    """Load pypdf with the first certificate, unless the daemon did: most commands need not."""
    try:
        from pypdf import PdfReader
    except (ImportError, OSError) as error:
        # The import system says "no module" also when there is no descriptor left to read it.
        raise StorageUnavailable(f"no certificate can be checked: {error}") from error
    # pypdf describes what it repairs by quoting the document, which names people; nothing else in
    # this program uses pypdf, so its loggers are turned off for good.
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)
    return PdfReader


def _count_pages(reader: type[PdfReader], body: bytes, cpu_seconds: float) -> int:
    return sum(1 for _ in reader(_TimedBytes(body, cpu_seconds), strict=True).pages)


class _OutOfTimeError(BaseException):
    """Not an Exception: pypdf catches those and goes on with the next object."""


class _TimedBytes(io.BytesIO):
    """Bytes that cannot be read any more after some CPU time of this thread.

    pypdf searches the whole file for every object that is not where the table says; a hostile
    table makes that thousands of searches, and a long string millions of reads.
    """

    def __init__(self, data: bytes, cpu_seconds: float) -> None:
        super().__init__(data)
        self._until = time.thread_time() + cpu_seconds
        self._reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        # pypdf reads a byte at a time, so one call more in here is a tenth of what a check costs;
        # and asking for the time is a system call, dearer than most reads.
        self._reads += 1
        if not self._reads % _READS_BETWEEN and time.thread_time() > self._until:
            raise _OutOfTimeError
        return io.BytesIO.read(self, size)

    def getbuffer(self) -> memoryview:
        if time.thread_time() > self._until:
            raise _OutOfTimeError
        return super().getbuffer()
