"""Commands: what reaches the service, in which order, and that a write does so once."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from typing import Any

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    INFO,
    KEYS,
    REVOKE,
    SET_RULE,
    SET_UPSTREAM,
    TOPUP,
    UPSTREAM,
    Fault,
    SandboxTest,
    next_words,
)

LINK = {"amountUsd": 25, "method": "crypto"}
RULE = {"enabled": True, "thresholdCents": 250, "amountCents": 1050}
OPENROUTER = {"kind": "openrouter", "apiKey": "sk-or-theirs"}
ADDRESS = {"baseUrl": "https://x.example"}
DEFAULT_RULE = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
OPENAI = {"kind": "custom", "baseUrl": "https://api.openai.com"}
TYPED = "upstream --set --kind openrouter --api-key"


class Requests(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.save_card()
        self.box.service.create_key({})

    def test_each_command_sends_its_requests_and_a_dry_run_all_but_the_write(self) -> None:
        writes: tuple[tuple[str, list[str], Any], ...] = (
            ("topup", [BILLING, TOPUP], {"amountUsd": 10, "method": "stripe"}),
            ("topup --amount 2500c --method crypto", [BILLING, TOPUP], LINK),
            ("topup --amount 25usd --method crypto", [BILLING, TOPUP], LINK),
            ("auto-topup --enable", [SET_RULE, BILLING], DEFAULT_RULE),
            ("auto-topup --enable --threshold 250 --amount 1050", [SET_RULE, BILLING], RULE),
            ("auto-topup --disable", [SET_RULE, BILLING], {"enabled": False}),
            (f"{TYPED} sk-or-theirs", [SET_UPSTREAM, UPSTREAM], OPENROUTER),
            (f"{TYPED} -", [SET_UPSTREAM, UPSTREAM], OPENROUTER),
            (f"{TYPED}-env THEIRS", [SET_UPSTREAM, UPSTREAM], OPENROUTER),
            ("upstream --set --base-url https://x.example", [SET_UPSTREAM, UPSTREAM], ADDRESS),
            ("upstream --set --kind anthropic", [SET_UPSTREAM, UPSTREAM], {"kind": "anthropic"}),
            ("upstream --set --kind openai", [SET_UPSTREAM, UPSTREAM], OPENAI),
            (
                *("upstream --set --kind openai --base-url https://x.example",),
                *([SET_UPSTREAM, UPSTREAM], {"kind": "custom", **ADDRESS}),
            ),
            ("keys --create", [KEYS, CREATE], {}),
            ("keys --revoke key_2 --yes", [KEYS, REVOKE, KEYS], {}),
            ("keys --revoke key_2 --yes", [KEYS, REVOKE, KEYS], {}),  # also what is revoked
        )
        for line, calls, body in writes:
            with self.subTest(line):
                self.assertEqual(self.sent(f"{line} --dry-run")[1], [])
                self.assertEqual(self.sent(line), (calls, [body]))

    def test_reads_send_one_request_and_a_refusal_here_sends_no_write(self) -> None:
        for line, calls in (
            *(("balance", [BILLING]), ("balance --min 5 --wait", [BILLING]), ("info", [INFO])),
            *(("auto-topup", [BILLING]), ("upstream", [UPSTREAM]), ("keys", [KEYS])),
            *(("keys --revoke key_9 --yes --force", [KEYS]), ("keys --revoke key_1 --yes", [KEYS])),
            *(("keys --revoke key_2", []), ("keys --revoke key_2 --force --json", [])),
            *(("topup --amount 501", []), ("upstream --set --kind custom", [])),
        ):
            with self.subTest(line):
                self.assertEqual(self.sent(line), (calls, []))

    def sent(self, line: str) -> tuple[list[str], list[Any]]:
        """The calls that a command makes, and the bodies of its writes."""
        self.box.requests.clear()
        self.ops(*line.split(), stdin="sk-or-theirs\n", THEIRS=" sk-or-theirs\n")
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
                for better in re.findall(r"write (\w+)|--amount (\d\w*)", told):
                    suggested += 1
                    self.ok(*command, "--amount", "".join(better), "--dry-run")
        self.assertGreater(suggested, 3)

    def test_a_suggested_top_up_is_rounded_up_to_whole_dollars(self) -> None:
        for least, usd in (("22.34", "10"), ("22.35", "11"), ("40", "28")):
            next_step = self.ops("balance", "--min", least, "--json").json["next"]
            self.assertEqual(next_words(next_step), ["topup", "--amount", usd])


class Refused(SandboxTest):
    """What is refused here: exit 2, no write is sent, and nothing that was typed is repeated."""

    def setUp(self) -> None:
        super().setUp()
        self.save_card()
        self.box.service.create_key({})

    def refused(self, line: str, stdin: str = "", **env: str) -> str:
        """Run a command that is refused; the message."""
        message = self.fails(2, *line.split(), stdin=stdin, **env).err
        self.assertEqual(self.box.writes, [], line)
        return message

    def test_amounts_above_the_cap(self) -> None:
        for line, usd in (
            *(("topup --amount 501", "$501"), ("auto-topup --enable --amount 50001", "$500.01")),
            ("auto-topup --enable --threshold 501usd", "$501"),
        ):
            message = self.refused(line)
            self.assertIn("CACHEFORGE_MAX_TOPUP_USD", message)
            self.assertIn(usd, message)
        self.refused("topup", CACHEFORGE_MAX_TOPUP_USD="9")
        self.refused("auto-topup --enable", CACHEFORGE_MAX_TOPUP_USD="0")
        self.assertEqual(self.box.requests, [])

    def test_amounts_of_auto_topup_that_look_like_dollars(self) -> None:
        for option in ("--amount", "--threshold"):
            self.refused(f"auto-topup --enable {option} 99")

    def test_a_provider_at_an_http_address(self) -> None:
        line = "upstream --set --kind custom --base-url http://llm.example.com"
        self.refused(line)
        self.ok(*line.split(), CACHEFORGE_ALLOW_INSECURE_HTTP="1")

    def test_the_accounts_own_key_as_the_providers(self) -> None:
        message = self.refused(f"{TYPED} -", stdin=f"{DEFAULT_KEY}\n")
        self.assertNotIn(DEFAULT_KEY, message)

    def test_an_account_key_that_cannot_be_one(self) -> None:
        for key in ("", "cf_Sup3r S3cret", "cf_Sup3rS3cret\x01", "cf_Sup3rS3cret\xe4", "sk-Sup3r"):
            self.assertNotIn("Sup3r", self.refused("balance", CACHEFORGE_API_KEY=key))
        self.assertEqual(self.box.requests, [])

    def test_a_service_at_an_http_address(self) -> None:
        message = self.refused("balance", CACHEFORGE_BASE_URL="http://service.test")
        self.assertIn("CACHEFORGE_ALLOW_INSECURE_HTTP", message)

    def test_abbreviated_options(self) -> None:
        for line in ("balance --mi 5", "keys --revoke key_2 --ye", "topup --dry", "--jso info"):
            self.refused(line)
        self.assertEqual(self.box.requests, [])

    def test_a_secret_in_the_wrong_place_is_not_repeated(self) -> None:
        for line in (
            *("sk-Sup3rS3cret", "balance sk-Sup3rS3cret", "topup --amount sk-Sup3rS3cret"),
            *("upstream --set --kind sk-Sup3rS3cret", "balance --sk-Sup3rS3cret"),
            *("topup --method=sk-Sup3rS3cret", "topup --dry-run=sk-Sup3rS3cret"),
        ):
            for extra in ("", " --json"):
                self.assertNotIn("Sup3r", self.refused(line + extra))


class Odds(SandboxTest):
    """Small things that a user sees."""

    def test_a_balance_is_rounded_down_and_enough_is_said_by_the_exit_code(self) -> None:
        for microusd, shown, exact in (
            *((1_999_999, "$1.99", "1.999999"), (-1, "-$0.01", "-0.000001")),
            (0, "$0.00", "0.00"),
        ):
            self.box.books.ledger[:] = [("so much", microusd)]
            self.assertEqual(self.ok("balance").out.splitlines()[0].split(), ["Balance", shown])
            data = self.ok("balance", "--json").json
            self.assertEqual((data["balance_usd"], data["funded"]), (exact, microusd > 0))
            result = self.ops("balance", "--min", "2", "--json")
            self.assertEqual((result.exit, result.json["enough"]), (4, False))
            self.assertEqual(result.json["short_microusd"], 2_000_000 - microusd)

    def test_a_short_provider_key_is_redacted_in_a_dry_run(self) -> None:
        for extra in ((), ("--json",)):
            argv = ("upstream", "--set", "--kind", "custom", "--base-url", "https://x.example")
            shown = self.ops(*argv, "--api-key", "-", "--dry-run", *extra, stdin="S3cret\n")
            self.assertEqual(shown.exit, 0)
            self.assertIn("apiKey", shown.out)
            self.assertNotIn("S3cret", shown.out + shown.err)

    def test_the_provider_key_is_the_first_line_of_standard_input(self) -> None:
        self.ops(*TYPED.split(), "-", stdin="sk-or-theirs\nmore\n")
        self.assertEqual([seen.json for seen in self.box.writes], [OPENROUTER])

    def test_verbose_shows_how_long_a_request_took(self) -> None:
        answer = self.box.service.routes[BILLING]

        def later(body: Any) -> Any:
            self.box.closing.wait(0.05)
            return answer(body)

        self.box.service.routes[BILLING] = later
        found = re.search(r"\b([0-9]+) ms\b", self.ops("balance", "--verbose").err)
        assert found
        self.assertGreaterEqual(int(found[1]), 50)

    def test_a_key_id_stays_one_segment_of_the_path(self) -> None:
        self.box.service.create_key({})
        self.box.books.keys[1].id = "../keys?a#b"
        self.ok("keys", "--revoke", "../keys?a#b", "--yes")
        sent = [seen.call for seen in self.box.writes]
        self.assertEqual(sent, ["POST /v1/account/keys/..%2Fkeys%3Fa%23b/revoke"])

    def test_a_revocation_that_the_list_does_not_show_is_not_confirmed(self) -> None:
        self.box.service.create_key({})
        self.box.books.shows_keys = "unmarked"
        found = self.ok("keys", "--revoke", "key_2", "--yes", "--json").json
        self.assertIs(found["confirmed"], False)

    def test_html_is_not_shown(self) -> None:
        self.box.script(BILLING, Fault.reply(404, b"<p>Sup3r", {"Content-Type": "text/html"}))
        self.assertNotIn("Sup3r", self.fails(1, "balance").err)


class Story(SandboxTest):
    """What the skill is for: a call gets 402, a person pays, the call works."""

    balance_usd = "0"

    def chat(self) -> int:
        """Send the agent's own call through the gateway; its HTTP status."""
        url, key = f"{self.box.url}/v1/chat/completions", f"Bearer {DEFAULT_KEY}"
        request = urllib.request.Request(url, b"{}", {"Authorization": key})
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def test_each_next_step_leads_from_a_402_to_a_call_that_works(self) -> None:
        self.assertEqual(self.chat(), 402)
        words = next_words(self.ok("balance", "--json").json["next"])
        made = self.ok(*words)
        (link,) = self.box.books.links
        self.assertIn(f"{self.box.url}/pay/{link}", made.out.splitlines())
        words = next_words(made.out.rpartition("Next: ")[2])
        self.assertEqual((self.ops(*words).exit, self.chat()), (4, 402))
        with urllib.request.urlopen(f"{self.box.url}/pay/{link}", b"", timeout=10) as page:
            self.assertIn(b"Paid", page.read())
        self.assertEqual((self.ops(*words).exit, self.chat()), (0, 200))
        self.assertIsNone(self.ok("balance", "--json").json["next"])
