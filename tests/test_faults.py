"""What can go wrong with a response, tried on every command.

Each command meets each fault over a real socket, with `--verbose` on. Whatever the
fault: the exit code is the one that CLI users branch on, standard output is empty
unless the command succeeded, there is no traceback, neither secret is shown, and a
write reaches the service exactly once.
"""

from __future__ import annotations

import copy
import gzip
from collections.abc import Sequence
from typing import Any, Optional

from support import (
    BILLING,
    COMMANDS,
    GOOD,
    WRITES,
    Fault,
    FaultTest,
    JumpingClock,
    Sandbox,
    call_on,
    http,
    moved,
)

KINDS = {"topup": 1, "keys_create": 3}  # their place in Exits; other writes have the one between


def ok(body: bytes, kind: str = "application/json") -> Fault:
    """A well-formed 200 with these bytes."""
    return Fault.reply(200, body, {"Content-Type": kind})


def chunks(body: bytes) -> Fault:
    """A 200 whose body comes in chunks."""
    return http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", body)


# the exit codes of a read, a top-up, a setting or revocation, and a new key. A top-up without a
# response is safe to repeat, a setting is what is read back, a key may have been created
Exits = tuple[int, int, int, int]
LOST: Exits = (5, 5, 5, 6)
CUT: Exits = (5, 5, 1, 6)  # a 2xx that is empty or incomplete; the setting was not changed
NO_JSON: Exits = (1, 5, 1, 6)  # a 2xx that is complete, and no JSON object
NO_FIELD: Exits = (1, 1, 1, 6)  # a 2xx object, which is complete if it parses
NO_HTTP: Exits = (1, 5, 5, 6)
OK = "HTTP/1.1 200 OK\n"

LOST_RESPONSES = {
    "status_408": Fault.reply(408, {"error": "no"}),
    "html_502": Fault.reply(502, b"<html>bad gateway</html>"),
    "no_response": Fault(),
    "reset": Fault(end="reset"),
    "reset_within_the_headers": http(OK + "Content-Length: 99\n", end="reset"),
    "status_500": Fault.reply(500, {"error": "no"}),
    "status_501": Fault.reply(501, {"error": None}),
    "status_503_of_1_MB": Fault.reply(503, b"x" * 1_000_000),
    "status_504_of_brackets": Fault.reply(504, b"[" * 100_000),
    "status_600": Fault.reply(600, {}),
    "status_999": Fault.reply(999, {}),
    "status_103_alone": http("HTTP/1.1 103 Early Hints\nLink: </a>\n\n"),
    "status_101": http("HTTP/1.1 101 Switching Protocols\n\n"),
}
CUT_RESPONSES = {
    "body_cut_short": http(OK + "Content-Length: 900\n\n", GOOD[:-1]),
    "body_cut_to_nothing": http(OK + "Content-Length: 9\n\n"),
    "chunks_cut_short": chunks(b"40\r\n{"),
    "chunk_size_of_garbage": chunks(b"zz\r\n{}\r\n0\r\n\r\n"),
    "end_within_the_status_line": Fault(b"HTTP/1.1 200"),
    "end_after_the_status_line": http(OK),
    "end_within_a_header": http(OK + "Content-Le"),
    "end_within_the_headers": http(OK + "Content-Length: 0\n"),
    "no_body_and_no_length": http(OK + "Connection: close\n\n"),
    "reset_within_the_body": http(OK + "Content-Length: 99\n\n", b"{", end="reset"),
    "status_204": http("HTTP/1.1 204 No Content\n\n"),
    "empty": ok(b""),
}
NO_JSON_RESPONSES = {
    "html": ok(b"<html>hello</html>", "text/html"),
    "plain_text": ok(b"OK", "text/plain"),
    "gzip": Fault.reply(200, gzip.compress(GOOD), {"Content-Encoding": "gzip"}),
    "utf16": ok(GOOD.decode().encode("utf-16")),
    "white_space": ok(b"  \n "),
    "nesting": ok(b"[" * 100_000 + b"]" * 100_000),
    "nesting_of_objects": ok(b'{"a":' * 100_000),
    "two_documents": ok(b"{}{}"),
    "trailing_comma": ok(b'{"a": 1,}'),
    "single_quotes": ok(b"{'a': 1}"),
    "root_null": ok(b"null"),
    "root_list": ok(b"[]"),
    "root_string": ok(b'"ok"'),
    "root_number": ok(b"12340000"),
    "root_true": ok(b"true"),
}
NO_FIELD_RESPONSES = {
    "an_empty_object": ok(b"{}"),
    "length_of_a_hundred_terabytes": http(OK + "Content-Length: 100000000000000\n\n", b"{}"),
    "chunks_without_an_end": chunks(b"2\r\n{}\r\n"),
    "chunk_size_of_a_hundred_terabytes": chunks(b"5af3107a4000\r\n{}"),
    "invalid_utf8": ok(b'{"billing": "\xff\xfe"}'),
    "nan": ok(b'{"billing": {"creditBalanceMicrousd": NaN}}'),
    "infinity": ok(b'{"a": -Infinity}'),
    "integer_of_5000_digits": ok(b'{"a": ' + b"9" * 5000 + b"}"),
    "control_character_in_a_string": ok(b'{"a": "\x01"}'),
}
NO_HTTP_RESPONSES = {
    "status_line_of_garbage": Fault(b"\x1b[31mhello\r\n\r\n"),
    "smtp": Fault(b"220 mail.example.com ESMTP\r\n"),
    "tls_alert": Fault(b"\x15\x03\x01\x00\x02\x02\x46\n\n"),
    "status_of_words": http("HTTP/1.1 OK 200\n\n"),
    "status_line_without_end": http("HTTP/1.1 200 " + "x" * 70_000),
    "a_header_without_end": http(OK + "X: " + "x" * 70_000),
    "a_thousand_headers": http(OK + "X-A: b\n" * 1000 + "Content-Length: 2\n\n", b"{}"),
}
REFUSALS = {
    "status_400": (Fault.reply(400, {"error": "no"}), 1),
    "status_401_cut_short": (http("HTTP/1.1 401 No\nContent-Length: 9\n\n"), 3),
    "status_401": (Fault.reply(401, {"error": {"message": "no", "code": "x"}}), 3),
    "status_402": (Fault.reply(402, {"message": "no"}), 4),
    "status_403": (Fault.reply(403, {"title": "no", "detail": "why"}), 3),
    "status_403_of_somebody_else": (Fault.reply(403, b"<html>no</html>"), 1),
    "status_404": (Fault.reply(404, b"<html>no</html>"), 1),
    "status_405": (Fault.reply(405, b""), 1),
    "status_409": (Fault.reply(409, []), 1),
    "status_422": (Fault.reply(422, {"error": {"message": {"a": 1}}}), 1),
    "status_429": (Fault.reply(429, {"error": "slow"}), 5),
    "status_499_of_1_MB": (Fault.reply(499, {"error": "x" * 1_000_000}), 1),
    "redirect_to_itself": (moved(301, "/v1/account/billing"), 1),
    "redirect_to_a_file": (moved(302, "file:///etc/passwd"), 1),
    "redirect_to_nonsense": (moved(302, "http://[::1"), 1),
    "redirect_to_a_latin_host": (moved(307, "http://h\xe4st/"), 1),
    "redirect_to_another_port": (moved(308, "https://127.0.0.1:1/"), 1),
    "redirect_without_a_place": (http("HTTP/1.1 302 Found\nContent-Length: 0\n\n"), 1),
    "status_300": (moved(300, "/v1/account/billing"), 1),
    "status_304": (http("HTTP/1.1 304 Not Modified\n\n"), 1),
}
FAULTS: dict[str, tuple[Fault, Exits]] = {
    **{name: (fault, LOST) for name, fault in LOST_RESPONSES.items()},
    **{name: (fault, CUT) for name, fault in CUT_RESPONSES.items()},
    **{name: (fault, NO_JSON) for name, fault in NO_JSON_RESPONSES.items()},
    **{name: (fault, NO_FIELD) for name, fault in NO_FIELD_RESPONSES.items()},
    **{name: (fault, NO_HTTP) for name, fault in NO_HTTP_RESPONSES.items()},
    **{name: (fault, (code, code, code, code)) for name, (fault, code) in REFUSALS.items()},
    "status_303": (moved(303, "/v1/account/billing"), (1, 5, 5, 6)),
}
# a read, and the write that a response is worth most to, meet every fault; the others meet those
# that differ in what they do with them
ALL_FAULTS = ("balance", "keys_create")
SOME_FAULTS = (
    *("html_502", "body_cut_short", "no_response", "reset", "status_500", "status_204", "empty"),
    *("root_list", "an_empty_object", "smtp", "status_303", "status_401", "status_402"),
    *("status_403_of_somebody_else", "status_429", "redirect_to_another_port"),
)


class EveryFault(FaultTest):
    def test_every_command_ends_as_it_should_whatever_the_response(self) -> None:
        for name in COMMANDS:
            for what in FAULTS if name in ALL_FAULTS else SOME_FAULTS:
                fault, exits = FAULTS[what]
                with self.subTest(command=name, response=what):
                    self.end(name, fault, exits[KINDS.get(name, 2) if name in WRITES else 0])

    def test_another_origin_never_hears_of_us(self) -> None:
        with Sandbox() as other:
            for name in ("balance", "keys_create"):
                for status in (301, 302, 307):
                    place = other.url + COMMANDS[name][1].split()[1]
                    with self.subTest(name=name, status=status):
                        self.end(name, moved(status, place), 1)
            self.assertEqual(other.requests, [])


class Retries(FaultTest):
    """Reads are tried three times where that can help; writes never (see `meet`)."""

    def tries(self, *faults: Fault) -> int:
        """How often the balance is read."""
        self.meet("balance", *faults)
        return len(self.box.requests)

    def test_a_read_survives_two_failures_and_is_given_up_after_three(self) -> None:
        busy = [Fault.reply(status, {}) for status in (429, 502, 503, 504)]
        for fault in (*busy, Fault(), Fault(end="reset"), Fault(b"HTTP/1.1 200 OK\r\n")):
            with self.subTest(fault=fault):
                self.assertEqual(self.meet("balance", fault, fault).exit, 0)
                self.end("balance", fault, 5)
                self.assertEqual(len(self.box.requests), 3)

    def test_other_failures_are_not_repeated(self) -> None:
        for status in (400, 401, 402, 403, 404, 500, 501):
            self.assertEqual(self.tries(Fault.reply(status, {})), 1, status)

    def test_the_pauses_between_the_tries_are_spread_and_grow(self) -> None:
        pauses = []
        for _ in range(16):
            clock = JumpingClock()
            self.box.add_faults(BILLING, *[Fault(end="reset")] * 3)
            call_on(clock, "balance", **self.box.env)
            self.assertEqual(len(clock.slept), 2)
            pauses.append(clock.slept)
        for first, second in pauses:
            self.assertTrue(0.1 <= first <= 2 and 0.5 <= second <= 5, (first, second))
        firsts, seconds = zip(*pauses)
        # twice as long in the mean; chance alone would have to move it by six deviations
        self.assertLess(1.3 * sum(firsts), sum(seconds))
        self.assertGreater(max(firsts) - min(firsts), 0.05)

    def test_retry_after_is_honoured_within_the_deadline_only(self) -> None:
        for value, pauses in (("2", 1), ("29", 1), ("31", 0), ("31536000", 0)):
            with self.subTest(value=value):
                clock = JumpingClock()
                self.box.add_faults(BILLING, Fault.reply(503, {}, {"Retry-After": value}))
                result = call_on(clock, "balance", **self.box.env)
                self.assertEqual((result.exit, len(clock.slept)), (0 if pauses else 5, pauses))
                if pauses:
                    self.assertGreaterEqual(clock.passed_s, int(value))
                self.box.clear_faults()

    def test_the_request_id_is_told_wherever_the_service_puts_it(self) -> None:
        for header in ("X-Request-Id", "x-request-id", "CF-Ray"):
            fault = Fault.reply(400, {"error": "no"}, {header: "req_0815"})
            self.assertIn("[request req_0815]", self.meet("info", fault).err)
            error = self.meet("info", fault, extra=("--json",)).error
            self.assertEqual(error["request_id"], "req_0815")

    def test_retry_after_is_told_in_seconds_and_what_is_no_seconds_says_nothing(self) -> None:
        for value, seconds in (
            *(("7", 7), ("Wed, 21 Oct 2015 07:28:00 GMT", None), ("3 Feb , \xe9", None)),
            *(("soon", None), ("-5", None), ("1e9", None), ("", None), ("\xb2", None)),
        ):
            with self.subTest(value=value):
                busy = http(
                    f"HTTP/1.1 503 Busy\nRetry-After: {value}\nContent-Length: 2\n\n", b"{}"
                )
                error = self.meet("balance", *[busy] * 3, extra=("--json",)).error
                self.assertEqual(error["retry_after_seconds"], seconds)
        busy = Fault.reply(429, {}, {"Retry-After": "120"})
        self.assertIn("120", self.meet("balance", busy).err)


# what each command reads: where in the reply, its type, and where JSON shows it; where it shows
# nothing, the field is required
Parts = tuple[tuple[str, type, Optional[str]], ...]
FIELDS: dict[str, Parts] = {
    "balance": (
        ("billing", dict, None),
        ("billing.creditBalanceMicrousd", int, None),
        ("billing.autoTopupEnabled", bool, "auto_topup.enabled"),
        ("billing.autoTopupThresholdCents", int, "auto_topup.threshold_cents"),
        ("billing.autoTopupAmountCents", int, "auto_topup.amount_cents"),
        ("billing.defaultPaymentMethodSet", bool, "card_saved"),
    ),
    "upstream": (
        ("configured", bool, None),
        ("upstream", dict, "kind"),
        ("upstream.kind", str, "kind"),
        ("upstream.baseUrl", str, "base_url"),
    ),
    "keys": (
        ("keys", list, None),
        ("keys.1.id", str, "keys.1.id"),
        ("keys.1.prefix", str, "keys.1.prefix"),
        ("keys.1.label", str, "keys.1.label"),
        ("keys.1.createdAt", str, "keys.1.created_at"),
        ("keys.1.lastUsedAt", str, "keys.1.last_used_at"),
        ("keys.1.revokedAt", str, "keys.1.revoked_at"),
    ),
    "info": (
        ("tenant", dict, None),
        ("tenant.id", str, "tenant.id"),
        ("tenant.name", str, "tenant.name"),
        ("tenant.status", str, "tenant.status"),
        ("tenant.upstreamConfigured", bool, "tenant.upstream_configured"),
        ("tenant.activeKeys", int, "tenant.active_keys"),
    ),
}
ABSENT = object()
VALUES: tuple[Any, ...] = (ABSENT, None, True, 0, 1.5, "", "text", [], ["x"], {"a": 1})


class Fields(FaultTest):
    """Every field of every reply, replaced by everything that it is not."""

    def find(self, reply: Any, way: Sequence[str]) -> Any:
        for step in way:
            reply = reply[int(step) if isinstance(reply, list) else step]
        return reply

    def put(self, reply: Any, path: str, value: Any) -> Any:
        changed = copy.deepcopy(reply)
        *way, last = path.split(".")
        holder = self.find(changed, way)
        holder[last] = value
        if value is ABSENT:
            del holder[last]
        return changed

    def test_a_required_field_must_be_right_and_any_other_is_null_if_it_is_wrong(self) -> None:
        self.box.account.auto_topup.update(enabled=True, thresholdCents=200, amountCents=1000)
        self.box.account.upstream = {"kind": "custom", "baseUrl": "https://x.example"}
        self.box.account.keys[1].label = self.box.account.keys[1].revoked_at = "x"
        self.box.account.keys[1].last_used_at = "2026-01-02T00:00:00Z"
        for name, parts in FIELDS.items():
            reply = self.box.service.routes[COMMANDS[name][1]](None)
            for path, kind, shown in parts:
                self.assertIs(type(self.find(reply, path.split("."))), kind, path)
                for value in (wrong for wrong in VALUES if type(wrong) is not kind):
                    with self.subTest(name=name, path=path, value=value):
                        fault = Fault.reply(200, self.put(reply, path, value))
                        if shown is None or value is ABSENT:
                            self.end(name, fault, 0 if shown else 1)
                        if shown:
                            found = self.meet(name, fault, extra=("--json",))
                            self.assertEqual(found.exit, 0, found)
                            self.assertIsNone(self.find(found.json, shown.split(".")), found)
