"""What can go wrong with an answer, tried on every command.

Each command meets each fault over a real socket, with `--verbose` on. Whatever the
fault: the exit code is the one that CLI users branch on, standard output is empty
unless the command succeeded, there is no traceback, neither secret is shown, and a
write reaches the service exactly once.
"""

from __future__ import annotations

import copy
import gzip
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from support import (
    BILLING,
    COMMANDS,
    CREATE,
    DEFAULT_KEY,
    GOOD,
    KEYS,
    SET_UPSTREAM,
    UPSTREAM,
    WRITES,
    Fault,
    FaultTest,
    JumpingClock,
    Sandbox,
    call_on,
    http,
    moved,
    next_words,
)

KINDS = {"topup": 1, "keys_create": 3}  # their place in Exits; other writes have the one between


def ok(body: bytes, kind: str = "application/json") -> Fault:
    """A well-formed 200 with these bytes."""
    return Fault.reply(200, body, {"Content-Type": kind})


def chunks(body: bytes) -> Fault:
    """A 200 whose body comes in chunks."""
    return http("HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n", body)


# what a command ends in: a read, a top-up, a setting or revocation, a new key. A top-up without an
# answer is safe to repeat, a setting is what the read-back shows, a key may have been made unseen.
Exits = tuple[int, int, int, int]
LOST: Exits = (5, 5, 5, 6)
ODD: Exits = (1, 5, 1, 6)  # a 2xx that nobody understands, and nothing was changed
SENSELESS: Exits = (1, 5, 5, 6)  # no answer of a service at all
OK = "HTTP/1.1 200 OK\n"

LOST_ANSWERS = {
    "status_408": Fault.reply(408, {"error": "no"}),
    "html_502": Fault.reply(502, b"<html>bad gateway</html>"),
    "body_cut_short": http(OK + "Content-Length: 900\n\n", GOOD),
    "body_cut_to_valid_json": http(OK + "Content-Length: 9\n\n", b"{}"),
    "body_cut_to_nothing": http(OK + "Content-Length: 9\n\n"),
    "length_of_a_hundred_terabytes": http(OK + "Content-Length: 100000000000000\n\n", GOOD),
    "chunks_cut_short": chunks(b"40\r\n{"),
    "chunks_without_an_end": chunks(b"2\r\n{}\r\n"),
    "chunk_size_of_garbage": chunks(b"zz\r\n{}\r\n0\r\n\r\n"),
    "chunk_size_of_a_hundred_terabytes": chunks(b"5af3107a4000\r\n{}"),
    "end_within_the_status_line": Fault(b"HTTP/1.1 200"),
    "end_after_the_status_line": http(OK),
    "end_within_a_header": http(OK + "Content-Le"),
    "end_within_the_headers": http(OK + "Content-Length: 0\n"),
    "end_within_the_headers_of_204": http("HTTP/1.1 204 No Content\n"),
    "no_body_and_no_length": http(OK + "Connection: close\n\n"),
    "no_answer": Fault(),
    "reset": Fault(end="reset"),
    "reset_within_the_body": Fault(http(OK + "Content-Length: 99\n\n").raw + b"{", end="reset"),
    "status_401_cut_short": http("HTTP/1.1 401 No\nContent-Length: 9\n\n"),
    "status_500": Fault.reply(500, {"error": "no"}),
    "status_501": Fault.reply(501, {"error": None}),
    "status_503_of_3_MB": Fault.reply(503, b"x" * 3_000_000),
    "status_504_of_brackets": Fault.reply(504, b"[" * 100_000),
    "status_600": Fault.reply(600, {}),
    "status_999": Fault.reply(999, {}),
}
ODD_ANSWERS = {
    "html": ok(b"<html>hello</html>", "text/html"),
    "plain_text": ok(b"OK", "text/plain"),
    "gzip": Fault.reply(200, gzip.compress(GOOD), {"Content-Encoding": "gzip"}),
    "utf16": ok(GOOD.decode().encode("utf-16")),
    "status_204": http("HTTP/1.1 204 No Content\n\n"),
}
ODD_BODIES = {
    "empty": b"",
    "white_space": b"  \n ",
    "invalid_utf8": b'{"billing": "\xff\xfe"}',
    "nan": b'{"billing": {"creditBalanceMicrousd": NaN}}',
    "infinity": b'{"a": -Infinity}',
    "a_name_twice": b'{"apiKey": "cf_a", "apiKey": "cf_b"}',
    "a_name_twice_within": b'{"billing": {"x": 1, "x": 2}}',
    "nesting": b"[" * 100_000 + b"]" * 100_000,
    "nesting_of_objects": b'{"a":' * 100_000,
    "integer_of_5000_digits": b'{"a": ' + b"9" * 5000 + b"}",
    "two_documents": b"{}{}",
    "trailing_comma": b'{"a": 1,}',
    "single_quotes": b"{'a': 1}",
    "control_character_in_a_string": b'{"a": "\x01"}',
    "root_null": b"null",
    "root_list": b"[]",
    "root_string": b'"ok"',
    "root_number": b"12340000",
    "root_true": b"true",
}
NO_ANSWERS = {
    "status_line_of_garbage": Fault(b"\x1b[31mhello\r\n\r\n"),
    "smtp": Fault(b"220 mail.example.com ESMTP\r\n"),
    "tls_alert": Fault(b"\x15\x03\x01\x00\x02\x02\x46\n\n"),
    "status_of_words": http("HTTP/1.1 OK 200\n\n"),
    "status_line_without_end": http("HTTP/1.1 200 " + "x" * 70_000),
    "a_header_without_end": http(OK + "X: " + "x" * 70_000),
    "a_thousand_headers": http(OK + "X-A: b\n" * 1000 + "Content-Length: 2\n\n", b"{}"),
    "status_103": http("HTTP/1.1 103 Early Hints\nLink: </a>\n\n"),
    "status_101": http("HTTP/1.1 101 Switching Protocols\n\n"),
}
REFUSALS = {
    "status_400": (Fault.reply(400, {"error": "no"}), 1),
    "status_401": (Fault.reply(401, {"error": {"message": "no", "code": "x"}}), 3),
    "status_402": (Fault.reply(402, {"message": "no"}), 4),
    "status_403": (Fault.reply(403, {"title": "no", "detail": "why"}), 3),
    "status_403_of_somebody_else": (Fault.reply(403, b"<html>no</html>"), 1),
    "status_404": (Fault.reply(404, b"<html>no</html>"), 1),
    "status_405": (Fault.reply(405, b""), 1),
    "status_409": (Fault.reply(409, []), 1),
    "status_422": (Fault.reply(422, {"error": {"message": {"a": 1}}}), 1),
    "status_429": (Fault.reply(429, {"error": "slow"}), 5),
    "status_499_of_3_MB": (Fault.reply(499, {"error": "x" * 3_000_000}), 1),
    "redirect_to_itself": (moved(301, "/v1/account/billing"), 1),
    "redirect_to_a_file": (moved(302, "file:///etc/passwd"), 1),
    "redirect_to_nonsense": (moved(303, "http://[::1"), 1),
    "redirect_to_a_latin_host": (moved(307, "http://h\xe4st/"), 1),
    "redirect_to_another_port": (moved(308, "https://127.0.0.1:1/"), 1),
    "redirect_without_a_place": (http("HTTP/1.1 302 Found\nContent-Length: 0\n\n"), 1),
    "status_300": (moved(300, "/v1/account/billing"), 1),
    "status_304": (http("HTTP/1.1 304 Not Modified\n\n"), 1),
}
ODD_ANSWERS.update({name: ok(body) for name, body in ODD_BODIES.items()})
FAULTS: dict[str, tuple[Fault, Exits]] = {
    **{name: (fault, LOST) for name, fault in LOST_ANSWERS.items()},
    **{name: (fault, ODD) for name, fault in ODD_ANSWERS.items()},
    **{name: (fault, SENSELESS) for name, fault in NO_ANSWERS.items()},
    **{name: (fault, (code, code, code, code)) for name, (fault, code) in REFUSALS.items()},
}
# one command for each column of Exits meets every fault, the others meet these
ALL_FAULTS = ("balance", "topup", "auto_topup_enable", "keys_create")
SOME_FAULTS = (
    *("html_502", "body_cut_short", "no_answer", "reset", "status_500", "status_204", "empty"),
    *("root_list", "smtp", "status_401", "status_403_of_somebody_else", "status_429"),
    "redirect_to_another_port",
)


class EveryFault(FaultTest):
    def test_every_command_ends_as_it_should_whatever_the_answer(self) -> None:
        for name in COMMANDS:
            for what in FAULTS if name in ALL_FAULTS else SOME_FAULTS:
                fault, exits = FAULTS[what]
                with self.subTest(command=name, answer=what):
                    self.end(name, fault, exits[KINDS.get(name, 2) if name in WRITES else 0])

    def test_another_origin_never_hears_of_us(self) -> None:
        with Sandbox() as other:
            for name in ("balance", "keys_create"):
                for status in (301, 302, 307):
                    place = other.url + COMMANDS[name][1].split()[1]
                    with self.subTest(name=name, status=status):
                        self.end(name, moved(status, place), 1)
            self.assertEqual(other.requests, [])

    def test_a_body_that_does_not_end_is_not_read_to_its_end(self) -> None:
        good_but_for_that = b'{"a": "' + b"x" * (33 * 1024 * 1024) + b'", ' + GOOD[1:]
        self.end("balance", ok(good_but_for_that), 1)


class StillFine(FaultTest):
    """What looks odd and is allowed."""

    def test_odd_but_valid_answers_are_believed_at_the_first_try(self) -> None:
        unread = b', "x": NaN, "y": 1, "y": 2}'
        for fault in (
            ok(b"\xef\xbb\xbf" + GOOD),
            ok(GOOD, "text/plain"),
            ok(GOOD[:-1] + unread),
            ok(GOOD[:-2] + unread + b"}"),
            http("HTTP/1.0 200\n\n", GOOD),
            Fault.reply(299, GOOD),
            http("HTTP/1.1 200 OK\nConnection: close\n\n", GOOD),
            http("HTTP/1.1 201 Created\nContent-Length: 200000\n\n", GOOD.ljust(200_000)),
            chunks(b"%x\r\n%b\r\n0\r\nTrailer: x\r\n\r\n" % (len(GOOD), GOOD)),
            http(
                f"HTTP/1.1 100 Continue\n\nHTTP/1.1 200 OK\nContent-Length: {len(GOOD)}\n\n", GOOD
            ),
        ):
            with self.subTest(fault=fault.raw[:60]):
                self.assertEqual(self.end("balance", fault, 0).exit, 0)
                self.assertEqual(self.box.calls(), [BILLING])


class Retries(FaultTest):
    """Reads are tried three times where that can help; writes never (see `meet`)."""

    def looks(self, *faults: Fault) -> int:
        """How often the balance is asked for."""
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
            self.assertEqual(self.looks(Fault.reply(status, {})), 1, status)

    def test_the_pauses_between_the_tries_are_spread_and_grow(self) -> None:
        pauses = []
        for _ in range(40):
            clock = JumpingClock()
            self.box.script(BILLING, *[Fault(end="reset")] * 3)
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
                self.box.script(BILLING, Fault.reply(503, {}, {"Retry-After": value}))
                result = call_on(clock, "balance", **self.box.env)
                self.assertEqual((result.exit, len(clock.slept)), (0 if pauses else 5, pauses))
                if pauses:
                    self.assertGreaterEqual(clock.passed_s, int(value))
                self.box.script_nothing()

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


# ways in which an answer is lost after the service has done what it was asked
LOSSES = (
    Fault(after=True),
    Fault(end="reset", after=True),
    Fault.reply(502, b"<html>", after=True),
    Fault(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", after=True),
)
NOT_READABLE = [Fault.reply(400, {})] * 3, [Fault.reply(200, b"<html>")] * 3, [Fault()] * 3


DONE = {"topup": 5, "auto_topup_enable": 0, "upstream_set": 5, "keys_create": 6, "keys_revoke": 0}


class LostAnswers(FaultTest):
    """The service did it, and then its answer was lost."""

    def test_it_is_a_success_only_where_all_of_it_can_be_read_back(self) -> None:
        for name, exit_code in DONE.items():  # a provider's key cannot
            for fault in LOSSES:
                with self.subTest(name=name, fault=fault):
                    self.box.books.auto_topup, self.box.books.upstream = {"enabled": False}, {}
                    self.box.books.keys[1].revoked_at = None
                    self.end(name, fault, exit_code)
        self.box.script(WRITES["upstream_set"][1], LOSSES[0])
        self.ok("upstream", "--set", "--kind", "anthropic")

    def test_a_lost_new_key_is_named_with_the_command_that_revokes_it(self) -> None:
        for fault in LOSSES:
            words = next_words(self.meet("keys_create", fault, extra=("--json",)).error["next"])
            self.assertEqual(words[:3], ["keys", "--revoke", self.box.books.keys[-1].id])

    def test_of_two_new_keys_none_is_to_be_revoked_on_a_guess(self) -> None:
        make = self.box.service.routes[CREATE]
        self.box.service.routes[CREATE] = lambda body: make(make(body))
        for fault in LOSSES:
            error = self.meet("keys_create", fault, extra=("--json",)).error
            self.assertEqual(next_words(error["next"]), ["keys"])
            for key in self.box.books.keys[-2:]:
                self.assertIn(key.id, error["message"])

    def test_what_the_service_said_of_the_request_is_kept(self) -> None:
        headers = {"X-Request-Id": "req_0815", "Retry-After": "7"}
        for name in WRITES:
            lost = Fault.reply(503, {}, headers)
            error = self.meet(name, lost, extra=("--json",)).error
            told = (error["http_status"], error["request_id"], error["retry_after_seconds"])
            self.assertEqual(told, (503, "req_0815", 7), name)

    def test_where_the_list_cannot_be_read_nothing_is_claimed(self) -> None:
        for faults in NOT_READABLE:
            with self.after_a_write(KEYS, *faults):
                error = self.meet("keys_create", LOSSES[0], extra=("--json",)).error
            self.assertEqual((error["exit"], next_words(error["next"])), (6, ["keys"]))
            with self.after_a_write(KEYS, *faults):
                self.end("keys_revoke", LOSSES[0], 5)
            with self.after_a_write(KEYS, *faults):
                found = self.meet("keys_revoke", extra=("--json",))
            self.assertEqual((found.exit, found.json["confirmed"]), (0, False), found)


class ReadBack(FaultTest):
    """A settings write is judged by what is stored afterwards, not by its answer."""

    def test_any_success_will_do_if_it_is_stored(self) -> None:
        for name in ("auto_topup_enable", "upstream_set", "keys_revoke"):
            for what in ODD_ANSWERS if name == "auto_topup_enable" else ("html", "status_204"):
                fault = ODD_ANSWERS[what]
                with self.subTest(name=name, answer=what):
                    self.box.books.auto_topup, self.box.books.upstream = {"enabled": False}, {}
                    self.box.books.keys[1].revoked_at = None
                    self.end(name, Fault(fault.raw, after=True), 0)

    def test_a_success_that_says_no_is_a_no(self) -> None:
        for name in WRITES:
            for body in ({"ok": False}, {"error": "not today"}, {"ok": False, "error": {"a": 1}}):
                self.end(name, Fault.reply(200, body), 1)

    def test_what_cannot_be_read_back_exits_5(self) -> None:
        for name, call in (("auto_topup_enable", BILLING), ("upstream_set", UPSTREAM)):
            for what in SOME_FAULTS:
                faults = [FAULTS[what][0]] * 3
                with self.subTest(name, answer=what), self.after_a_write(call, *faults):
                    self.assertEqual(self.meet(name).exit, 5)

    def test_a_host_is_compared_without_its_case_and_the_rest_to_the_letter(self) -> None:
        long = "https://llm.example.com/".ljust(299, "x")  # as much as is shown
        for asked, stored, exit_code in (
            ("https://LLM.Example.com/V1", "https://llm.example.com/V1", 0),
            ("https://llm.example.com/V1", "https://llm.example.com/v1", 1),
            ("https://llm.example.com/V1", "https://llm.example.com/V1?x", 1),
            (f"{long}1", f"{long}2", 1),
            (f"{long}11", f"{long}12", 2),
        ):
            self.box.books.upstream = {"kind": "custom", "baseUrl": stored}
            self.box.script(SET_UPSTREAM, Fault.reply(200, {"ok": True}))
            result = self.ops("upstream", "--set", "--kind", "custom", "--base-url", asked)
            self.assertEqual(result.exit, exit_code, result)


# what each command reads: where in the reply, its type, and where JSON shows it; where it shows
# nothing, there is no answer without it
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

    def test_evidence_must_be_right_and_all_else_is_null_where_it_is_wrong(self) -> None:
        self.box.books.auto_topup.update(enabled=True, thresholdCents=200, amountCents=1000)
        self.box.books.upstream = {"kind": "custom", "baseUrl": "https://x.example"}
        self.box.books.keys[1].label = self.box.books.keys[1].revoked_at = "x"
        self.box.books.keys[1].last_used_at = "2026-01-02T00:00:00Z"
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


class Evidence(FaultTest):
    """A link or a key that stands in a reply is delivered; one that is none is not."""

    def test_a_link_that_is_not_one_exits_5(self) -> None:
        links: tuple[Any, ...] = (
            *(None, "", " ", 5, True, [], {}, "javascript:alert(1)", "data:text/html,x"),
            *("http://pay.example.com/x", "//pay.example.com", "/pay/1", "pay.example.com/1"),
            *("https://user@pay.example.com/", "https://u:p@pay.example.com/", "https://"),
            *("https://pay.example.com\\@evil.example/", "https://evil.example\\.pay.example/"),
            *("https://pay.example.com/\nNext: rm -rf", "https://pay.example.com/\x1b[31m"),
            *("https://a.b:99999/", "https://[::1/", "ftp://pay.example.com/", "HTTPS:/x"),
            f"https://pay.example.com/?k={DEFAULT_KEY}",
        )
        for link in links:
            with self.subTest(link=link):
                self.end("topup", Fault.reply(200, {"paymentUrl": link}), 5)

    def test_a_link_is_shown_whole_on_a_line_of_its_own_whatever_stands_beside_it(self) -> None:
        for link, shown in (
            ("https://checkout.stripe.com/c/pay/cs_live_a1#fid=x%2Fy'!$&()*+,;=:@", None),
            ("https://pay.example.com:8443/" + "x" * 2000, None),
            ("https://[2001:db8::1]/x", None),
            (f"{self.box.url}/pay/1", None),
            (" https://pay.example.com/x\r\n", "https://pay.example.com/x"),
            ("https://pay.example.com/a|b?c={d}", None),
            ("https://p\xe4y.example/1", "https://xn--py-via.example/1"),
        ):
            for beside in (b"", b', "x": NaN', b', "x": 1, "x": 2', b', "id": [42]'):
                with self.subTest(link=link, beside=beside):
                    body = b'{"paymentUrl": ' + json.dumps(link).encode() + beside + b"}"
                    self.assertIn(shown or link, self.end("topup", ok(body), 0).out.splitlines())

    def test_a_key_that_is_not_one_exits_6(self) -> None:
        keys: tuple[Any, ...] = (None, "", " ", 5, True, [], {}, "a b", "cf_\xe4", "cf_\x1b[1m")
        for key in (*keys, DEFAULT_KEY):
            with self.subTest(key=key):
                self.end("keys_create", Fault.reply(200, {"apiKey": key}), 6)

    def test_a_key_is_delivered_whatever_stands_beside_it(self) -> None:
        for beside in (
            *('"id": 42', '"id": null', '"prefix": ["x"]', '"x": NaN', '"x": 1, "x": 2'),
            *('"id": 1, "id": 2', '"prefix": "cf_new_one"', '"apikey": "cf_other"'),
        ):
            reply = ok(f'{{"apiKey": " cf_new_one\\n", {beside}}}'.encode())
            with self.subTest(beside=beside):
                shown = self.end("keys_create", reply, 0).out.splitlines()
                self.assertEqual(shown[0], "cf_new_one")
                found = self.meet("keys_create", reply, extra=("--json",))
                self.assertEqual(found.json["api_key"], "cf_new_one")


class NewKey(FaultTest):
    """A new key that is saved is in the file, and in no output."""

    def test_a_service_that_repeats_it_everywhere_does_not_make_us_show_it(self) -> None:
        key = "cf_0123456789abcdef0123456789abcdef"
        body = {"apiKey": key, "id": key, "prefix": key, "label": key}
        with tempfile.TemporaryDirectory() as folder:
            for extra in ((), ("--json",)):
                path = Path(folder, f"new{len(extra)}.key")
                reply = Fault.reply(200, body, {"X-Request-Id": key})
                result = self.meet("keys_create", reply, extra=("--save", str(path), *extra))
                self.assertEqual((result.exit, path.read_text()), (0, f"{key}\n"), result)
                self.assertNotIn(key[:19], result.out + result.err)
