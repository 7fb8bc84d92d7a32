"""What can go wrong with an answer, tried on every command.

Each command meets each fault over a real socket, with `--verbose` on. Whatever the
fault: the exit code is the one that CLI users branch on, standard output is empty
unless the command succeeded, there is no traceback, neither secret is shown, and a
write reaches the service exactly once.
"""

from __future__ import annotations

import gzip
import json
import unittest
from collections.abc import Callable
from typing import Any

from support import DEFAULT_KEY, Fault, Result, SandboxTest

THEIRS = "sk-or-v1-Sup3rS3cret"
BILLING = "GET /v1/account/billing"

READS: dict[str, tuple[tuple[str, ...], str]] = {
    "balance": (("balance",), BILLING),
    "auto_topup": (("auto-topup",), BILLING),
    "upstream": (("upstream",), "GET /v1/account/upstream"),
    "keys": (("keys",), "GET /v1/account/keys"),
    "info": (("info",), "GET /v1/account/info"),
}
WRITES: dict[str, tuple[tuple[str, ...], str]] = {
    "topup": (("topup",), "POST /v1/account/billing/topup"),
    "auto_topup_enable": (("auto-topup", "--enable"), "PATCH /v1/account/billing/auto-topup"),
    "upstream_set": (
        ("upstream", "--set", "--kind", "openrouter", "--api-key-env", "THEIRS"),
        "POST /v1/account/upstream",
    ),
    "keys_create": (("keys", "--create"), "POST /v1/account/keys"),
    "keys_revoke": (("keys", "--revoke", "key_2", "--yes"), "POST /v1/account/keys/key_2/revoke"),
}
COMMANDS = {**READS, **WRITES}

GOOD = json.dumps(
    {
        "billing": {
            "creditBalanceMicrousd": 5,
            "autoTopupEnabled": False,
            "defaultPaymentMethodSet": False,
        }
    }
).encode()


def http(head: str, body: bytes = b"") -> Fault:
    """An answer given to the byte: status line and headers, then a body."""
    return Fault(head.replace("\n", "\r\n").encode("latin-1") + body)


def ok(body: bytes, kind: str = "application/json") -> Fault:
    """A well-formed 200 with these bytes."""
    return Fault.reply(200, body, {"Content-Type": kind})


LONG = 33 * 1024 * 1024

# name: fault, exit of a read, exit of a write
FAULTS: dict[str, tuple[Callable[[], Fault], int, int]] = {
    "html": (lambda: ok(b"<html>hello</html>", "text/html"), 1, 6),
    "html_502": (lambda: Fault.reply(502, b"<html>bad gateway</html>"), 5, 6),
    "plain_text": (lambda: ok(b"OK", "text/plain"), 1, 6),
    "body_cut_short": (lambda: http("HTTP/1.1 200 OK\nContent-Length: 900\n\n", GOOD), 5, 6),
    "body_cut_to_valid_json": (lambda: http("HTTP/1.1 200 OK\nContent-Length: 9\n\n", b"{}"), 5, 6),
    "body_cut_to_nothing": (lambda: http("HTTP/1.1 200 OK\nContent-Length: 9\n\n"), 5, 6),
    "length_of_a_hundred_terabytes": (
        lambda: http("HTTP/1.1 200 OK\nContent-Length: 100000000000000\n\n", GOOD),
        5,
        6,
    ),
    "chunks_cut_short": (
        lambda: http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"40\r\n{"),
        5,
        6,
    ),
    "chunks_without_an_end": (
        lambda: http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"2\r\n{}\r\n"),
        5,
        6,
    ),
    "chunk_size_of_garbage": (
        lambda: http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"zz\r\n{}\r\n0\r\n\r\n"),
        5,
        6,
    ),
    "chunk_size_of_a_hundred_terabytes": (
        lambda: http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", b"5af3107a4000\r\n{}"),
        5,
        6,
    ),
    "end_within_the_status_line": (lambda: Fault(b"HTTP/1.1 200"), 5, 6),
    "end_after_the_status_line": (lambda: Fault(b"HTTP/1.1 200 OK\r\n"), 5, 6),
    "end_within_a_header": (lambda: Fault(b"HTTP/1.1 200 OK\r\nContent-Le"), 5, 6),
    "end_within_the_headers": (lambda: Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n"), 5, 6),
    "end_within_the_headers_of_204": (lambda: Fault(b"HTTP/1.1 204 No Content\r\n"), 5, 6),
    "no_body_and_no_length": (lambda: http("HTTP/1.1 200 OK\nConnection: close\n\n"), 5, 6),
    "no_answer": (Fault, 5, 6),
    "reset": (lambda: Fault(end="reset"), 5, 6),
    "reset_within_the_body": (
        lambda: Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", end="reset"),
        5,
        6,
    ),
    "gzip": (lambda: Fault.reply(200, gzip.compress(GOOD), {"Content-Encoding": "gzip"}), 1, 6),
    "invalid_utf8": (lambda: ok(b'{"billing": "\xff\xfe"}'), 1, 6),
    "utf16": (lambda: ok(GOOD.decode().encode("utf-16")), 1, 6),
    "nan": (lambda: ok(b'{"billing": {"creditBalanceMicrousd": NaN}}'), 1, 6),
    "infinity": (lambda: ok(b'{"a": -Infinity}'), 1, 6),
    "a_name_twice": (lambda: ok(b'{"apiKey": "cf_a", "apiKey": "cf_b"}'), 1, 6),
    "a_name_twice_within": (lambda: ok(b'{"billing": {"x": 1, "x": 2}}'), 1, 6),
    "nesting": (lambda: ok(b"[" * 100_000 + b"]" * 100_000), 1, 6),
    "nesting_of_objects": (lambda: ok(b'{"a":' * 100_000), 1, 6),
    "integer_of_5000_digits": (lambda: ok(b'{"a": ' + b"9" * 5000 + b"}"), 1, 6),
    "two_documents": (lambda: ok(b"{}{}"), 1, 6),
    "trailing_comma": (lambda: ok(b'{"a": 1,}'), 1, 6),
    "single_quotes": (lambda: ok(b"{'a': 1}"), 1, 6),
    "control_character_in_a_string": (lambda: ok(b'{"a": "\x01"}'), 1, 6),
    "white_space": (lambda: ok(b"  \n "), 1, 6),
    "huge_body": (lambda: ok(b'{"a": "' + b"x" * LONG + b'"}'), 1, 6),
    "root_null": (lambda: ok(b"null"), 1, 6),
    "root_list": (lambda: ok(b"[]"), 1, 6),
    "root_string": (lambda: ok(b'"ok"'), 1, 6),
    "root_number": (lambda: ok(b"12340000"), 1, 6),
    "root_true": (lambda: ok(b"true"), 1, 6),
    "status_line_of_garbage": (lambda: Fault(b"\x1b[31mhello\r\n\r\n"), 1, 6),
    "smtp": (lambda: Fault(b"220 mail.example.com ESMTP\r\n"), 1, 6),
    "tls_alert": (lambda: Fault(b"\x15\x03\x01\x00\x02\x02\x46\n\n"), 1, 6),
    "status_of_words": (lambda: http("HTTP/1.1 OK 200\n\n"), 1, 6),
    "status_line_without_end": (lambda: Fault(b"HTTP/1.1 200 " + b"x" * 70_000), 1, 6),
    "a_header_without_end": (lambda: Fault(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), 1, 6),
    "a_thousand_headers": (
        lambda: http("HTTP/1.1 200 OK\n" + "X-A: b\n" * 1000 + "Content-Length: 2\n\n", b"{}"),
        1,
        6,
    ),
    "status_103": (lambda: http("HTTP/1.1 103 Early Hints\nLink: </a>\n\n"), 1, 6),
    "status_101": (lambda: http("HTTP/1.1 101 Switching Protocols\n\n"), 1, 6),
    "status_600": (lambda: Fault.reply(600, {}), 5, 6),
    "status_999": (lambda: Fault.reply(999, {}), 5, 6),
    "status_400": (lambda: Fault.reply(400, {"error": "no"}), 1, 1),
    "status_401": (lambda: Fault.reply(401, {"error": {"message": "no", "code": "x"}}), 3, 3),
    "status_402": (lambda: Fault.reply(402, {"message": "no"}), 4, 4),
    "status_403": (lambda: Fault.reply(403, {"title": "no", "detail": "why"}), 3, 3),
    "status_404": (lambda: Fault.reply(404, b"<html>no</html>"), 1, 1),
    "status_405": (lambda: Fault.reply(405, b""), 1, 1),
    "status_408": (lambda: Fault.reply(408, None), 1, 1),
    "status_409": (lambda: Fault.reply(409, []), 1, 1),
    "status_422": (lambda: Fault.reply(422, {"error": {"message": {"a": 1}}}), 1, 1),
    "status_429": (lambda: Fault.reply(429, {"error": "slow"}), 5, 5),
    "status_499_of_3_MB": (lambda: Fault.reply(499, {"error": "x" * 3_000_000}), 1, 1),
    "status_500": (lambda: Fault.reply(500, {"error": "no"}), 5, 6),
    "status_501": (lambda: Fault.reply(501, {"error": None}), 5, 6),
    "status_503": (lambda: Fault.reply(503, b"x" * 3_000_000), 5, 6),
    "status_504": (lambda: Fault.reply(504, b"[" * 100_000), 5, 6),
    "status_401_cut_short": (lambda: http("HTTP/1.1 401 No\nContent-Length: 9\n\n"), 5, 6),
    "redirect_to_itself": (lambda: moved(301, "/v1/account/billing"), 1, 1),
    "redirect_to_a_file": (lambda: moved(302, "file:///etc/passwd"), 1, 1),
    "redirect_to_nonsense": (lambda: moved(303, "http://[::1"), 1, 1),
    "redirect_to_a_latin_host": (lambda: moved(307, "http://h\xe4st/"), 1, 1),
    "redirect_to_another_port": (lambda: moved(308, "https://127.0.0.1:1/"), 1, 1),
    "redirect_without_a_place": (lambda: http("HTTP/1.1 302 Found\nContent-Length: 0\n\n"), 1, 1),
    "status_300": (lambda: moved(300, "/v1/account/billing"), 1, 1),
    "status_304": (lambda: http("HTTP/1.1 304 Not Modified\n\n"), 1, 1),
}


def moved(status: int, place: str) -> Fault:
    """A redirect."""
    return http(f"HTTP/1.1 {status} Moved\nLocation: {place}\nContent-Length: 0\n\n")


class FaultTest(SandboxTest):
    """A sandbox where every command would succeed, but for the fault under test."""

    def setUp(self) -> None:
        super().setUp()
        self.save_card()
        self.box.service.create_key({})

    def meet(self, name: str, *faults: Fault, extra: tuple[str, ...] = ()) -> Result:
        """Run a command against scripted faults; check what must hold whatever they are."""
        argv, call = COMMANDS[name]
        self.box.script(call, *faults)
        result = self.ops(*argv, "--verbose", *extra, THEIRS=THEIRS)
        everything = result.out + result.err
        self.assertNotIn("Traceback", everything)
        self.assertNotIn("mistake in this program", everything)
        for secret in (DEFAULT_KEY, THEIRS):
            self.assertNotIn(secret, everything)
        if name in WRITES:
            self.assertEqual([seen.call for seen in self.box.writes], [call])
        else:
            self.assertEqual(self.box.writes, [])
        if result.exit not in (0, 4):
            self.assertEqual(result.out, "")
        for line in result.err.splitlines():
            self.assertLess(len(line), 800)
            self.assertTrue(line.isascii() and line.isprintable(), ascii(line))
        return result

    def fault(self, name: str, fault: Fault, exit_code: int) -> Result:
        """Meet a fault that does not go away, and end with this exit code."""
        result = self.meet(name, *[fault] * 3)
        self.assertEqual(result.exit, exit_code, result)
        if exit_code == 6:
            self.assertIn("ops.py", result.err.splitlines()[-1])
        return result


class EveryFault(FaultTest):
    """Filled below: a test for each fault and command."""


def add_test(fault: str, name: str) -> None:
    make, read_exit, write_exit = FAULTS[fault]
    exit_code = write_exit if name in WRITES else read_exit

    def test(self: EveryFault) -> None:
        self.fault(name, make(), exit_code)

    test.__name__ = f"test_{name}_answered_by_{fault}_exits_{exit_code}"
    setattr(EveryFault, test.__name__, test)


for _fault in FAULTS:
    for _name in COMMANDS:
        add_test(_fault, _name)


class Empty(FaultTest):
    """An empty answer is no evidence, but for a revocation, which promises no content."""

    def test_empty_answers(self) -> None:
        for head in ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", "HTTP/1.1 204 No Content\n\n"):
            for name in COMMANDS:
                exit_code = 0 if name == "keys_revoke" else 6 if name in WRITES else 1
                with self.subTest(head=head, name=name):
                    del self.box.requests[:]
                    self.fault(name, http(head), exit_code)
                    self.box.script_nothing()
                    self.box.books.keys[1].revoked_at = None


class StillFine(FaultTest):
    """What looks odd and is allowed."""

    def test_odd_but_valid_answers_are_believed(self) -> None:
        for fault in (
            ok(b"\xef\xbb\xbf" + GOOD),
            ok(GOOD, "text/plain"),
            http("HTTP/1.0 200\n\n", GOOD),
            Fault.reply(299, GOOD),
            http("HTTP/1.1 200 OK\nConnection: close\n\n", GOOD),
            http("HTTP/1.1 201 Created\nContent-Length: 200000\n\n", GOOD.ljust(200_000)),
            http(
                "HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n",
                b"%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(GOOD), GOOD),
            ),
            http(
                f"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: {len(GOOD)}\n\n", GOOD
            ),
        ):
            del self.box.requests[:]
            with self.subTest(fault=fault.raw[:60]):
                self.assertEqual(self.meet("balance", fault).exit, 0)
                self.assertEqual(self.box.calls(), [BILLING])  # at the first try


class Retries(FaultTest):
    """Reads are tried three times where that can help; writes never."""

    def looks(self) -> int:
        return self.box.calls().count(BILLING)

    def test_a_read_survives_two_failures(self) -> None:
        for status in (429, 502, 503, 504):
            with self.subTest(status=status):
                self.assertEqual(self.meet("balance", *[Fault.reply(status, {})] * 2).exit, 0)
        for fault in (Fault(), Fault(end="reset"), Fault(b"HTTP/1.1 200 OK\r\n")):
            with self.subTest(fault=fault):
                self.assertEqual(self.meet("balance", fault, fault).exit, 0)

    def test_a_read_is_given_up_after_three(self) -> None:
        self.fault("balance", Fault.reply(503, {}), 5)
        self.assertEqual(self.looks(), 3)

    def test_other_failures_are_not_repeated(self) -> None:
        for count, status in enumerate((400, 401, 402, 403, 404, 500, 501), 1):
            self.meet("balance", Fault.reply(status, {}))
            self.assertEqual(self.looks(), count)

    def test_retry_after_is_honoured_within_the_deadline_only(self) -> None:
        for value, tries in (("2", 2), ("29", 2), ("30", 1), ("31536000", 1), ("99999999999", 2)):
            with self.subTest(value=value):
                before = self.looks()
                self.meet("balance", Fault.reply(503, {}, {"Retry-After": value}))
                self.assertEqual(self.looks() - before, tries)
                self.box.script_nothing()

    def test_retry_after_as_a_date(self) -> None:
        for value, asked in (
            ("Wed, 21 Oct 2015 07:28:00 GMT", None),
            ("Fri, 31 Dec 9999 23:59:59 GMT", int),
            ("Fri, 31 Dec 99999 23:59:59 GMT", None),
            ("soon", None),
            ("-5", None),
            ("1e9", None),
            ("", None),
            ("１", None),  # noqa: RUF001
        ):
            with self.subTest(value=value):
                headers = {"Retry-After": value}
                self.box.script_nothing()
                self.box.script(BILLING, *[Fault.reply(503, {}, headers)] * 3)
                error = self.ops("balance", "--json").error
                if asked is int:
                    self.assertGreater(error["retry_after_seconds"], 10**9)
                else:
                    self.assertIsNone(error["retry_after_seconds"])


class WriteThenLost(FaultTest):
    """The service did it, and then its answer was lost: once, and called uncertain."""

    def test_every_write(self) -> None:
        for name, (_, call) in WRITES.items():
            for fault in (
                Fault(after=True),
                Fault(end="reset", after=True),
                Fault.reply(502, b"<html>", after=True),
                Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", after=True),
            ):
                with self.subTest(name=name, fault=fault):
                    del self.box.requests[:]
                    self.fault(name, fault, 6)
                    self.assertEqual(self.box.calls().count(call), 1)
                    self.box.script_nothing()
                    self.box.books.keys[1].revoked_at = None

    def test_the_hint_says_what_shows_it_and_what_a_repeat_risks(self) -> None:
        for name, parts in {
            "topup": ("balance", "costs nothing"),
            "auto_topup_enable": ("auto-topup", "safe"),
            "upstream_set": ("upstream", "safe"),
            "keys_create": ("keys", "revoked before another is made"),
            "keys_revoke": ("keys", "safe"),
        }.items():
            del self.box.requests[:]
            hint = self.meet(name, Fault(), extra=("--json",)).error["hint"]
            for part in parts:
                self.assertIn(part, hint)


def billing_reply() -> dict[str, Any]:
    return {
        "billing": {
            "creditBalanceMicrousd": 12_340_000,
            "autoTopupEnabled": True,
            "autoTopupThresholdCents": 200,
            "autoTopupAmountCents": 1000,
            "defaultPaymentMethodSet": True,
        }
    }


def upstream_reply() -> dict[str, Any]:
    return {"configured": True, "upstream": {"kind": "custom", "baseUrl": "https://x.example"}}


def keys_reply() -> dict[str, Any]:
    return {
        "keys": [
            {
                "id": "key_1",
                "prefix": "cf_other",
                "label": "ci",
                "createdAt": "2026-01-02T00:00:00Z",
                "lastUsedAt": "2026-01-02T00:00:00Z",
                "revokedAt": "2026-01-02T00:00:00Z",
            }
        ]
    }


def info_reply() -> dict[str, Any]:
    return {
        "tenant": {
            "id": "tn_1",
            "name": "Acme",
            "status": "active",
            "upstreamConfigured": True,
            "activeKeys": 3,
        }
    }


# where a field is, whether it may be absent, and the type that is right for it
FIELDS: dict[str, tuple[Callable[[], dict[str, Any]], dict[str, tuple[bool, type]]]] = {
    "balance": (
        billing_reply,
        {
            "billing": (False, dict),
            "billing.creditBalanceMicrousd": (False, int),
            "billing.autoTopupEnabled": (False, bool),
            "billing.autoTopupThresholdCents": (False, int),
            "billing.autoTopupAmountCents": (False, int),
            "billing.defaultPaymentMethodSet": (False, bool),
        },
    ),
    "upstream": (
        upstream_reply,
        {
            "configured": (False, bool),
            "upstream": (False, dict),
            "upstream.kind": (False, str),
            "upstream.baseUrl": (True, str),
        },
    ),
    "keys": (
        keys_reply,
        {
            "keys": (False, list),
            "keys.0": (False, dict),
            "keys.0.id": (False, str),
            "keys.0.prefix": (True, str),
            "keys.0.label": (True, str),
            "keys.0.createdAt": (True, str),
            "keys.0.lastUsedAt": (True, str),
            "keys.0.revokedAt": (True, str),
        },
    ),
    "info": (
        info_reply,
        {
            "tenant": (False, dict),
            "tenant.id": (False, str),
            "tenant.name": (True, str),
            "tenant.status": (False, str),
            "tenant.upstreamConfigured": (True, bool),
            "tenant.activeKeys": (True, int),
        },
    ),
}
ABSENT = object()
ATOMS: tuple[Any, ...] = (ABSENT, None, True, 0, -1, 1.5, "", "  ", "text")
VALUES = (*ATOMS, [], ["x"], {}, {"a": 1})


class Fields(FaultTest):
    """Every field of every reply, replaced by everything that it is not."""

    def put(self, reply: Any, path: str, value: Any) -> None:
        *way, last = path.split(".")
        for step in way:
            reply = reply[int(step) if isinstance(reply, list) else step]
        if isinstance(reply, list):
            reply[int(last)] = None if value is ABSENT else value
        elif value is ABSENT:
            del reply[last]
        else:
            reply[last] = value

    def expected(self, optional: bool, kind: type, value: Any) -> int:
        if value is ABSENT or value is None:
            return 0 if optional else 1
        if type(value) is not kind:
            return 1
        if isinstance(value, str) and value.strip() == "":
            return 0 if optional else 1
        if kind in (dict, list):  # of the right type, but not holding what it must
            return 0 if value == [] else 1
        return 0

    def test_every_field_with_every_wrong_value(self) -> None:
        for name, (make, fields) in FIELDS.items():
            for path, (optional, kind) in fields.items():
                for value in VALUES:
                    with self.subTest(name=name, path=path, value=value):
                        reply = make()
                        self.put(reply, path, value)
                        result = self.meet(name, Fault.reply(200, reply), extra=("--json",))
                        self.assertEqual(result.exit, self.expected(optional, kind, value), result)

    def test_thresholds_may_be_absent_while_the_rule_is_off(self) -> None:
        reply = billing_reply()
        reply["billing"]["autoTopupEnabled"] = False
        for name in ("autoTopupThresholdCents", "autoTopupAmountCents"):
            del reply["billing"][name]
        found = self.meet("balance", Fault.reply(200, reply), extra=("--json",)).json
        rule = {"enabled": False, "threshold_cents": None, "amount_cents": None}
        self.assertEqual(found["auto_topup"], rule)

    def test_a_missing_balance_is_never_zero(self) -> None:
        values: tuple[Any, ...] = (None, "12340000", True, 12.34, [], {}, 2**63, -(2**63), 10**4000)
        for value in values:
            reply = billing_reply()
            reply["billing"]["creditBalanceMicrousd"] = value
            result = self.meet("balance", Fault.reply(200, reply))
            self.assertEqual((result.exit, result.out), (1, ""))
            self.assertIn("creditBalanceMicrousd", result.err)

    def test_balances_at_the_edges_are_shown_exactly(self) -> None:
        for value in (2**63 - 1, -(2**63) + 1, 0, -1):
            reply = billing_reply()
            reply["billing"]["creditBalanceMicrousd"] = value
            found = self.meet("balance", Fault.reply(200, reply), extra=("--json",)).json
            self.assertEqual(found["balance_microusd"], value)


class PaymentLinks(FaultTest):
    def test_a_link_that_is_not_one_exits_6(self) -> None:
        links: tuple[Any, ...] = (
            *(None, "", " ", 5, True, [], {}, "javascript:alert(1)", "data:text/html,x"),
            *("http://pay.example.com/x", "//pay.example.com", "/pay/1", "pay.example.com/1"),
            *("https://user@pay.example.com/", "https://u:p@pay.example.com/", "https://"),
            *("https://pay.example.com\\@evil.example/", "https://evil.example\\.pay.example/"),
            *(
                "https://pay.example.com/\nNext: rm -rf",
                "https://pay.example.com/\r",
                "\thttps://a.b/",
            ),
            *(
                "https://pay.example.com/a b",
                "https://pay.example.com/\u202egpj",
                "https://päy.example/",
            ),
            *(
                "https://pay.example.com/\x1b[31m",
                "https://pay.example.com:0/",
                "https://a.b:99999/",
            ),
            *("https://pay.example.com/" + "x" * 10_000, "https://[::1/", "https://.example.com/"),
            *(f"https://pay.example.com/?k={DEFAULT_KEY}", "ftp://pay.example.com/", "HTTPS:/x"),
        )
        for link in links:
            with self.subTest(link=link):
                del self.box.requests[:]
                result = self.meet("topup", Fault.reply(200, {"paymentUrl": link}))
                self.assertEqual((result.exit, result.out), (6, ""), result)

    def test_a_good_link_is_shown_whole_on_a_line_of_its_own(self) -> None:
        for link in (
            "https://checkout.stripe.com/c/pay/cs_live_a1#fid=x%2Fy'!$&()*+,;=:@",
            "https://pay.example.com:8443/" + "x" * 2000,
            "https://[2001:db8::1]/x",
            f"{self.box.url}/pay/1",
        ):
            with self.subTest(link=link):
                del self.box.requests[:]
                result = self.meet("topup", Fault.reply(200, {"paymentUrl": link}))
                self.assertEqual(result.exit, 0, result)
                self.assertEqual(result.out.splitlines()[1], link)


class NewKeys(FaultTest):
    def test_a_key_that_is_not_one_exits_6(self) -> None:
        keys: tuple[Any, ...] = (
            None,
            "",
            " ",
            5,
            True,
            [],
            {},
            "a b",
            "cf_\n",
            "cf_ä",
            "cf_\x1b[1m",
            DEFAULT_KEY,
        )
        for key in keys:
            with self.subTest(key=key):
                del self.box.requests[:]
                result = self.meet("keys_create", Fault.reply(200, {"apiKey": key}))
                self.assertEqual((result.exit, result.out), (6, ""), result)

    def test_what_decorates_may_be_absent_but_not_wrong(self) -> None:
        result = self.meet("keys_create", Fault.reply(200, {"apiKey": "cf_new"}))
        self.assertEqual((result.exit, result.out.splitlines()[0]), (0, "cf_new"))

    def test_a_key_that_holds_ours_is_still_delivered_whole(self) -> None:
        key = "cf_new_and_longer"
        argv, call = WRITES["keys_create"]
        self.box.books.keys.append(self.box.books.keys[0])
        self.box.script(call, Fault.reply(200, {"apiKey": key}))
        result = self.ops(*argv, CACHEFORGE_API_KEY="cf_new")
        self.assertEqual(result.out.splitlines()[0], key)


class ReadBack(FaultTest):
    """After a settings write, what is stored must be seen to be what was asked."""

    def test_a_read_back_that_fails_is_uncertain(self) -> None:
        for name, call in (
            ("auto_topup_enable", BILLING),
            ("upstream_set", "GET /v1/account/upstream"),
        ):
            for fault in FAULTS.values():
                del self.box.requests[:]
                self.box.script(call, *[fault[0]()] * 3)
                self.assertEqual(self.meet(name).exit, 6)
                self.box.script_nothing()


class Echo(FaultTest):
    """A service that sends our secrets back, in every dress."""

    def dresses(self, secret: str) -> list[str]:
        hexed = secret.encode().hex()
        pairs = [hexed[at : at + 2] for at in range(0, len(hexed), 2)]
        return [
            secret,
            f"key={secret}&x=1",
            "".join(f"%{pair}" for pair in pairs),
            "".join(f"%{pair.upper()}" for pair in pairs),
            "".join(f"\\u00{pair}" for pair in pairs),
            secret.replace("_", "%5F").replace("-", "%2d"),
            secret.replace("_", "\\_"),
            f"\x1b[1m{secret[:5]}\x1b[0m{secret[5:]}",
            f"{secret[:7]}\u200b{secret[7:]}",
            "x" * 290 + secret,
        ]

    def seen(self, text: str, secret: str) -> bool:
        """Whether the secret is there, or so much of it that the rest is a guess."""
        return secret in text or secret[:12] in text

    def test_in_errors(self) -> None:
        for secret in (DEFAULT_KEY, THEIRS):
            for dress in self.dresses(secret):
                for body in ({"error": dress}, {"error": {"message": dress, "code": dress}}):
                    for name in ("upstream_set", "balance"):
                        if name == "balance" and secret == THEIRS:
                            continue
                        with self.subTest(name=name, dress=dress):
                            del self.box.requests[:]
                            headers = {"X-Request-Id": secret}
                            fault = Fault.reply(400, body, headers)
                            for extra in ((), ("--json",)):
                                del self.box.requests[:]
                                result = self.meet(name, fault, extra=extra)
                                self.assertFalse(self.seen(result.err, secret), result)
                                self.assertNotIn(dress, result.err)

    def test_in_names(self) -> None:
        for dress in self.dresses(DEFAULT_KEY):
            reply = info_reply()
            reply["tenant"]["name"] = reply["tenant"]["status"] = dress
            for extra in ((), ("--json",)):
                result = self.meet("info", Fault.reply(200, reply), extra=extra)
                self.assertEqual(result.exit, 0)
                self.assertFalse(self.seen(result.out, DEFAULT_KEY), result)

    def test_in_the_headers_of_a_harmless_body(self) -> None:
        for dress in (f"{DEFAULT_KEY}/x", f"x/{DEFAULT_KEY}", "x/\x1b[31mred", "x/" + "y" * 5000):
            with self.subTest(dress=dress[:40]):
                result = self.meet("balance", ok(b"nothing", dress))
                self.assertEqual(result.exit, 1)

    def test_in_the_status_line_and_as_html(self) -> None:
        line = f"HTTP/1.1 400 {DEFAULT_KEY}\nX-Request-Id: {DEFAULT_KEY}\nContent-Length: 20\n\n"
        self.meet("balance", http(line, DEFAULT_KEY.encode()[:20]))
        self.meet("balance", Fault(f"{DEFAULT_KEY}\r\n\r\n".encode()))
        self.meet("balance", Fault.reply(500, f"<p>{DEFAULT_KEY}</p>".encode()))


if __name__ == "__main__":
    unittest.main()
