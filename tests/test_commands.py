"""Commands: what reaches the service, in which order, and what is suggested next."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import tempfile
import unittest
from typing import Any
from unittest import mock

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    INFO,
    KEYS,
    OPS,
    REVOKE,
    SET_RULE,
    SET_UPSTREAM,
    TOPUP,
    UPSTREAM,
    FaultTest,
    QuickClock,
    SandboxTest,
    billing,
    call_on,
    next_words,
    run,
)

CRYPTO = {"amountUsd": 25, "method": "crypto"}
RULE = {"enabled": True, "thresholdCents": 250, "amountCents": 1050}
OPENROUTER = {"kind": "openrouter", "apiKey": "sk-or-theirs"}
ADDRESS, AT = {"baseUrl": "https://x.example"}, "--base-url https://x.example"
DEFAULT_RULE = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
OPENAI = {"kind": "custom", "baseUrl": "https://api.openai.com"}
ENABLED, PROVIDER = [BILLING, SET_RULE, BILLING], [SET_UPSTREAM, UPSTREAM]
TYPED = "upstream --set --kind openrouter --api-key"


class Requests(FaultTest):
    def test_each_command_sends_its_requests_and_a_dry_run_all_but_the_write(self) -> None:
        writes: tuple[tuple[str, list[str], Any], ...] = (
            ("topup", [BILLING, TOPUP], {"amountUsd": 10, "method": "stripe"}),
            ("topup --amount 2500c --method crypto", [BILLING, TOPUP], CRYPTO),
            ("topup --amount 25usd --method crypto", [BILLING, TOPUP], CRYPTO),
            ("auto-topup --enable", ENABLED, DEFAULT_RULE),
            ("auto-topup --enable --threshold 250 --amount 1050", ENABLED, RULE),
            ("auto-topup --disable", [SET_RULE, BILLING], {"enabled": False}),
            (f"{TYPED} sk-or-theirs", PROVIDER, OPENROUTER),
            (f"{TYPED} -", PROVIDER, OPENROUTER),
            (f"{TYPED}-env THEIRS", PROVIDER, OPENROUTER),
            (f"upstream --set {AT}", PROVIDER, ADDRESS),
            ("upstream --set --kind anthropic", PROVIDER, {"kind": "anthropic"}),
            ("upstream --set --kind openai", PROVIDER, OPENAI),
            (f"upstream --set --kind openai {AT}", PROVIDER, {"kind": "custom", **ADDRESS}),
            ("keys --create", [KEYS, CREATE], {}),
            ("keys --revoke key_2 --yes", [KEYS, REVOKE, KEYS], {}),
            ("keys --revoke key_2 --yes --force", [KEYS, REVOKE, KEYS], {}),  # once more
        )
        for line, calls, body in writes:
            with self.subTest(line):
                self.assertEqual(self.requests(f"{line} --dry-run")[1], [])
                self.assertEqual(self.requests(line), (calls, [body]))

    def test_reads_send_one_request_and_a_refusal_here_sends_no_write(self) -> None:
        for line, calls in (
            *(("balance", [BILLING]), ("balance --min 5 --wait", [BILLING]), ("info", [INFO])),
            *(("auto-topup", [BILLING]), ("upstream", [UPSTREAM]), ("keys", [KEYS])),
            *(("keys --revoke key_9 --yes", [KEYS]), ("keys --revoke key_1 --yes", [KEYS])),
            *(("keys --revoke key_2", [KEYS]), ("keys --revoke key_2 --force --json", [KEYS])),
            *(("topup --amount 501", []), ("upstream --set", [])),
            *((f"auto-topup --enable --amount {cents}", []) for cents in ("50001", "99", "0")),
            *((f"auto-topup --enable --threshold {cents}", []) for cents in ("50001", "99")),
        ):
            with self.subTest(line):
                self.assertEqual(self.requests(line), (calls, []))

    def requests(self, line: str) -> tuple[list[str], list[Any]]:
        """The calls that a command makes, and the bodies of its writes."""
        self.box.requests.clear()
        self.ops(*line.split(), stdin="sk-or-theirs\nmore\n", THEIRS=" sk-or-theirs\n")
        for seen in self.box.requests:
            self.assertEqual(seen.headers["Authorization"], f"Bearer {DEFAULT_KEY}")
            self.assertRegex(seen.headers["User-Agent"], r"^cacheforge-ops/\d")
            self.assertEqual(seen.headers["Accept"], "application/json")
            if seen.body:
                self.assertEqual(seen.headers.get_content_type(), "application/json")
        return self.box.calls(), [seen.json for seen in self.box.writes]


class Suggestions(SandboxTest):
    def test_no_amount_that_a_refusal_suggests_is_refused_in_turn(self) -> None:
        suggested = 0
        for amount in ("0", "10", "99", "501", "1000", "1050", "2550", "50000", "50001", "99999"):
            for command in (("topup",), ("auto-topup", "--enable")):
                told = self.ops(*command, f"--amount={amount}", "--dry-run").err
                for better in re.findall(r"(?:write|--amount) (\d\w*)", told):
                    suggested += 1
                    self.ok(*command, "--amount", better, "--dry-run")
        self.assertGreater(suggested, 3)

    def test_a_suggested_top_up_is_rounded_up_to_whole_dollars(self) -> None:
        self.box.account.ledger.clear()
        for least, amount in (("10", 10), ("10.01", 11), ("37.99", 38), ("500", 500)):
            found = self.ops("balance", "--min", least, "--json").json
            self.assertEqual(next_words(found["next"]), ["topup", "--amount", f"{amount}"])
        self.assertIsNone(self.ops("balance", "--min", "500.01", "--json").json["next"])


class AutoTopup(SandboxTest):
    def test_a_charge_is_foretold_only_if_all_is_known(self) -> None:
        for balance_usd, changed, charges in (
            *((1, {}, True), (5, {}, False), (1, {"defaultPaymentMethodSet": False}, False)),
            *((1, {"autoTopupEnabled": False}, False), (1, {"autoTopupEnabled": None}, None)),
            *((1, {"autoTopupThresholdCents": None}, None),),
            *((5, {"defaultPaymentMethodSet": None}, None),),
            *((1, {"defaultPaymentMethodSet": None}, None),),
        ):
            with self.subTest(balance_usd=balance_usd, changed=changed):
                account = billing(balance_usd, rule=(200, 1000))
                account["billing"].update(changed)
                self.route(BILLING, account)
                found = self.ok("auto-topup", "--json").json
                self.assertIs(found["charges_now"], charges)
                self.assertEqual("at once" in (found["message"] or ""), charges is True)


class Help(SandboxTest):
    def test_help_is_a_command_and_common_options_may_stand_before_it(self) -> None:
        for argv in (("help", "topup"), ("--json", "help", "topup"), ("help", "topup", "--json")):
            self.assertEqual(self.ok(*argv).out, self.ok("topup", "--help").out)


class Verbose(SandboxTest):
    def test_it_shows_how_long_a_request_took(self) -> None:
        self.delay(BILLING, 0.05)
        found = re.search(r"\b([0-9]+) ms\b", self.ops("balance", "--verbose").err)
        assert found
        self.assertGreaterEqual(int(found[1]), 50)


class Pasting(SandboxTest):
    """The `Next:` line starts the program again, wherever it lies."""

    balance_usd = "0"

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_a_next_line_from_an_odd_folder_runs_in_a_shell(self) -> None:
        with tempfile.TemporaryDirectory("it's my $HOME; a&b caf\xe9") as folder:
            program = shutil.copy(OPS, folder)
            shown = run(sys.executable, program, "balance", **self.box.env)
            line = shown.out.splitlines()[-1].partition("Next: python3 ")[2]
            pasted = run("sh", "-c", f"{shlex.quote(sys.executable)} {line}", **self.box.env)
        self.assertEqual((pasted.exit, len(self.box.account.links)), (0, 1), pasted)

    def test_on_windows_it_starts_python_and_quotes_for_its_shells(self) -> None:
        # no Windows here: only its name, so that one in-process run takes that road
        for path, words in (
            (r"C:\skills\ops.py", r'python "C:\skills\ops.py" topup'),
            (r"C:\my skills\ops.py", r'python "C:\my skills\ops.py" topup'),
        ):
            with mock.patch.object(os, "name", "nt"):
                result = call_on(QuickClock(), "balance", program=path, **self.box.env)
            self.assertIn(f"Next: {words}", result.out)
