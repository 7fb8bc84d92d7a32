"""Commands: what each one reports and sends, on every kind of account."""

from __future__ import annotations

import shlex
from typing import Any
from unittest import mock
from urllib.parse import unquote

from contract import ContractTest, next_commands, objects, rows
from support import DEFAULT_KEY, Fault

BILLING = "GET /v1/account/billing"
TOPUP = "POST /v1/account/billing/topup"
SET_RULE = "PATCH /v1/account/billing/auto-topup"
SET_UPSTREAM = "POST /v1/account/upstream"
UPSTREAM = "GET /v1/account/upstream"
KEYS = "GET /v1/account/keys"
CREATE = "POST /v1/account/keys"
REVOKE = "POST /v1/account/keys/key_2/revoke"
ENABLE = ("auto-topup", "--enable", "--threshold", "250", "--amount", "1050")
STORED_RULE = {"enabled": True, "thresholdCents": 250, "amountCents": 1050}
RULE = {"enabled": True, "threshold_cents": 250, "amount_cents": 1050}


class Published(ContractTest):
    def test_every_published_spelling_works_in_text_and_json(self) -> None:
        self.save_card()
        for line in (
            "balance",
            "topup --amount 10",
            "topup --amount 10 --method crypto",
            "auto-topup --enable --threshold 200 --amount 1000",
            "auto-topup --disable",
            "upstream",
            "upstream --set --kind openrouter --api-key sk-or-v1-abcdef",
            "upstream --set --kind custom --api-key sk-x --base-url https://llm.example.com",
            "keys",
            "keys --create",
            "info",
        ):
            with self.subTest(line):
                text = self.process(*line.split())
                self.assertEqual(text.exit, 0, text)
                self.assertTrue(text.out)
                as_json = self.ops(*line.split(), "--json")
                self.assertEqual((as_json.exit, len(objects(as_json.out))), (0, 1), as_json)
                objects(as_json.err)


class Balance(ContractTest):
    def test_it_tells_balance_rule_and_card(self) -> None:
        found = self.ok("balance", "--json").json
        self.has(found, balance_microusd=12_340_000, balance_usd="12.34", funded=True)
        self.has(found, card_saved=False, next=None)
        shown = rows(self.ok("balance").out)
        self.assertEqual((shown["Balance"], shown["Saved card"]), ("$12.34", "no"))
        self.save_card()
        self.box.books.auto_topup = STORED_RULE
        self.has(self.ok("balance", "--json").json, card_saved=True, auto_topup=RULE)
        shown = rows(self.ok("balance").out)
        self.assertEqual(shown["Saved card"], "yes")
        self.assertEqual(shown["Auto top-up"], "add $10.50 when below $2.50")

    def test_without_credit_the_next_step_makes_a_link(self) -> None:
        for spent_microusd in (12_340_000, 1):
            self.box.books.credit("spent", -spent_microusd)
            for extra in ((), ("--json",)):
                self.assertEqual(self.follow(self.ok("balance", *extra)).exit, 0)
        self.assertEqual(len(self.box.books.links), 4)
        self.has(self.ok("balance", "--json").json, funded=False, balance_usd="-0.000001")

    def test_what_is_sent(self) -> None:
        self.ok("balance")
        (seen,) = self.box.requests
        self.assertEqual((seen.call, seen.body), (BILLING, b""))
        self.assertEqual(seen.headers["Authorization"], f"Bearer {DEFAULT_KEY}")
        self.assertRegex(seen.headers["User-Agent"], r"^cacheforge-ops/\d")


class TopUp(ContractTest):
    def test_a_link_is_made_for_whole_dollars_and_charges_nothing(self) -> None:
        for text, amount_usd in (("25", 25), ("25usd", 25), ("2500c", 25)):
            self.ok("topup", "--amount", text)
            body = self.box.writes[-1].json
            self.assertEqual(body, {"amountUsd": amount_usd, "method": "stripe"})
        self.ok("topup")
        self.assertEqual(self.box.writes[-1].json, {"amountUsd": 10, "method": "stripe"})
        self.assertEqual(self.box.books.balance_microusd, 12_340_000)

    def test_json_has_a_sentence_for_the_payer(self) -> None:
        found = self.ok("topup", "--amount", "25", "--method", "crypto", "--json").json
        (token,) = self.box.books.links
        url, host = f"{self.box.url}/pay/{token}", self.box.url[len("http://") :]
        self.has(found, amount_usd=25, method="crypto", payment_url=url, payment_host=host)
        for fact in ("$25", "crypto", host, url):
            self.assertIn(fact, found["message"])

    def test_text_has_the_link_alone_on_a_line_with_its_amount_and_method(self) -> None:
        for method, word, other in (
            ("stripe", "card|stripe", "crypto"),
            ("crypto", "crypto", "by card|stripe"),
        ):
            out = self.ok("topup", "--amount", "25", "--method", method).out
            link = f"{self.box.url}/pay/{list(self.box.books.links)[-1]}"
            self.assertIn(link, out.splitlines())
            told = out.replace(link, "").lower()
            self.assertIn("$25", told)
            self.assertRegex(told, word)
            self.assertNotRegex(told, other)

    def test_too_little_for_the_service_is_refused_by_it_and_told_in_dollars(self) -> None:
        self.assertRegex(self.fails(1, "topup", "--amount", "9").err, r"\$(9|10)\b")


class AutoTopup(ContractTest):
    def test_without_a_flag_it_only_shows(self) -> None:
        found = self.ok("auto-topup", "--json").json
        self.has(found, balance_microusd=12_340_000, balance_usd="12.34", card_saved=False)
        self.has(found, charges_now=False, message=None)
        self.assertFalse(found["auto_topup"]["enabled"])
        self.assertEqual(self.box.writes, [])

    def test_enabling_sends_cents_and_shows_what_is_stored_in_dollars(self) -> None:
        self.save_card()
        found = self.ok(*ENABLE, "--json").json
        self.assertEqual(self.box.writes[0].json, STORED_RULE)
        self.has(found, auto_topup=RULE, card_saved=True, charges_now=False)
        for shown in (found["message"], self.ok(*ENABLE).out, self.ok("auto-topup").out):
            for amount in ("$10.50", "$2.50"):
                self.assertIn(amount, shown)
        self.ok("auto-topup", "--enable")
        self.has(self.box.writes[-1].json, enabled=True, thresholdCents=200, amountCents=1000)

    def test_disabling(self) -> None:
        self.box.books.auto_topup = STORED_RULE
        found = self.ok("auto-topup", "--disable", "--json").json
        self.assertEqual(self.box.writes[0].json, {"enabled": False})
        self.assertFalse(found["auto_topup"]["enabled"])
        self.assertIsNone(found["message"])

    def test_a_charge_is_near_only_with_a_rule_a_card_and_a_balance_below(self) -> None:
        for rule, card, balance_microusd, charges_now in (
            (STORED_RULE, True, 2_499_999, True),
            (STORED_RULE, True, 2_500_000, False),
            (STORED_RULE, False, 2_499_999, False),
            ({**STORED_RULE, "enabled": False}, True, 2_499_999, False),
        ):
            self.box.books.auto_topup, self.box.books.card_saved = rule, card
            self.box.books.ledger[:] = [("now", balance_microusd)]
            found = self.ok("auto-topup", "--json").json
            self.assertIs(found["charges_now"], charges_now)

    def test_without_a_card_the_services_reason_is_told(self) -> None:
        self.assertIn("saved card", self.fails(1, *ENABLE).err)


class SettingsThatDidNotTake(ContractTest):
    """What is stored afterwards decides, whichever part of a setting it is."""

    cases = (
        # command, what it changes, what is stored in its place
        (ENABLE, {**STORED_RULE, "thresholdCents": 300}, "$3.00"),
        (ENABLE, {**STORED_RULE, "amountCents": 700}, "$7.00"),
        (("auto-topup", "--disable"), {**STORED_RULE, "amountCents": 700}, "$7.00"),
        (("upstream", "--set", "--kind", "openrouter"), None, "anthropic"),
        (("upstream", "--set", "--base-url", "https://b.example"), None, "a.example"),
    )

    def test_it_is_told_after_a_yes_and_safe_to_repeat_after_a_lost_answer(self) -> None:
        self.save_card()
        self.box.books.upstream = {"kind": "anthropic", "baseUrl": "https://a.example"}
        for argv, rule, stored in self.cases:
            self.box.books.auto_topup = rule or {"enabled": False}
            call = SET_RULE if rule else SET_UPSTREAM
            for fault, exit_code in (
                (Fault.reply(200, {"ok": True}), 1),
                (Fault.reply(200, {"error": "the moon is full"}), 1),
                (Fault(), 5),
            ):
                with self.subTest(argv=argv, fault=fault):
                    del self.box.requests[:]
                    self.box.script(call, fault)
                    result = self.fails(exit_code, *argv, "--json")
                    self.assertEqual(self.box.calls("POST", "PATCH"), [call])
                    self.assertIs(result.error["retryable"], exit_code == 5)
                    if exit_code == 1:
                        reason = "the moon is full" if b"moon" in fault.raw else stored
                        self.assertIn(reason, result.err)

    def test_a_host_is_compared_without_its_case_and_the_rest_to_the_letter(self) -> None:
        for asked, stored, exit_code in (
            ("https://LLM.Example.com/V1", "https://llm.example.com/V1", 0),
            ("https://llm.example.com/V1", "https://llm.example.com/v1", 1),
            ("https://llm.example.com/V1", "https://llm.example.com/V1?x", 1),
        ):
            reply = {"configured": True, "upstream": {"kind": "custom", "baseUrl": stored}}
            self.service_says(UPSTREAM, reply)
            self.service_says(SET_UPSTREAM, {"ok": True})
            result = self.ops("upstream", "--set", "--kind", "custom", "--base-url", asked)
            self.assertEqual(result.exit, exit_code, result)
        long = "https://llm.example.com/" + "x" * 500
        self.box.service.routes[UPSTREAM] = lambda body: {
            "configured": True,
            "upstream": {"kind": "custom", "baseUrl": long + "2"},
        }
        self.assertNotEqual(self.ops("upstream", "--set", "--base-url", long + "1").exit, 0)


class Upstream(ContractTest):
    def test_nothing_set(self) -> None:
        found = self.ok("upstream", "--json").json
        self.has(found, configured=False, kind=None, base_url=None)
        self.assertIn("not configured", self.ok("upstream").out)

    def test_parts_are_set_one_by_one(self) -> None:
        self.ok("upstream", "--set", "--kind", "anthropic")
        self.ok("upstream", "--set", "--api-key-env", "THEIRS", THEIRS="sk-ant-12345678")
        self.ok("upstream", "--set", "--base-url", "https://llm.example.com/x")
        stored = {"kind": "anthropic", "baseUrl": "https://llm.example.com/x"}
        self.assertEqual(self.box.books.upstream, {**stored, "apiKey": "sk-ant-12345678"})
        found = self.ok("upstream", "--json").json
        self.has(found, configured=True, kind="anthropic", base_url=stored["baseUrl"])
        shown = self.ok("upstream").out
        for fact in stored.values():
            self.assertIn(fact, shown)

    def test_openai_is_sent_as_custom_with_its_address_or_one_of_ones_own(self) -> None:
        for extra, base_url in (
            ((), "https://api.openai.com"),
            (("--base-url", "https://eu.example.com"), "https://eu.example.com"),
        ):
            self.assertEqual(self.ops("upstream", "--set", "--kind", "openai", *extra).exit, 0)
            self.has(self.box.writes[-1].json, kind="custom", baseUrl=base_url)

    def test_addresses_that_would_leak_or_lead_nowhere_are_refused(self) -> None:
        for url in (
            *("", " ", "llm.example.com", "http://llm.example.com", "http://localhost"),
            *("http://127.0.0.1:8080", "https://u:p@llm.example.com", "file:///etc/passwd"),
        ):
            self.refused("upstream", "--set", "--kind", "custom", f"--base-url={url}")
            self.refused("upstream", "--set", f"--base-url={url}")


class Keys(ContractTest):
    def test_the_list_in_json_and_text(self) -> None:
        (key,) = self.ok("keys", "--json").json["keys"]
        self.has(key, id="key_1", prefix=DEFAULT_KEY[:12], label="sandbox", revoked_at=None)
        self.has(key, created_at="2026-01-02T03:04:05Z", in_use=True)
        self.assertIn("last_used_at", key)
        line = self.ok("keys").out.splitlines()[-1]
        for fact in ("key_1", DEFAULT_KEY[:12], "2026-01-02", "sandbox"):
            self.assertIn(fact, line)

    def test_no_keys_at_all_is_an_answer(self) -> None:
        self.service_says(KEYS, {"keys": []})
        self.assertEqual(self.ok("keys", "--json").json, {"keys": []})
        self.assertTrue(self.ok("keys").out.strip())

    def test_a_new_key_stands_alone_on_its_line_once(self) -> None:
        out = self.ok("keys", "--create").out
        made = self.box.books.keys[-1]
        self.assertIn(made.secret, out.splitlines())
        self.assertEqual(out.count(made.secret), 1)
        self.assertIn(made.id, out)
        found = self.ok("keys", "--create", "--json").json
        made = self.box.books.keys[-1]
        self.has(found, id=made.id, prefix=made.prefix, api_key=made.secret)

    def test_an_id_that_is_not_plain_never_stands_in_a_command(self) -> None:
        keys = [{"id": "key_1", "prefix": DEFAULT_KEY[:12]}]
        self.service_says(KEYS, {"keys": keys})
        for odd in ("k; touch pwned #", "$(touch pwned)", "--pwned", "k\npwned", "'pwned"):

            def create(body: Any, odd: str = odd) -> object:
                keys[1:] = [{"id": odd, "prefix": "cf_other_012"}]
                return {}

            self.box.service.routes[CREATE] = create
            for extra in ((), ("--json",)):
                keys[1:] = []
                self.box.script(CREATE, Fault(after=True))
                result = self.fails(6, "keys", "--create", *extra)
                commands = [shlex.join(words) for words in next_commands(result)]
                self.assertNotIn("pwned", " ".join(commands))
                if not extra:
                    for line in result.err.splitlines():
                        self.assertFalse("pwned" in line and "--revoke" in line, line)


class Revoking(ContractTest):
    def setUp(self) -> None:
        super().setUp()
        self.box.service.create_key({})

    def revoke(self, *extra: str) -> Any:
        return self.ok("keys", "--revoke", "key_2", "--yes", "--json", *extra).json

    def test_it_says_which_key_died_and_that_the_list_confirms_it(self) -> None:
        made = self.box.books.keys[-1]
        self.ok("balance", CACHEFORGE_API_KEY=made.secret)
        found = self.revoke()
        self.has(found["revoked"], id="key_2", prefix=made.prefix, label=None)
        self.has(found, already=False, confirmed=True)
        self.fails(3, "balance", CACHEFORGE_API_KEY=made.secret)
        (line,) = (line for line in self.ok("keys").out.splitlines() if "key_2" in line)
        self.assertIn("revoked", line)

    def test_it_is_sent_again_however_the_list_marks_the_key(self) -> None:
        for mark, already in (("2026-01-02T03:04:05Z", True), ("0001-01-01T00:00:00Z", False)):
            self.box.books.keys[-1].revoked_at = mark
            del self.box.requests[:]
            result = self.ops("keys", "--revoke", "key_2", "--yes", "--json")
            self.assertEqual([seen.call for seen in self.box.writes], [REVOKE])
            if already:
                self.has(result.json, already=True, confirmed=True)
            else:  # the sandbox keeps the mark, so that nothing shows the revocation
                self.assertNotIn('"confirmed":true', result.out)
                self.assertNotIn('"already":true', result.out)

    def test_a_key_that_is_gone_afterwards_is_confirmed(self) -> None:
        def drop(key_id: str) -> object:
            return {"dropped": self.box.books.keys.pop().id}

        with mock.patch.object(self.box.service, "revoke_key", drop):
            self.has(self.revoke(), already=False, confirmed=True)

    def test_any_id_in_the_list_can_be_revoked_and_is_percent_encoded(self) -> None:
        for key_id in ("a/b", "a b?c#d", "100%", "kéy", "a;b"):
            self.service_says(KEYS, {"keys": [{"id": key_id, "prefix": "cf_other_012"}]})
            self.ops("keys", "--revoke", key_id, "--yes")
            path = self.box.writes[-1].path
            encoded = path[len("/v1/account/keys/") : -len("/revoke")]
            self.assertEqual(unquote(encoded), key_id)
            self.assertRegex(encoded, r"^[A-Za-z0-9%._~-]+$")

    def test_an_unknown_key_sends_no_write(self) -> None:
        for key_id in ("key_9", "key", "KEY_1", "key_2 ", "../info", ""):
            self.fails(2, "keys", f"--revoke={key_id}", "--yes", "--force")
        self.assertEqual(self.box.writes, [])

    def test_where_nobody_can_be_asked_it_needs_yes_before_anything_is_sent(self) -> None:
        for extra in ((), ("--force",), ("--json",), ("--force", "--json")):
            self.refused("keys", "--revoke", "key_2", *extra, says="--yes")

    def test_ones_own_key_and_what_may_be_it_is_refused_unless_forced(self) -> None:
        ours = (DEFAULT_KEY[:12], DEFAULT_KEY)
        masked = ("cf_sandb...cdef", "cf_sandb\u2026cdef", "cf_sandb****")
        unknown = ("...", "cf_", "", None, 42)
        other = ("cf_other_012", "cf_sandbox_9")
        for prefix in (*ours, *masked, *unknown, *other):
            with self.subTest(prefix=prefix):
                self.service_says(KEYS, {"keys": [{"id": "key_2", "prefix": prefix}]})
                shown = self.ok("keys", "--json")
                (key,) = shown.json["keys"]
                self.assertNotIn(DEFAULT_KEY, shown.out)
                self.assertIs(key["in_use"] is False, prefix in other)
                if prefix not in masked:
                    self.assertIs(key["in_use"] is True, prefix in ours)
                del self.box.requests[:]
                result = self.ops("keys", "--revoke", "key_2", "--yes")
                if prefix in other:
                    self.assertEqual((result.exit, len(self.box.writes)), (0, 1), result)
                else:
                    self.assertEqual((result.exit, self.box.writes), (2, []), result)
                    self.assertIn("--force", result.err)
                    self.ops("keys", "--revoke", "key_2", "--yes", "--force")
                    self.assertEqual(len(self.box.writes), 1)


class Info(ContractTest):
    def test_the_tenant_and_what_the_tool_is_set_to(self) -> None:
        self.box.books.tenant_status = "suspended"
        found = self.ok("info", "--json").json
        self.has(found["tenant"], id="tn_sandbox", name="Sandbox Inc.", status="suspended")
        self.has(found["tenant"], upstream_configured=False, active_keys=1)
        self.assertEqual(found["base_url"], self.box.url)
        shown = self.ok("info").out
        for fact in ("tn_sandbox", "Sandbox Inc.", "suspended", "not configured", self.box.url):
            self.assertIn(fact, shown)
        self.assertIn(found["api_key"], shown)


class Everywhere(ContractTest):
    def test_under_json_all_that_is_said_is_json(self) -> None:
        self.box.service.on_link = self.box.books.pay
        for line in (
            "balance --verbose",
            "balance --wait --verbose",
            "topup --wait",
            "upstream --set --kind openai --api-key abcdef --verbose",
            "keys --create --dry-run --verbose",
            "info --timeout 0 --verbose",
            "keys --revoke key_9 --yes --verbose",
        ):
            with self.subTest(line):
                result = self.ops(*line.split(), "--json")
                objects(result.out)
                for said in objects(result.err):
                    self.assertIn(list(said), (["note"], ["error"]))
