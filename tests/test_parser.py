"""Parser: bad command lines get one clear line, exit 2, and nothing is sent."""

from __future__ import annotations

import unittest

from support import SandboxTest, ops

LONG = "10000000000000000000"
AMOUNTS = ("0", "-5", "10.5", "1e3", "nan", "", "$10", "1_000", "１０", LONG)  # noqa: RUF001


class BadInput(SandboxTest):
    def refused(self, *argv: str, says: str = "") -> None:
        with self.subTest(argv=argv):
            result = self.fails(2, *argv)
            self.assertLessEqual(len(result.err.splitlines()), 2, result)
            self.assertIn(says, result.err)
            self.assertEqual(self.box.writes, [])

    def test_amounts(self) -> None:
        for amount in AMOUNTS:
            self.refused("topup", f"--amount={amount}", says="--amount")
            self.refused("auto-topup", "--enable", f"--amount={amount}", says="--amount")
            self.refused("auto-topup", "--enable", f"--threshold={amount}", says="--threshold")
        self.refused("topup", "--amount", "1050c", says="whole dollars")
        self.refused("topup", "--amount", "ten", says="a whole number such as 10, 10usd or 1000c")
        self.refused("balance", "--min", "ten", says="an amount such as 10, 2.50 or 1000c")
        self.refused("topup", "--amount", "0", says="unquoted $10")

    def test_amounts_over_the_cap_name_the_variable_and_the_likely_slip(self) -> None:
        says = "CACHEFORGE_MAX_TOPUP_USD"
        self.refused("topup", "--amount", "501", says=says)
        self.refused("topup", "--amount", "1000", says="For $10.00 write --amount 1000c")
        self.refused("topup", "--amount", "50000", says="For $500.00 write --amount 50000c")
        self.assertNotIn("write --amount", self.fails(2, "topup", "--amount", "50001").err)
        self.refused("auto-topup", "--enable", "--amount", "50001", says=says)
        self.refused("auto-topup", "--enable", "--threshold", "501usd", says=says)

    def test_dollars_where_cents_belong(self) -> None:
        self.refused("auto-topup", "--enable", "--amount", "10", says="write 10usd")
        self.refused("auto-topup", "--enable", "--amount", "99", says="write 99usd")
        self.refused("auto-topup", "--enable", "--threshold", "2", says="write 2usd")
        self.save_card()
        self.ok("auto-topup", "--enable", "--amount", "1000", "--threshold", "100")

    def test_unknown_words(self) -> None:
        self.refused("upstream", "--set", "--kind", "azure", says="openrouter")
        self.refused("topup", "--method", "cash", says="stripe")
        self.refused("balances", says="unknown command")
        self.refused(says="COMMAND")
        self.refused("balance", "--wat", "--huh", says="unknown argument (word 2)")
        self.refused("balance", "--json", "--wat", says="unknown argument (word 3)")
        self.refused("balance", "extra")

    def test_abbreviated_options_are_refused_on_every_command(self) -> None:
        for argv in (
            ("topup", "--am", "25"),
            ("auto-topup", "--en"),
            ("upstream", "--se"),
            ("keys", "--creat"),
            ("balance", "--js"),
            ("info", "--verb"),
            ("--js", "balance"),
        ):
            self.refused(*argv)

    def test_options_that_lack_their_verb(self) -> None:
        self.refused("auto-topup", "--threshold", "500", says="--enable")
        self.refused("auto-topup", "--disable", "--amount", "500", says="--enable")
        self.refused("upstream", "--kind", "openrouter", says="--set")
        self.refused("keys", "--yes", says="--revoke")
        self.refused("keys", "--create", "--force", says="--revoke")
        self.refused("keys", "--save", "new.key", says="--create")
        self.refused("keys", "--revoke", "key_1", "--save", "new.key", says="--create")

    def test_a_dry_run_of_a_read_is_no_silent_no_op(self) -> None:
        for command in ("balance", "info", "auto-topup", "upstream", "keys"):
            self.refused(command, "--dry-run")

    def test_contradictions(self) -> None:
        self.refused("auto-topup", "--enable", "--disable", says="not allowed with")
        self.refused("keys", "--create", "--revoke", "key_1", says="not allowed with")
        self.refused(
            "upstream", "--set", "--api-key", "-", "--api-key-env", "X", says="not allowed"
        )

    def test_upstream_with_too_little(self) -> None:
        self.refused("upstream", "--set", says="needs --kind")
        self.refused("upstream", "--set", "--kind", "custom", says="--base-url")
        self.refused("upstream", "--set", "--base-url", "http://llm.example.com", says="http")
        self.refused("upstream", "--set", "--base-url", "https://u:p@llm.example.com")
        for key in ("", " ", "sk or", "sk\nor", "schlüssel"):
            self.refused("upstream", "--set", f"--api-key={key}", says="--api-key")

    def test_key_ids(self) -> None:
        for key_id in ("", "a/b", "..", "a\nb", "a b", "a?b", "a#b", "a%2fb", "ä", "\x1b[1m"):
            self.refused("keys", f"--revoke={key_id}", "--yes", says="key id")

    def test_durations(self) -> None:
        for value in ("0", "-1", "nan", "inf", "1e3", "", "soon"):
            self.refused("balance", f"--timeout={value}", says="--timeout")
            self.refused("balance", f"--wait={value}", says="--wait")

    def test_least_balances(self) -> None:
        for value in ("-1", "2.5", "1e3", "", "$5", "1,000"):
            self.refused("balance", f"--min={value}", says="--min")


class NothingTypedIsRepeated(SandboxTest):
    def test_a_mistyped_secret_never_comes_back(self) -> None:
        secret = "sk-or-v1-Sup3rS3cret"
        for argv in (
            ("upstream", "--set", "--apikey", secret),
            ("upstream", "--set", f"--apikey={secret}"),
            ("upstream", f"--set={secret}"),
            ("upstream", "--set", "--kind", secret),
            ("upstream", "--set", "--base-url", secret),
            ("upstream", "--set", "--api-key", secret + " x"),
            ("upstream", secret),
            (secret,),
            (f"--{secret}", "balance"),
            ("upstream", "--set", "--api-key-env", secret),
            ("topup", "--amount", secret),
            ("topup", "--method", f"it's {secret}"),
            ("keys", "--revoke", secret, "--yes"),
            ("balance", "--timeout", secret),
            ("upstream", "--set", "--api-key", secret, "--kind"),
        ):
            for extra in ((), ("--json",), ("--verbose",)):
                with self.subTest(argv=argv, extra=extra):
                    result = self.fails(2, *argv, *extra)
                    self.assertNotIn("Sup3rS3cret", result.err)


class Shape(unittest.TestCase):
    def test_common_options_work_before_and_after_the_command(self) -> None:
        for argv in (
            ["--json", "--timeout", "5", "--verbose", "balance"],
            ["balance", "--json", "--timeout", "5", "--verbose"],
            ["--json", "balance", "--timeout", "5", "--verbose"],
        ):
            args = ops.parse(argv)
            self.assertEqual((args.json, args.timeout_s, args.verbose), (True, 5.0, True))

    def test_defaults_are_the_published_ones(self) -> None:
        self.assertEqual(ops.parse(["topup"]).amount_cents, 1000)
        self.assertEqual(ops.parse(["topup"]).method, "stripe")
        self.assertEqual(ops.parse(["balance"]).timeout_s, 30.0)
        for command in ("balance", "topup"):
            self.assertIsNone(ops.parse([command]).wait_s)
            self.assertEqual(ops.parse([command, "--wait"]).wait_s, 100.0)

    def test_usage_errors_come_in_the_envelope_wherever_json_stands(self) -> None:
        from support import run_ops

        for argv in (["--json", "topup", "--amount", "x"], ["topup", "--amount", "x", "--json"]):
            result = run_ops(*argv)
            self.assertEqual((result.exit, result.out), (2, ""))
            self.assertEqual(result.error["code"], "usage")
            self.assertEqual(result.error["exit"], 2)
