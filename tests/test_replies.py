"""Replies: what is told of an answer, and of a refusal whatever form it has."""

from __future__ import annotations

from contract import ContractTest, next_commands, objects, rows
from support import Fault

BILLING = "GET /v1/account/billing"
TOPUP = "POST /v1/account/billing/topup"
INFO = "GET /v1/account/info"
KEYS = "GET /v1/account/keys"
CREATE = "POST /v1/account/keys"
UPSTREAM = "GET /v1/account/upstream"
REASON = "the card was declined"


class Reasons(ContractTest):
    def test_the_services_reason_is_told_in_whatever_form_it_comes(self) -> None:
        for body in (
            {"error": REASON},
            {"error": {"message": REASON, "code": "x"}},
            {"message": REASON},
            {"detail": REASON},
            {"title": REASON},
            {"type": "about:blank", "title": "No", "detail": REASON},
            {"errors": [REASON]},
            {"errors": [{"message": REASON}]},
            {"detail": [{"message": REASON}]},
            {"error": None, "message": REASON},
            REASON.encode(),
            f"{REASON}\n".encode(),
        ):
            headers = {"Content-Type": "text/plain"} if isinstance(body, bytes) else {}
            for call, argv in (
                (INFO, ("info",)),
                (TOPUP, ("topup",)),
                (CREATE, ("keys", "--create")),
            ):
                with self.subTest(body=body, argv=argv):
                    self.box.script(call, *[Fault.reply(400, body, headers)] * 2)
                    self.assertIn(REASON, self.fails(1, *argv).err)
                    self.assertIn(REASON, self.fails(1, *argv, "--json").error["message"])

    def test_a_page_is_not_told_as_a_reason_and_a_long_one_is_shortened(self) -> None:
        page = f"<!doctype html><title>{REASON}</title>".encode()
        for headers in ({"Content-Type": "text/html"}, {}):
            self.box.script(INFO, Fault.reply(400, page, headers))
            self.assertNotIn(REASON, self.fails(1, "info").err)
        self.box.script(INFO, Fault.reply(400, {"error": "x" * 100_000}))
        self.assertLess(len(self.fails(1, "info").err), 2000)


class Statuses(ContractTest):
    def test_the_error_object_has_all_its_parts(self) -> None:
        headers = {"X-Request-Id": "req_7", "Retry-After": "7200"}
        self.box.script(BILLING, Fault.reply(503, {"error": "down"}, headers))
        error = self.fails(5, "balance", "--json").error
        self.has(error, code="unreachable", exit=5, http_status=503, request_id="req_7")
        self.has(error, retryable=True, retry_after_seconds=7200)
        self.assertIn("down", error["message"])
        self.assertLessEqual({"hint", "next"}, set(error))

    def test_each_exit_code_has_its_name_and_only_5_is_worth_a_repeat(self) -> None:
        for status, code, exit_code in (
            (400, "failed", 1),
            (401, "unauthorized", 3),
            (403, "unauthorized", 3),
            (402, "payment_required", 4),
            (429, "unreachable", 5),
            (500, "unreachable", 5),
        ):
            for call, argv in ((INFO, "info"), (TOPUP, "topup")):
                self.box.script(call, *[Fault.reply(status, {"error": "no"})] * 3)
                error = self.fails(exit_code, argv, "--json").error
                self.has(error, code=code, exit=exit_code, retryable=exit_code == 5)
                self.assertEqual(error["http_status"], status)
                self.box.script_nothing()
        self.box.script(CREATE, Fault(after=True))
        error = self.fails(6, "keys", "--create", "--json").error
        self.has(error, code="uncertain", exit=6, retryable=False, http_status=None)

    def test_the_request_id_stands_in_text_and_json_wherever_the_service_puts_it(self) -> None:
        for name in ("X-Request-Id", "x-request-id", "CF-Ray"):
            fault = Fault.reply(400, {"error": "no"}, {name: "req_0815"})
            self.box.script(INFO, fault, fault)
            self.assertIn("req_0815", self.fails(1, "info").err)
            self.assertEqual(self.fails(1, "info", "--json").error["request_id"], "req_0815")

    def test_402_leads_to_a_link(self) -> None:
        for body in ({"error": {"message": REASON, "code": "x"}}, b""):
            for extra in ((), ("--json",)):
                self.box.script(INFO, Fault.reply(402, body))
                self.assertEqual(self.follow(self.fails(4, "info", *extra)).exit, 0)
        self.assertEqual(len(self.box.books.links), 4)

    def test_a_refused_key_is_named_by_its_variable_and_not_shown(self) -> None:
        result = self.fails(3, "balance", CACHEFORGE_API_KEY="cf_wrong_0123456789")
        self.assertIn("CACHEFORGE_API_KEY", result.err)
        self.assertNotIn("cf_wrong_0123456789", result.err)

    def test_how_long_to_wait_is_told_in_seconds(self) -> None:
        self.box.script(BILLING, Fault.reply(429, {}, {"Retry-After": "120"}))
        self.assertIn("120", self.fails(5, "balance").err)


class Unknown(ContractTest):
    def test_what_only_decorates_is_null_in_json_and_unknown_in_text(self) -> None:
        self.service_says(BILLING, {"billing": {"creditBalanceMicrousd": 12_340_000}})
        self.service_says(INFO, {"tenant": {"status": 7}})
        self.service_says(KEYS, {"keys": [{"id": "key_2", "label": 42}, {"id": None}]})
        found = self.ok("balance", "--json").json
        self.has(found, balance_usd="12.34", card_saved=None)
        self.assertEqual(set(found["auto_topup"].values()), {None})
        shown = rows(self.ok("balance").out)
        self.assertLessEqual({shown["Auto top-up"], shown["Saved card"]}, {"unknown", "-"})
        rule = self.ok("auto-topup", "--json").json
        self.assertIsNone(rule["card_saved"])
        self.assertIsNot(rule["charges_now"], True)
        found = self.ok("info", "--json").json["tenant"]
        self.assertEqual(set(found.values()), {None})
        self.assertLessEqual(
            {"id", "name", "status", "upstream_configured", "active_keys"}, set(found)
        )
        self.assertRegex(self.ok("info").out, r"(?m)\s(unknown|-)$")
        first, second = self.ok("keys", "--json").json["keys"]
        self.has(first, id="key_2", label=None, prefix=None, created_at=None, in_use=None)
        self.assertIsNone(second["id"])
        self.assertIn("key_2", self.ok("keys").out)


class NextLines(ContractTest):
    def test_no_next_line_has_a_comment_or_is_refused_when_it_is_run(self) -> None:
        for fault, line in (
            (Fault(after=True), "keys --create"),
            (Fault(), "topup"),
            (Fault.reply(402, {}), "info"),
            (Fault.reply(401, {}), "balance"),
            (Fault.reply(503, {}), "auto-topup"),
            (None, "balance --min 13 --wait"),
            (None, "topup --amount 500 --wait"),
            (None, "keys --revoke key_2"),
            (None, "keys --revoke key_9 --yes"),
            (None, "auto-topup --enable"),
            (None, "topup --amount 9"),
        ):
            for extra in ((), ("--json",)):
                with self.subTest(line=line, extra=extra):
                    if fault:
                        for call in (BILLING, TOPUP, INFO, CREATE):
                            self.box.script(call, *[fault] * 3)
                    result = self.ops(*line.split(), *extra)
                    self.box.script_nothing()
                    if extra:
                        objects(result.err)
                    for words in next_commands(result):
                        self.assertFalse([word for word in words if "#" in word], words)
                        self.assertNotEqual(self.ops(*words).exit, 2, words)
