"""Write the catalogue into ``tests/faults/README.md``: ``python -m tests.faults.catalogue``."""

from __future__ import annotations

from tests.faults.catalogue import PAGE, page_with_catalogue

PAGE.write_text(page_with_catalogue(PAGE.read_text("utf-8")), "utf-8")
