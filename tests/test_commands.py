"""Commands: every verb on the sandbox; what it says, and what the sandbox saw."""

from __future__ import annotations

import os
import tempfile
import unittest

from support import DEFAULT_KEY, OPS, Fault, SandboxTest, ops

OFF = {"enabled": False, "threshold_cents": 0, "amount_cents": 0}
RULE = {"enabled": True, "threshold_cents": 250, "amount_cents": 1050}
ENABLE = ("auto-topup", "--enable", "--threshold", "250", "--amount", "1050")


class Published(SandboxTest):
    """The spellings that may never stop working, each as a process, on text and JSON."""

    def both(self, *argv: str) -> None:
        for extra in ((), ("--json",)):
            with self.subTest(argv=argv, extra=extra):
                result = self.process(*argv, *extra)
                self.assertEqual(result.exit, 0, result)
                self.assertTrue(result.json if extra else result.out)

    def test_balance(self) -> None:
        self.both("balance")

    def test_topup(self) -> None:
        self.both("topup", "--amount", "10")
        self.both("topup", "--amount", "10", "--method", "crypto")

    def test_auto_topup(self) -> None:
        self.save_card()
        self.both("auto-topup", "--enable", "--threshold", "200", "--amount", "1000")
        self.both("auto-topup", "--disable")

    def test_upstream(self) -> None:
        self.both("upstream")
        self.both("upstream", "--set", "--kind", "openrouter", "--api-key", "sk-or-v1-abcdef")

    def test_keys(self) -> None:
        self.both("keys")
        self.both("keys", "--create")

    def test_info(self) -> None:
        self.both("info")


class Balance(SandboxTest):
    def test_text(self) -> None:
        self.assertEqual(
            self.ok("balance").out,
            "Balance       $12.34\nAuto top-up   off\nSaved card    no\n",
        )

    def test_text_with_a_rule(self) -> None:
        self.save_card()
        self.ok(*ENABLE)
        self.assertIn("Auto top-up   add $10.50 when below $2.50\n", self.ok("balance").out)

    def test_json(self) -> None:
        self.assertEqual(
            self.ok("balance", "--json").json,
            {
                "balance_microusd": 12_340_000,
                "balance_usd": "12.34",
                "funded": True,
                "auto_topup": OFF,
                "card_saved": False,
                "next": None,
            },
        )

    def test_without_credit_the_next_step_can_be_pasted(self) -> None:
        for microusd in (-12_340_000, -1):
            self.box.books.credit("spent", microusd)
            self.assertIn("topup --amount 10", self.ok("balance").out.splitlines()[-1])
            found = self.ok("balance", "--json").json
            self.assertEqual(found["next"], f"python3 {OPS} topup --amount 10")
            self.assertIs(found["funded"], False)
        self.assertEqual(found["balance_usd"], "-0.000001")
        self.assertNotIn("Short by", self.ok("balance").out)

    def test_the_smallest_credit_is_credit(self) -> None:
        self.box.books.credit("spent", -12_340_000 + 1)
        found = self.ok("balance", "--json").json
        self.assertEqual((found["funded"], found["next"]), (True, None))
        lines = self.ok("balance", FORCE_COLOR="1").out.splitlines()
        self.assertEqual(lines[0], "Balance       \x1b[1;32m$0.00\x1b[0m")
        self.assertEqual(lines[1:], ["Auto top-up   off", "Saved card    no"])
        self.box.books.credit("spent", -1)
        self.assertIn("\x1b[1;31m$0.00", self.ok("balance", FORCE_COLOR="1").out)

    def test_a_trailing_slash_or_v1_in_the_base_url_means_the_same(self) -> None:
        for tail in ("/", "/v1", "/v1/"):
            self.ok("balance", CACHEFORGE_BASE_URL=self.box.url + tail)
        self.assertEqual(set(self.box.calls()), {"GET /v1/account/billing"})

    def test_what_is_sent(self) -> None:
        self.ok("balance")
        (seen,) = self.box.requests
        self.assertEqual(seen.headers["Authorization"], f"Bearer {DEFAULT_KEY}")
        self.assertRegex(seen.headers["User-Agent"], r"^cacheforge-ops/\d")
        self.assertEqual(seen.body, b"")
        self.assertNotIn("Content-Type", seen.headers)
        self.ok("topup")
        seen = self.box.requests[1]
        self.assertEqual(seen.headers["Content-Type"], "application/json")
        self.assertEqual(seen.headers["Accept"], "application/json")


class TopUp(SandboxTest):
    def test_the_amount_goes_out_in_whole_dollars(self) -> None:
        for text, amount_usd in (("25", 25), ("25usd", 25), ("2500c", 25)):
            self.ok("topup", "--amount", text)
            body = self.box.writes[-1].json
            self.assertEqual(body, {"amountUsd": amount_usd, "method": "stripe"})

    def test_json_has_a_sentence_for_the_payer(self) -> None:
        found = self.ok("topup", "--amount", "25", "--method", "crypto", "--json").json
        host = self.box.url[len("http://") :]
        self.assertEqual((found["amount_usd"], found["method"]), (25, "crypto"))
        self.assertEqual(found["payment_host"], host)
        for part in ("$25.00", "crypto", host, "nothing is charged", found["payment_url"]):
            self.assertIn(part, found["message"])

    def test_text_has_the_link_alone_on_a_line(self) -> None:
        lines = self.ok("topup").out.splitlines()
        (token,) = self.box.books.links
        self.assertEqual(lines[1], f"{self.box.url}/pay/{token}")

    def test_too_little_for_the_service_is_refused_by_it(self) -> None:
        self.assertIn("at least 10", self.fails(1, "topup", "--amount", "9").err)

    def test_the_cap_can_be_moved(self) -> None:
        self.ok("topup", "--amount", "600", CACHEFORGE_MAX_TOPUP_USD="600")
        self.fails(2, "topup", "--amount", "11", CACHEFORGE_MAX_TOPUP_USD="10")
        self.assertEqual(len(self.box.books.links), 1)

    def test_making_a_link_charges_nothing(self) -> None:
        self.ok("topup")
        self.assertEqual(self.box.books.balance_microusd, 12_340_000)


class AutoTopup(SandboxTest):
    def test_without_a_flag_it_only_shows(self) -> None:
        found = self.ok("auto-topup", "--json").json
        self.assertEqual(found["auto_topup"], OFF)
        self.assertNotIn("message", found)
        self.assertEqual(self.box.writes, [])

    def test_enabling_stores_cents_and_shows_what_is_stored(self) -> None:
        self.save_card()
        result = self.ok(*ENABLE, "--json").json
        self.assertIn("may now charge the saved card $10.50", self.ok(*ENABLE).out)
        self.assertEqual(
            self.box.writes[0].json,
            {"enabled": True, "thresholdCents": 250, "amountCents": 1050},
        )
        self.assertEqual(self.box.calls()[-1], "GET /v1/account/billing")
        self.assertEqual(
            result,
            {
                "auto_topup": RULE,
                "balance_microusd": 12_340_000,
                "balance_usd": "12.34",
                "card_saved": True,
                "charges_now": False,
                "message": "The service may now charge the saved card $10.50"
                " each time the balance falls below $2.50.",
            },
        )

    def test_dollars_with_their_unit(self) -> None:
        self.save_card()
        self.ok("auto-topup", "--enable", "--threshold", "2usd", "--amount", "20usd")
        self.assertEqual(self.box.books.auto_topup["thresholdCents"], 200)
        self.assertEqual(self.box.books.auto_topup["amountCents"], 2000)

    def test_it_says_when_the_balance_is_already_below(self) -> None:
        self.save_card()
        self.box.books.credit("spent", -12_000_000)
        result = self.ok(*ENABLE)
        self.assertIn("below that already", result.out)
        self.assertIs(self.ok("auto-topup", "--json").json["charges_now"], True)
        for missing_microusd, charges_now in ((2_500_000 - 340_000, False), (-1, True)):
            self.box.books.credit("to the threshold, and just below", missing_microusd)
            found = self.ok("auto-topup", "--json").json
            self.assertIs(found["charges_now"], charges_now)

    def test_disabling(self) -> None:
        self.save_card()
        self.ok(*ENABLE)
        self.ok("auto-topup", "--disable")
        self.assertEqual(self.box.writes[-1].json, {"enabled": False})
        self.assertEqual(self.box.books.auto_topup, {"enabled": False})

    def test_without_a_card_the_service_refuses(self) -> None:
        self.assertIn("saved card", self.fails(1, *ENABLE).err)

    def test_a_stored_rule_that_differs_is_no_success(self) -> None:
        self.save_card()
        ok = Fault.reply(200, {"ok": True})
        self.box.script("PATCH /v1/account/billing/auto-topup", ok)  # says yes, stores nothing
        result = self.fails(6, *ENABLE)
        self.assertIn("differs", result.err)
        self.assertIn("auto-topup", result.err.splitlines()[-1])

    def test_a_rule_that_cannot_be_read_back_is_uncertain(self) -> None:
        self.save_card()
        self.box.script("GET /v1/account/billing", Fault.reply(500, {"error": "down"}))
        self.assertIn("cannot be read back", self.fails(6, *ENABLE).err)


class Upstream(SandboxTest):
    def test_nothing_set(self) -> None:
        self.assertEqual(
            self.ok("upstream", "--json").json,
            {"configured": False, "kind": None, "base_url": None},
        )
        self.assertEqual(self.ok("upstream").out, "Upstream   not configured\n")

    def test_text(self) -> None:
        result = self.ok("upstream", "--set", "--kind", "anthropic")
        self.assertIn("Set, and read back", result.out)
        self.assertEqual(self.ok("upstream").out, "Upstream   anthropic\n")
        self.ok("upstream", "--set", "--base-url", "https://llm.example.com")
        self.assertEqual(
            self.ok("upstream").out,
            "Upstream   anthropic\nBase URL   https://llm.example.com\n",
        )

    def test_parts_are_set_one_by_one(self) -> None:
        self.ok("upstream", "--set", "--kind", "anthropic")
        self.ok("upstream", "--set", "--api-key-env", "THEIRS", THEIRS="sk-ant-12345678")
        self.ok("upstream", "--set", "--base-url", "https://llm.example.com/")
        self.assertEqual(
            self.box.books.upstream,
            {
                "kind": "anthropic",
                "apiKey": "sk-ant-12345678",
                "baseUrl": "https://llm.example.com/",
            },
        )
        self.assertEqual(
            self.ok("upstream", "--json").json,
            {"configured": True, "kind": "anthropic", "base_url": "https://llm.example.com/"},
        )

    def test_openai_is_sent_as_the_api_knows_it(self) -> None:
        result = self.ops("upstream", "--set", "--kind", "openai")
        self.assertIn("set as custom", result.err)
        body = self.box.writes[0].json
        self.assertEqual((body["kind"], body["baseUrl"]), ("custom", "https://api.openai.com"))

    def test_the_providers_key_is_never_shown(self) -> None:
        secret = "sk-or-v1-Sup3rS3cret"
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", secret, "--verbose")
        result = self.ops(*argv)
        self.assertEqual(result.exit, 0)
        self.assertNotIn(secret, result.out + result.err)

    def test_a_stored_provider_that_differs_is_no_success(self) -> None:
        self.ok("upstream", "--set", "--kind", "anthropic")
        self.box.script("POST /v1/account/upstream", Fault.reply(200, {"ok": True}))
        self.assertIn("differs", self.fails(6, "upstream", "--set", "--kind", "openrouter").err)
        self.box.script("POST /v1/account/upstream", Fault.reply(200, {"ok": True}))
        argv = ("upstream", "--set", "--base-url", "https://llm.example.com")
        self.assertIn("differs", self.fails(6, *argv).err)
        self.ok("upstream", "--set", "--base-url", "https://zzz.example.com")
        self.box.script("POST /v1/account/upstream", Fault.reply(200, {"ok": True}))
        self.assertIn("differs", self.fails(6, *argv).err)


class Keys(SandboxTest):
    def add_key(self) -> str:
        self.ok("keys", "--create")
        return self.box.books.keys[-1].id

    def test_text(self) -> None:
        lines = self.ok("keys").out.splitlines()
        self.assertEqual(lines[0].split(), ["ID", "Prefix", "Created", "State", "Label"])
        self.assertRegex(lines[1], "2026-01-02 03:04  active, in use here  sandbox$")

    def test_json(self) -> None:
        (key,) = self.ok("keys", "--json").json["keys"]
        self.assertRegex(key.pop("last_used_at"), r"^\d{4}-")
        self.assertEqual(
            key,
            {
                "id": "key_1",
                "prefix": DEFAULT_KEY[:12],
                "label": "sandbox",
                "created_at": "2026-01-02T03:04:05Z",
                "revoked_at": None,
                "in_use": True,
            },
        )

    def test_a_key_is_known_by_its_prefix_masked_or_not_if_that_is_long_enough(self) -> None:
        for prefix, known in (
            (DEFAULT_KEY[:12], True),
            (DEFAULT_KEY[:5] + "...", True),
            (DEFAULT_KEY[:8] + "\u2026", True),
            (DEFAULT_KEY[:6] + "****", True),
            (DEFAULT_KEY, True),
            ("cf_other", False),
            (DEFAULT_KEY + "x", False),
            ("cf_", None),
            ("cfk_", None),
            ("cf_...", None),
            ("...", None),
            ("", None),
            (None, None),
        ):
            self.assertIs(ops.is_prefix_of(prefix, DEFAULT_KEY), known, prefix)

    def test_a_new_key_comes_first_and_alone_on_its_line(self) -> None:
        result = self.ok("keys", "--create")
        made = self.box.books.keys[-1]
        self.assertEqual(result.out.splitlines()[0], made.secret)
        self.assertIn(made.id, result.out)
        self.assertEqual(result.out.count(made.secret), 1)

    def test_a_new_key_in_json(self) -> None:
        found = self.ok("keys", "--create", "--json").json
        made = self.box.books.keys[-1]
        self.assertEqual(found, {"id": made.id, "prefix": made.prefix, "api_key": made.secret})

    def test_words_for_a_key_are_not_repeated(self) -> None:
        self.assertEqual(ops.key_words("b", "c", "a", "b", "", None), "b (c, a)")
        self.assertEqual(ops.key_words("bb", "".join("bb"), None), "bb")

    def test_a_new_key_is_named_by_what_the_service_tells_of_it(self) -> None:
        for told, text, saved in (
            ({"id": "key_9", "prefix": "cf_n"}, "New key key_9 (cf_n):", "key_9 (cf_n)"),
            ({"id": "key_9"}, "New key key_9:", "key_9"),
            ({"prefix": "cf_n"}, "New key cf_n:", "cf_n"),
            ({}, "New key:", "New key"),
        ):
            reply = Fault.reply(200, {"apiKey": "cf_new_0123456789", **told})
            self.box.script("POST /v1/account/keys", reply, reply)
            self.assertIn(text, self.ok("keys", "--create").out)
            with tempfile.TemporaryDirectory() as folder:
                argv = ("keys", "--create", "--save", os.path.join(folder, "new.key"))
                self.assertIn(f"New key    {saved}\n", self.ok(*argv).out)

    def test_revoking_says_which_key_died(self) -> None:
        key_id = self.add_key()
        found = self.ok("keys", "--revoke", key_id, "--yes", "--json").json
        made = self.box.books.keys[-1]
        self.assertEqual(found, {"revoked": {"id": key_id, "prefix": made.prefix, "label": None}})
        self.assertEqual(self.box.calls("POST")[-1], f"POST /v1/account/keys/{key_id}/revoke")
        state = f"  revoked {(made.revoked_at or '')[:10]}\n"
        self.assertIn(state, self.ok("keys").out)

    def test_a_revoked_key_is_refused_from_then_on(self) -> None:
        self.add_key()
        made = self.box.books.keys[-1]
        self.ok("balance", CACHEFORGE_API_KEY=made.secret)
        self.ok("keys", "--revoke", made.id, "--yes")
        self.fails(3, "balance", CACHEFORGE_API_KEY=made.secret)

    def test_an_empty_answer_to_a_revoke_is_an_answer(self) -> None:
        call = f"POST /v1/account/keys/{self.add_key()}/revoke"
        for reply in (Fault.reply(200, b""), Fault(b"HTTP/1.1 204 No Content\r\n\r\n")):
            self.box.script(call, reply)
            self.ok("keys", "--revoke", "key_2", "--yes")

    def test_an_unknown_key_exits_2_and_sends_no_write(self) -> None:
        for name in ("key_9", "key_0", "key", "KEY_1"):
            argv = ("keys", "--revoke", name, "--yes", "--force")
            self.assertIn("no key has that id", self.fails(2, *argv).err)
        self.assertEqual(self.box.writes, [])

    def test_without_yes_and_nobody_to_ask_it_exits_2_and_sends_no_write(self) -> None:
        self.add_key()
        del self.box.requests[:]
        self.assertIn("--yes", self.fails(2, "keys", "--revoke", "key_2").err)
        self.assertEqual(self.box.writes, [])

    def test_the_key_in_use_is_refused_unless_forced(self) -> None:
        result = self.fails(2, "keys", "--revoke", "key_1", "--yes")
        self.assertIn("--force", result.err)
        self.assertEqual(self.box.writes, [])
        self.ok("keys", "--revoke", "key_1", "--yes", "--force")
        self.assertEqual(len(self.box.writes), 1)

    def test_revoking_twice_sends_one_write(self) -> None:
        key_id = self.add_key()
        self.assertIn("Revoked: key_2", self.ok("keys", "--revoke", key_id, "--yes").out)
        self.assertIn("Already revoked", self.ok("keys", "--revoke", key_id, "--yes").out)
        self.assertEqual(len(self.box.calls("POST")), 2)  # one creation, one revocation


class Info(SandboxTest):
    def test_text(self) -> None:
        result = self.ok("info")
        for part in ("tn_sandbox (Sandbox Inc.)", "active", self.box.url, "cf_...cdef"):
            self.assertIn(part, result.out)
        self.assertIn("Active keys   1\n", result.out)
        self.assertIn("Upstream      not configured\n", result.out)
        reply = Fault.reply(200, {"tenant": {"id": "tn_1", "status": "active"}})
        self.box.script("GET /v1/account/info", reply)
        result = self.ok("info")
        self.assertIn("Active keys   unknown\n", result.out)
        self.assertIn("Upstream      unknown\n", result.out)

    def test_json(self) -> None:
        self.assertEqual(
            self.ok("info", "--json").json,
            {
                "tenant": {
                    "id": "tn_sandbox",
                    "name": "Sandbox Inc.",
                    "status": "active",
                    "upstream_configured": False,
                    "active_keys": 1,
                },
                "base_url": self.box.url,
                "api_key": "cf_...cdef",
            },
        )


class Errors(SandboxTest):
    def test_a_key_that_is_a_common_word_leaves_our_own_words_readable(self) -> None:
        result = self.fails(3, "balance", CACHEFORGE_API_KEY="key")
        self.assertIn("refused the API key", result.err)

    def test_a_wrong_key_exits_3(self) -> None:
        result = self.fails(3, "balance", CACHEFORGE_API_KEY="cf_wrong_0123456789")
        self.assertIn("Check CACHEFORGE_API_KEY", result.err)
        self.assertNotIn("cf_wrong_0123456789", result.err)

    def test_402_exits_4_with_the_next_step(self) -> None:
        body = {"error": {"message": "no credit", "code": "x"}}
        self.box.script("GET /v1/account/info", Fault.reply(402, body))
        result = self.fails(4, "info")
        self.assertIn(f"Next: python3 {OPS} topup", result.err)
        self.assertIn("credit is used up (HTTP 402: no credit)", result.err)
        self.box.script("GET /v1/account/info", Fault.reply(402, b""))
        self.assertIn("credit is used up (HTTP 402)", self.fails(4, "info").err)

    def test_the_error_object(self) -> None:
        headers = {"X-Request-Id": "req_7", "Retry-After": "7200"}
        self.box.script("GET /v1/account/billing", Fault.reply(503, {"error": "down"}, headers))
        error = self.fails(5, "balance", "--json").error
        self.assertIn("down", error.pop("message"))
        self.assertTrue(error.pop("hint"))
        self.assertEqual(
            error,
            {
                "code": "unreachable",
                "exit": 5,
                "http_status": 503,
                "request_id": "req_7",
                "retryable": True,
                "retry_after_seconds": 7200,
            },
        )

    def test_verbose_tells_each_exchange_on_stderr(self) -> None:
        result = self.ops("balance", "--verbose")
        self.assertRegex(result.err, r"^GET /v1/account/billing: 200, \d+ ms, id req_\w+\n$")
        self.assertNotIn(DEFAULT_KEY, result.err)

    def test_verbose_counts_in_milliseconds(self) -> None:
        reply = Fault.reply(200, {"tenant": {"id": "tn_1", "status": "active"}})
        reply.drip_s = 0.001  # for each of some 150 bytes
        self.box.script("GET /v1/account/info", reply)
        result = self.ops("info", "--verbose")
        took_ms = int(result.err.split(", ")[1].split()[0])
        self.assertTrue(100 <= took_ms < 30_000, result.err)


if __name__ == "__main__":
    unittest.main()
