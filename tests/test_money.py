"""Money: amounts as they are typed, sent and shown."""

from __future__ import annotations

import re

from contract import ContractTest, rows

LONG = "10000000000000000000"
NO_AMOUNTS = (
    *("-5", "+5", "1e3", "nan", "", " ", "$10", "10$", "1_000", "1,000", "0x10", "ten", LONG),
    *("\uff11\uff10", "\u0661\u0660", "10eur", "10usdusd", "10 usd", "10\n"),
)


class Shown(ContractTest):
    def test_text_rounds_down_and_json_is_exact(self) -> None:
        for microusd, text, exact in (
            (12_349_999, "$12.34", "12.349999"),
            (9_999, "$0.00", "0.009999"),
            (0, "$0.00", "0.00"),
            (-1, "-$0.01", "-0.000001"),
            (-1_230_000, "-$1.23", "-1.23"),
            (-1_230_001, "-$1.24", "-1.230001"),
            (1_000_000_000_000, "$1,000,000.00", "1000000.00"),
            (2**63 - 1, "$9,223,372,036,854.77", "9223372036854.775807"),
        ):
            with self.subTest(microusd=microusd):
                self.box.books.ledger[:] = [("now", microusd)]
                found = self.ok("balance", "--json").json
                self.has(found, balance_microusd=microusd, balance_usd=exact)
                self.assertEqual(rows(self.ok("balance").out)["Balance"], text)


class Typed(ContractTest):
    def sent(self, *argv: str, **env: str) -> dict[str, object]:
        """The body that a command would send."""
        body: dict[str, object] = self.ok(*argv, "--dry-run", "--json", **env).json["dry_run"][
            "body"
        ]
        return body

    def test_a_bare_number_counts_in_the_unit_of_its_option_and_a_unit_wins(self) -> None:
        for text, usd, cents in (
            ("100", 100, 100),
            ("10usd", 10, 1000),
            ("10USD", 10, 1000),
            ("1000c", 10, 1000),
        ):
            self.has(self.sent("topup", "--amount", text), amountUsd=usd)
            rule = self.sent("auto-topup", "--enable", "--amount", text, "--threshold", text)
            self.has(rule, amountCents=cents, thresholdCents=cents)

    def test_what_is_no_whole_amount_is_refused_and_nothing_is_sent(self) -> None:
        for text in (*NO_AMOUNTS, "0", "10.5", "10.00", "2.50usd"):
            self.refused("topup", f"--amount={text}", says="--amount")
            self.refused("auto-topup", "--enable", f"--amount={text}", says="--amount")
        for text in NO_AMOUNTS:
            self.refused("auto-topup", "--enable", f"--threshold={text}", says="--threshold")
        self.refused("topup", "--amount", "1050c", says="whole dollars")

    def test_a_dollar_sign_is_refused_with_the_reason(self) -> None:
        for argv in (("topup",), ("auto-topup", "--enable")):
            told = self.refused(*argv, "--amount", "$10").err
            self.assertRegex(told, r"\$|dollar sign")

    def test_a_least_balance_is_dollars_with_up_to_two_decimals(self) -> None:
        for text, microusd in (
            *(("20", 7_660_000), ("20usd", 7_660_000), ("1250c", 160_000)),
            *(("13.5", 1_160_000), ("13.50", 1_160_000), ("13.05", 710_000)),
        ):
            result = self.ops("balance", "--min", text, "--json")
            self.assertEqual((result.exit, result.json["short_microusd"]), (4, microusd), result)
        for text in (*NO_AMOUNTS, "2.505", ".50", "2."):
            self.refused("balance", f"--min={text}", says="--min")


class Cap(ContractTest):
    def test_an_amount_over_it_is_refused_by_both_commands_naming_variable_and_dollars(
        self,
    ) -> None:
        cap = "CACHEFORGE_MAX_TOPUP_USD"
        for argv, dollars in (
            (("topup", "--amount", "501"), "501"),
            (("topup", "--amount", "1000"), "1,000"),
            (("auto-topup", "--enable", "--amount", "50001"), "500.01"),
            (("auto-topup", "--enable", "--amount", "501usd"), "501"),
        ):
            for extra in ((), ("--dry-run",)):
                self.assertIn(f"${dollars}", self.refused(*argv, *extra, says=cap).err)
        self.ok("topup", "--amount", "500", "--dry-run")
        self.ok("auto-topup", "--enable", "--amount", "50000", "--dry-run")

    def test_it_can_be_moved(self) -> None:
        self.ok("topup", "--amount", "600", CACHEFORGE_MAX_TOPUP_USD="600")
        self.refused("topup", "--amount", "11", CACHEFORGE_MAX_TOPUP_USD="10")

    def test_cents_for_dollars_and_dollars_for_cents_are_told_by_the_unit(self) -> None:
        self.refused("topup", "--amount", "1000", says="1000c")
        for amount in ("10", "99"):
            self.refused("auto-topup", "--enable", "--amount", amount, says=f"{amount}usd")
        self.ok("auto-topup", "--enable", "--amount", "100", "--dry-run")

    def test_no_amount_that_a_refusal_suggests_is_refused_in_turn(self) -> None:
        for amount in (
            "501",
            "1000",
            "1050",
            "2550",
            "50000",
            "50001",
            "99999",
            "10.5",
            "$10",
            "0",
        ):
            for command in (("topup",), ("auto-topup", "--enable")):
                told = self.ops(*command, f"--amount={amount}", "--dry-run").err
                for suggested in re.findall(r"(?:--amount|write) (?:--amount )?(\w+)", told):
                    if suggested[0].isdigit():
                        self.ok(*command, "--amount", suggested, "--dry-run")
