"""Money: whole numbers from end to end."""

from __future__ import annotations

import unittest

from support import ops


class Text(unittest.TestCase):
    def test_cents_as_dollars(self) -> None:
        for cents, text in (
            (0, "$0.00"),
            (5, "$0.05"),
            (1234, "$12.34"),
            (100_000_000, "$1,000,000.00"),
            (-5, "-$0.05"),
            (-123, "-$1.23"),
        ):
            self.assertEqual(ops.cents_text(cents), text)

    def test_microdollars_round_down_so_that_no_money_is_shown_that_is_not_there(self) -> None:
        for microusd, text in (
            (12_349_999, "$12.34"),
            (9_999, "$0.00"),
            (-1, "-$0.01"),
            (-1_230_000, "-$1.23"),
            (-1_230_001, "-$1.24"),
        ):
            self.assertEqual(ops.microusd_text(microusd), text)

    def test_microdollars_as_an_exact_decimal(self) -> None:
        for microusd, text in (
            (0, "0.00"),
            (12_340_000, "12.34"),
            (12_345_678, "12.345678"),
            (12_345_600, "12.3456"),
            (1_500_000, "1.50"),
            (-1, "-0.000001"),
            (2**63 - 1, "9223372036854.775807"),
        ):
            self.assertEqual(ops.microusd_exact(microusd), text)


class Reading(unittest.TestCase):
    def test_a_bare_number_counts_in_the_unit_of_its_option(self) -> None:
        self.assertEqual(ops.read_cents("10", "usd"), 1000)
        self.assertEqual(ops.read_cents("10", "c"), 10)

    def test_an_explicit_unit_wins(self) -> None:
        for bare in ("usd", "c"):
            self.assertEqual(ops.read_cents("10usd", bare), 1000)
            self.assertEqual(ops.read_cents("1000c", bare), 1000)
            self.assertEqual(ops.read_cents("10USD", bare), 1000)

    def test_anything_but_ascii_digits_is_refused(self) -> None:
        for text in (
            *("", "-5", "+5", "10.5", "1e3", "nan", "1_000", " 10", "10 ", "0x10", "ten"),
            *("10.00", "2.50usd"),
            *("１０", "١٠", "10\n", "10eur", "10usdusd", "1" * 16, "\ud800"),  # noqa: RUF001
        ):
            with self.assertRaises(ValueError, msg=text):
                ops.read_cents(text, "usd")

    def test_dollars_may_have_two_decimals_where_that_is_allowed(self) -> None:
        for text, cents in (("2.50", 250), ("0", 0), ("12.05usd", 1205), ("250c", 250)):
            self.assertEqual(ops.read_cents(text, "usd", decimals=True), cents)
        for text in ("2.5", "2.505", ".50", "2.", "250.00c", "1,000"):
            with self.assertRaises(ValueError, msg=text):
                ops.read_cents(text, "usd", decimals=True)

    def test_a_dollar_sign_is_refused_with_the_reason(self) -> None:
        with self.assertRaisesRegex(ValueError, "dollar sign"):
            ops.read_cents("$10", "usd")
