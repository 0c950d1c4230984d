"""What an order's certificate says, after the sample of Lune's certificate guide."""

from __future__ import annotations

import textwrap
from datetime import UTC, datetime
from decimal import Decimal

from harvester.sandbox.documents import project_status
from harvester.sandbox.lives import COMPLETE, RETIRING
from harvester.sandbox.pdf import Line, one_page
from harvester.sandbox.pricing import ProjectRow, project_rows
from harvester.sandbox.world import Order

_WIDTH = 85
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_STATES = {"retired": "Retired", "allocated": "Allocated, pending retirement"}


def is_issued(status: str, certificate_at: str) -> bool:
    """Tell whether an order in this status has a certificate."""
    return status == COMPLETE or (status == RETIRING and certificate_at == RETIRING)


def certificate(
    order: Order, beneficiary: str, status: str, since: float, copy: int | None = None
) -> bytes:
    """Return the PDF of an order that is in ``status`` since that instant.

    The bytes depend on these alone, so two downloads in one state are equal; numbering the
    ``copy`` makes them differ.
    """
    rows = project_rows(order.purchase)
    states = [project_status(index, len(rows), status) for index in range(len(rows))]
    retired = sum(
        (row.quantity for row, state in zip(rows, states, strict=True) if state == "retired"),
        Decimal(),
    )
    headline = f"{_tonnes(retired)} credits retired on behalf of {beneficiary}"
    lines = [
        Line("Carbon credit certificate", size=20, bold=True),
        *_wrapped(headline, Line("", size=13, gap=1)),
        Line(f"Last updated {_date(since)}"),
        Line(f"Order {order.id}", gap=1),
        *_wrapped(f"Beneficiary: {beneficiary}", Line("")),
        Line("Projects", bold=True, gap=1),
        *(
            Line(f"{_project(row)}: {_STATES[state]}")
            for row, state in zip(rows, states, strict=True)
        ),
        Line("Made by a local sandbox: no credit was retired for it.", size=8, gap=2),
    ]
    if copy is not None:
        lines.append(Line(f"Copy {copy}", size=8))
    return one_page(lines, title=f"Carbon credit certificate {order.id}")


def _project(row: ProjectRow) -> str:
    return f"{_tonnes(row.quantity)} tCO2, {row.project.name}, {row.project.registry}"


def _wrapped(text: str, like: Line) -> list[Line]:
    first, *rest = textwrap.wrap(text, _WIDTH * 11 // like.size) or [""]
    return [Line(first, like.size, like.bold, like.gap), *(Line(part, like.size) for part in rest)]


def _tonnes(amount: Decimal) -> str:
    text = format(amount, ",f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _date(instant: float) -> str:
    day = datetime.fromtimestamp(instant, UTC)
    return f"{day.day} {_MONTHS[day.month - 1]}, {day.year}"
