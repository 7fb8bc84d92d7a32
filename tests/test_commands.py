"""Commands: what reaches the service, in which order, and what is typed wrong."""

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
    SandboxTest,
    next_words,
)

CRYPTO = {"amountUsd": 25, "method": "crypto"}
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
            ("topup --amount 2500c --method crypto", [BILLING, TOPUP], CRYPTO),
            ("topup --amount 25usd --method crypto", [BILLING, TOPUP], CRYPTO),
            ("auto-topup --enable", [BILLING, SET_RULE, BILLING], DEFAULT_RULE),
            (
                *("auto-topup --enable --threshold 250 --amount 1050",),
                *([BILLING, SET_RULE, BILLING], RULE),
            ),
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
            *(("keys --revoke key_2", []), ("keys --revoke key_2 --force --json", [])),
            *(("topup --amount 501", []), ("upstream --set --kind custom", [])),
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


class Verbose(SandboxTest):
    def test_it_shows_how_long_a_request_took(self) -> None:
        honest = self.box.service.routes[BILLING]

        def later(body: Any) -> Any:
            self.box.closing.wait(0.05)
            return honest(body)

        self.box.service.routes[BILLING] = later
        found = re.search(r"\b([0-9]+) ms\b", self.ops("balance", "--verbose").err)
        assert found
        self.assertGreaterEqual(int(found[1]), 50)


class Story(SandboxTest):
    """What the skill is for: a call gets 402, a person pays, the call works."""

    balance_usd = "0"

    def chat(self) -> int:
        """Send the agent's own call through the gateway; its HTTP status."""
        url, key = f"{self.box.url}/v1/chat/completions", f"Bearer {DEFAULT_KEY}"
        body = b'{"model": "m", "messages": [{"role": "user"}]}'
        request = urllib.request.Request(url, body, {"Authorization": key})
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
        (link,) = self.box.account.links
        self.assertIn(f"{self.box.url}/pay/{link}", made.out.splitlines())
        words = next_words(made.out.rpartition("Next: ")[2])
        self.assertEqual((self.ops(*words).exit, self.chat()), (4, 402))
        with urllib.request.urlopen(f"{self.box.url}/pay/{link}", b"", timeout=10) as page:
            self.assertIn(b"Paid", page.read())
        self.assertEqual((self.ops(*words).exit, self.chat()), (0, 200))
        self.assertIsNone(self.ok("balance", "--json").json["next"])
