"""What can be bought: the rules that hold before anything is sent, and texts that stay texts."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harvester.domain.purchases import (
    BundleShare,
    Purchase,
    by_estimate,
    by_mass,
    by_value,
    check_idempotency_key,
    parse_share,
)

ASIA, OCEAN, LATIN = "Asia1", "Ocean2", "Latin3"
NO_AMOUNT = [
    *("", " ", " 5", "5 ", "5\n", "-5", "+5", "1e5", "1E5", "1,5", "1_000", "1.", ".5", "."),
    *("nan", "NaN", "inf", "Infinity", "0x10", "five", "1.2.3", "1/2", "\uff11\uff12", "\u0665"),
    *("1" * 40, "1." + "0" * 40, "\u00b2", "5\x00", "--5"),
]
NOTHING = ["0", "0.0", "000", "0.000000"]


def shares(*texts: str) -> list[BundleShare]:
    return [parse_share(text) for text in texts]


@pytest.mark.parametrize("buy", [lambda text: by_mass(text, "kg"), by_value])
@pytest.mark.parametrize("text", NO_AMOUNT)
def test_what_is_no_decimal_number_is_refused(buy: Callable[[str], Purchase], text: str) -> None:
    with pytest.raises(ValueError, match="should be a decimal number such as"):
        buy(text)


@pytest.mark.parametrize("buy", [lambda text: by_mass(text, "kg"), by_value])
@pytest.mark.parametrize("text", NOTHING)
def test_nothing_cannot_be_bought(buy: Callable[[str], Purchase], text: str) -> None:
    with pytest.raises(ValueError, match="more than zero"):
        buy(text)


@pytest.mark.parametrize("unit", ["g", "kg", "t"])
def test_the_seeds_sample_mass_reaches_the_request_as_it_was_written(unit: str) -> None:
    text = {"g": "259110", "kg": "259.11", "t": "0.25911"}[unit]
    assert by_mass(text, unit).request == {"mass": {"amount": text, "unit": unit}}


@pytest.mark.parametrize("text", ["0.54", "100", "100.00", "7700.5", "007", "0.01", "1.10000"])
def test_a_value_reaches_the_request_as_it_was_written(text: str) -> None:
    assert by_value(text).request == {"value": text}


def test_an_estimate_is_bought_by_its_id() -> None:
    bought = by_estimate("90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6")
    assert bought == Purchase("estimate", {"estimate_id": "90ng23MKvLqbkpMwMw7yMBD4wJQrV6O6"})


@pytest.mark.parametrize("text", ["", "../me", "a b", "a/b", "é", "x" * 65, "id\n"])
def test_what_cannot_be_an_estimates_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="estimate id should be letters, digits"):
        by_estimate(text)


@pytest.mark.parametrize("unit", ["", "KG", "mg", "lb", "tonne", "kg "])
def test_an_unknown_unit_is_refused_with_the_known_ones(unit: str) -> None:
    with pytest.raises(ValueError, match="unit should be one of g, kg, t"):
        by_mass("5", unit)


@pytest.mark.parametrize(("text", "unit"), [("1", "g"), ("0.001", "kg"), ("0.000001", "t")])
def test_a_gram_is_the_least_that_can_be_bought(text: str, unit: str) -> None:
    assert by_mass(text, unit).request["mass"]["amount"] == text


@pytest.mark.parametrize(
    ("text", "unit"),
    [("0.5", "g"), ("1.1", "g"), ("0.0009", "kg"), ("1.0001", "kg"), ("1.0000001", "t")],
)
def test_a_mass_finer_than_a_gram_is_refused(text: str, unit: str) -> None:
    with pytest.raises(ValueError, match="finer than a gram"):
        by_mass(text, unit)


@pytest.mark.parametrize("text", ["0.001", "1.234", "0.540001"])
def test_a_value_finer_than_two_decimals_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="more than two decimals"):
        by_value(text)


@pytest.mark.parametrize("digits", [20, 24, 27, 28, 29, 32])
@pytest.mark.parametrize("buy", [lambda text: by_mass(text, "t"), by_value])
def test_an_amount_of_many_digits_is_bought_or_refused_and_breaks_nothing(
    buy: Callable[[str], Purchase], digits: int
) -> None:
    text = "9" * digits
    try:
        bought = buy(text)
    except ValueError as refusal:
        assert "amount" in str(refusal)  # noqa: PT017 - refusing and buying are both right
    else:
        assert text in json.dumps(bought.request)


@pytest.mark.parametrize(
    "buy",
    [
        lambda: by_mass("1234567890123456789012.0000001", "kg"),
        lambda: by_mass("123456789012345678901.0000000001", "t"),
        lambda: by_value("1234567890123456789012345678.001"),
    ],
)
def test_too_fine_an_amount_is_refused_however_large_it_is(buy: Callable[[], Purchase]) -> None:
    """Arithmetic of 28 digits would round the fraction away, or break."""
    with pytest.raises(ValueError, match="amount"):
        buy()


@given(st.integers(1, 10**15), st.integers(0, 3))
def test_any_amount_to_the_gram_is_the_very_text_that_is_sent(grams: int, zeros: int) -> None:
    text = f"{Decimal(grams).scaleb(-3):f}" + "0" * zeros
    request = json.loads(json.dumps(by_mass(text, "kg").request))
    assert request["mass"]["amount"] == text


def test_metadata_is_sent_and_not_priced_and_not_shown() -> None:
    bought = by_value("5", metadata={"customer": "Zoë"})
    assert bought.request == {"value": "5", "metadata": {"customer": "Zoë"}}
    assert bought.priced() == {"value": "5"}
    assert "Zoë" not in repr(bought)


@pytest.mark.parametrize("pair", [("a", "Zo\udceb"), ("\ud800", "b")])
def test_metadata_that_is_no_text_is_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="metadata"):
        by_value("5", metadata=dict([pair]))


def test_bundles_are_priced_too() -> None:
    bought = by_value("5", shares(ASIA))
    assert bought.priced() == {"value": "5", "bundle_selection": [{"bundle_id": ASIA}]}


def selected(*texts: str) -> Any:
    return by_mass("5", "t", shares(*texts)).request["bundle_selection"]


def test_whole_percentages_are_sent_as_whole_numbers() -> None:
    sent = selected(f"{ASIA}=95", f"{OCEAN}=5.0")
    assert [(one["bundle_id"], one["percentage"]) for one in sent] == [(ASIA, 95), (OCEAN, 5)]
    assert {type(one["percentage"]) for one in sent} == {int}


def test_a_fractional_percentage_is_sent_as_the_decimal_text_that_the_schema_wants() -> None:
    """Lune's schema: an integer, or a string of at most two decimals; never a fraction."""
    sent = selected(f"{ASIA}=33.33", f"{OCEAN}=66.67")
    assert sent == [
        {"bundle_id": ASIA, "percentage": "33.33"},
        {"bundle_id": OCEAN, "percentage": "66.67"},
    ]


def test_a_percentage_loses_the_zeros_that_the_schema_has_no_room_for() -> None:
    sent = selected(f"{ASIA}=33.330", f"{OCEAN}=66.670")
    assert [one["percentage"] for one in sent] == ["33.33", "66.67"]


def test_a_percentage_finer_than_two_decimals_is_refused() -> None:
    with pytest.raises(ValueError, match="decimals"):
        selected(f"{ASIA}=33.333", f"{OCEAN}=66.667")


def test_bundles_without_percentages_share_equally() -> None:
    assert selected(ASIA, OCEAN) == [{"bundle_id": ASIA}, {"bundle_id": OCEAN}]


@pytest.mark.parametrize(
    "texts",
    [
        [f"{ASIA}=99"],
        [f"{ASIA}=50", f"{OCEAN}=50.01"],
        [f"{ASIA}=100", f"{OCEAN}=100"],
        [f"{ASIA}=33.33", f"{OCEAN}=33.33", f"{LATIN}=33.33"],
        [f"{ASIA}=0.1", f"{OCEAN}=0.2", f"{LATIN}=99.71"],
    ],
)
def test_percentages_that_do_not_sum_to_a_hundred_are_refused(texts: list[str]) -> None:
    with pytest.raises(ValueError, match="sum to 100, not"):
        selected(*texts)


def test_percentages_are_summed_as_decimals_and_not_as_floats() -> None:
    """0.1 + 0.2 + 99.7 is a hundred, which floats deny."""
    assert len(selected(f"{ASIA}=0.1", f"{OCEAN}=0.2", f"{LATIN}=99.7")) == 3


def test_percentages_for_some_bundles_only_are_refused() -> None:
    with pytest.raises(ValueError, match="either all bundles have a percentage or none"):
        selected(f"{ASIA}=100", OCEAN)


@pytest.mark.parametrize("texts", [(ASIA, ASIA), (f"{ASIA}=50", f"{ASIA}=50")])
def test_a_bundle_named_twice_is_refused(texts: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="named once"):
        selected(*texts)


@pytest.mark.parametrize("text", ["", "=5", "a b=5", "../x=100", "é=100"])
def test_what_cannot_be_a_bundles_id_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="bundle id should be letters, digits"):
        parse_share(text)


@pytest.mark.parametrize("percent", ["", "0", "-5", "5%", "1e2", "nan", " 50", "50=50", "५"])
def test_what_is_no_percentage_is_refused(percent: str) -> None:
    with pytest.raises(ValueError, match=r"decimal number|more than zero"):
        parse_share(f"{ASIA}={percent}")


@pytest.mark.parametrize("key", ["x", "x" * 100, "INV 7/ä", "a=b&c", "日本"])
def test_a_key_of_one_to_a_hundred_printable_characters_is_taken_as_it_is(key: str) -> None:
    assert check_idempotency_key(key) == key


@pytest.mark.parametrize(
    "key", ["", "x" * 101, "a\nb", "a\x00", "\x1b[31m", "\u202eevil", "\udcff"]
)
def test_any_other_key_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match="1 to 100 printable characters"):
        check_idempotency_key(key)
