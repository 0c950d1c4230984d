"""Names of certificates: hostile templates, and paths that never leave the root."""

from __future__ import annotations

import posixpath
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.certificate_names import (
    DEFAULT_LAYOUT,
    CertificateNames,
    is_layout_folder,
    split_path,
)
from harvester.domain.errors import ConfigurationError

JANUARY = datetime(2026, 1, 9, 23, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("version", "interim", "path"),
    [
        (1, False, "acct/2026-01/ORDER.pdf"),
        (2, False, "acct/2026-01/ORDER.v2.pdf"),
        (11, False, "acct/2026-01/ORDER.v11.pdf"),
        (1, True, "acct/2026-01/ORDER.interim.pdf"),
        (3, True, "acct/2026-01/ORDER.interim.v3.pdf"),
    ],
)
def test_a_path_says_account_month_order_and_version(
    version: int, interim: bool, path: str
) -> None:
    names = CertificateNames(DEFAULT_LAYOUT)
    assert names.path("acct", "ORDER", JANUARY, version, interim=interim) == path


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{order_id}", "ORDER.pdf"),
        ("{account_id}.{order_id}", "acct.ORDER.pdf"),
        ("{created:%Y/%m/%d}/{order_id}", "2026/01/09/ORDER.pdf"),
        ("year={created:%G}/week={created:%V}/{order_id}", "year=2026/week=02/ORDER.pdf"),
        ("a/{created:%j-%H}_{order_id}-lune", "a/009-23_ORDER-lune.pdf"),
        ("{account_id}/{order_id}/{order_id}", "acct/ORDER/ORDER.pdf"),
    ],
)
def test_other_layouts_give_other_names(template: str, path: str) -> None:
    assert CertificateNames(template).path("acct", "ORDER", JANUARY, 1) == path


def test_the_month_is_the_month_in_utc() -> None:
    east = datetime(2026, 2, 1, 0, 30, tzinfo=timezone(timedelta(hours=5)))
    names = CertificateNames(DEFAULT_LAYOUT)
    assert names.path("acct", "ORDER", east, 1) == "acct/2026-01/ORDER.pdf"


@pytest.mark.parametrize(
    ("template", "rule"),
    [
        ("", "is empty"),
        ("{account_id}", "must hold {order_id} after its last slash"),
        ("{order_id}/certificate", "must hold {order_id} after its last slash"),
        ("{order_id}/{created:%Y}", "must hold {order_id} after its last slash"),
        ("{order_id}{created:%Y/%m}", "must hold {order_id} after its last slash"),
        ("/var/{order_id}", "absolute"),
        ("../{order_id}", "may not hold .."),
        ("a/../{order_id}", "may not hold .."),
        ("{created:..}/{order_id}", "may not hold .."),
        ("a//{order_id}", "components"),
        ("{created:/}/{order_id}", "components"),
        ("./{order_id}", "components"),
        (".incoming/{order_id}", "components"),
        (".{order_id}", "components"),
        ("{order_id}.", "components"),
        ("-rf/{order_id}", "components"),
        ("{order_id}/", "components"),
        ("quarantine/{order_id}", "may not start with quarantine"),
        ("{order_id}.pdf", "may not hold .pdf"),
        ("a.PDF/{order_id}", "may not hold .pdf"),
        ("{account_id}{order_id}", "must separate two ids"),
        ("{account_id}-{order_id}", "must separate two ids"),
        ("{account_id}-{created:%Y}-{order_id}", "must separate two ids"),
        ("{order_id}{order_id}", "must separate two ids"),
        ("{order_id", "in braces"),
        ("order_id}", "in braces"),
        ("{}{order_id}", "in braces"),
        ("{0}/{order_id}", "in braces"),
        ("{year}/{order_id}", "in braces"),
        ("{created}/{order_id}", "in braces"),
        ("{order_id!r}", "in braces"),
        ("{order_id:>10}", "in braces"),
        ("{order_id.__class__}", "in braces"),
        ("{created.tzinfo}/{order_id}", "in braces"),
        ("{{order_id}}", "in braces"),
        ("{created:}/{order_id}", "may use only %Y"),
        ("{created:%Y%B}/{order_id}", "may use only %Y"),
        ("{created:%s}/{order_id}", "may use only %Y"),
        ("{created:%-d}/{order_id}", "may use only %Y"),
        ("{created:%%}/{order_id}", "may use only %Y"),
        ("{created:%}/{order_id}", "may use only %Y"),
        ("{created:%\n}/{order_id}", "may use only %Y"),
        ("{created:\0}/{order_id}", "may hold only letters"),
        ("{created:\ud800}/{order_id}", "may hold only letters"),
        ("a b/{order_id}", "may hold only letters"),
        ("~/{order_id}", "may hold only letters"),
        ("$HOME/{order_id}", "may hold only letters"),
        ("a\\{order_id}", "may hold only letters"),
        ("a\n{order_id}", "may hold only letters"),
        ("\0{order_id}", "may hold only letters"),
        ("\x1b[31m{order_id}", "may hold only letters"),
        ("é/{order_id}", "may hold only letters"),
        ("\u2044{order_id}", "may hold only letters"),
        ("%Y/{order_id}", "may hold only letters"),
        ("x" * 192 + "{order_id}", "over 255 bytes"),
        ("x" * 256 + "/{order_id}", "over 255 bytes"),
    ],
)
def test_a_hostile_layout_is_refused_by_the_rule_it_breaks(template: str, rule: str) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        CertificateNames(template)
    assert any(rule in problem for problem in refusal.value.problems)
    assert "\n" not in str(refusal.value)
    assert "\x1b" not in str(refusal.value)


def test_every_broken_rule_is_told_at_once() -> None:
    with pytest.raises(ConfigurationError) as refusal:
        CertificateNames("/quarantine/../{account_id}.pdf")
    assert len(refusal.value.problems) >= 4


@pytest.mark.parametrize(
    "bad", ["", "..", "a/b", "a.b", "-rf", "a\n", "a\0", "é", "x" * 65, "{0.__class__}", "\uff41"]
)
def test_an_id_that_is_no_identifier_makes_no_path(bad: str) -> None:
    names = CertificateNames(DEFAULT_LAYOUT)
    with pytest.raises(ValueError, match="not safe"):
        names.path(bad, "ORDER", JANUARY, 1)
    with pytest.raises(ValueError, match="not safe"):
        names.path("acct", bad, JANUARY, 1)


def test_an_account_called_quarantine_cannot_reach_the_quarantine() -> None:
    with pytest.raises(ValueError, match="quarantine"):
        CertificateNames(DEFAULT_LAYOUT).path("quarantine", "ORDER", JANUARY, 1)


def test_versions_count_from_one_and_times_have_a_zone() -> None:
    names = CertificateNames(DEFAULT_LAYOUT)
    with pytest.raises(ValueError, match="from 1"):
        names.path("acct", "ORDER", JANUARY, 0)
    with pytest.raises(ValueError, match="time zone"):
        names.path("acct", "ORDER", JANUARY.replace(tzinfo=None), 1)


@pytest.mark.parametrize("name", ["lost+found", ".hidden", "a b", "-x", "x.", "", "é"])
def test_a_folder_no_layout_could_name_is_not_ours(name: str) -> None:
    assert not is_layout_folder(name)


IDS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)
PIECES = st.sampled_from(
    [
        "{account_id}",
        "{order_id}",
        "{created:%Y-%m}",
        "{created:%Y/%m}",
        "{created:.%d}",
        "{created}",
        "/",
        "/",
        ".",
        "..",
        "-",
        "=",
        "a",
        "quarantine",
        ".incoming",
        "%Y",
        "{",
        "}",
        "\0",
        "é",
        ".pdf",
    ]
)
TEMPLATES = st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=9).map("".join)).map(
    lambda text: text if "{order_id}" in text else f"{text}/{{order_id}}"
)
VERSIONS = st.tuples(st.integers(1, 10**9), st.booleans())
TIMES = st.datetimes(min_value=datetime(2000, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants it naive


@given(TEMPLATES, IDS, IDS, TIMES, VERSIONS)
def test_a_template_is_refused_or_its_paths_stay_below_the_root(
    template: str, account: str, order: str, created: datetime, version: tuple[int, bool]
) -> None:
    try:
        names = CertificateNames(template)
    except ConfigurationError:
        return
    if account == "quarantine":
        return
    path = names.path(account, order, created, version[0], interim=version[1])
    folders, name = split_path(path)
    assert posixpath.normpath(f"/root/{path}") == f"/root/{path}"
    assert order in name
    assert name.endswith(".pdf")
    assert all(is_layout_folder(folder) for folder in folders)
    assert path.isascii()
    assert path.isprintable()


SHORT_IDS = st.text("aA0-_", min_size=1, max_size=4).filter(lambda text: text[0] not in "-_")


@given(
    st.sampled_from(
        [
            DEFAULT_LAYOUT,
            "{account_id}.{order_id}",
            "{order_id}.{account_id}",
            "{account_id}/{order_id}.interim",
            "v2.{account_id}.v2/{created:%Y.%m}-{order_id}.v2",
        ]
    ),
    st.lists(st.tuples(SHORT_IDS, SHORT_IDS, st.integers(1, 3), st.booleans()), unique=True),
)
def test_different_certificates_have_different_paths(
    template: str, certificates: list[tuple[str, str, int, bool]]
) -> None:
    names = CertificateNames(template)
    paths = {
        names.path(account, order, JANUARY, version, interim=interim)
        for account, order, version, interim in certificates
    }
    assert len(paths) == len(certificates)
