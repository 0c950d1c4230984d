"""A one-page PDF, written by hand: text in Helvetica, one line below the other."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_A4 = (595, 842)
_LEFT = 60
_TOP = 770
_BOTTOM = 50


@dataclass(frozen=True, slots=True)
class Line:
    """A line of text; ``size`` is in points, ``gap`` the space above it in lines."""

    text: str
    size: int = 11
    bold: bool = False
    gap: float = 0.0


def one_page(lines: Iterable[Line], title: str) -> bytes:
    """Return a PDF 1.4 file with the lines on an A4 page.

    Characters outside WinAnsi become question marks; lines below the page's end are left out.
    The same input gives the same bytes.
    """
    content = _content(lines)
    width, height = _A4
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 %d %d] /Contents 6 0 R"
        b" /Resources << /Font << /F1 4 0 R /F2 5 0 R >> >> >>" % (width, height),
        _font(b"Helvetica"),
        _font(b"Helvetica-Bold"),
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
        b"<< /Title %s /Producer (Lune sandbox) >>" % _string(title),
    ]
    return _file(objects)


def _content(lines: Iterable[Line]) -> bytes:
    drawn = [b"BT"]
    y = float(_TOP)
    for line in lines:
        y -= line.size * (1.4 + line.gap)
        if y < _BOTTOM:
            break
        font = b"F2" if line.bold else b"F1"
        drawn.append(
            b"/%s %d Tf 1 0 0 1 %d %.2f Tm %s Tj" % (font, line.size, _LEFT, y, _string(line.text))
        )
    drawn.append(b"ET")
    return b"\n".join(drawn)


def _font(name: bytes) -> bytes:
    return b"<< /Type /Font /Subtype /Type1 /BaseFont /%s /Encoding /WinAnsiEncoding >>" % name


def _string(text: str) -> bytes:
    printable = "".join(char if char.isprintable() else " " for char in text)
    encoded = printable.encode("cp1252", errors="replace")
    for special in (b"\\", b"(", b")"):
        encoded = encoded.replace(special, b"\\" + special)
    return b"(" + encoded + b")"


def _file(objects: list[bytes]) -> bytes:
    # The second line has bytes above 127, so that nothing takes the file for text.
    parts = [b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n"]
    offset = len(parts[0])
    entries = [b"0000000000 65535 f \n"]
    for number, body in enumerate(objects, start=1):
        part = b"%d 0 obj\n%s\nendobj\n" % (number, body)
        entries.append(b"%010d 00000 n \n" % offset)
        offset += len(part)
        parts.append(part)
    size = len(entries)
    parts.append(b"xref\n0 %d\n%s" % (size, b"".join(entries)))
    parts.append(
        b"trailer\n<< /Size %d /Root 1 0 R /Info %d 0 R >>\nstartxref\n%d\n%%%%EOF\n"
        % (size, size - 1, offset)
    )
    return b"".join(parts)
