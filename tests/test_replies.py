"""Replies: what may be shown of a text, and believed of an answer."""

from __future__ import annotations

import email.message
import json
import time
import unittest
from collections.abc import Callable
from email.utils import formatdate
from unittest import mock

from support import ops

SECRET = "cf_0123456789"


class Clean(unittest.TestCase):
    def test_what_is_removed_and_what_stays(self) -> None:
        for text, shown in (
            ("plain", "plain"),
            ("株式会社 🦊 é", "株式会社 🦊 é"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b[1;31;4mx", "x"),
            ("\x9b31mx", "x"),
            ("\x1b]8;;https://evil.example\x07click\x1b]8;;\x07", "click"),
            ("\x1b]52;c;eA==\x1b\\x", "x"),
            ("\x9d0;title\x9cx", "x"),
            ("\x1b(Bx\x1b7y\x1bc", "xy"),
            ("a\nb\r\nc\td\u2028e", "a b c d e"),
            ("a\x00\x08b\x7fc\x85d", "abc d"),
            ("\u202eabc\u202c", "abc"),
            ("a\u200bb\ufeffc\xadd", "abcd"),
            ("x\U000e0041\U000e0042", "x"),
            ("x\U000e0100\U000e01ef", "x"),
            ("x\ufe00\ufe0f\ufe01", "x"),
            ("\u2764\ufe0f!", "\u2764\ufe0f!"),
            ("a\ud800b", "ab"),
            ("  padded\n", "padded"),
            ("", ""),
        ):
            self.assertEqual(ops.clean(text), shown, ascii(text))


class Shorten(unittest.TestCase):
    def test_the_cut_is_marked_and_exact(self) -> None:
        self.assertEqual(ops.shorten("x" * 10, 10), "x" * 10)
        self.assertEqual(ops.shorten("x" * 11, 10), "x" * 7 + "...")
        self.assertEqual(len(ops.shorten("x" * 5000)), 300)


class Hide(unittest.TestCase):
    def test_a_secret_goes_and_the_rest_stays(self) -> None:
        self.assertEqual(ops.hide(f"key {SECRET}!", [SECRET]), "key <hidden>!")
        self.assertEqual(ops.hide(f"{SECRET}{SECRET}", [SECRET]), "<hidden><hidden>")
        self.assertEqual(ops.hide("100 % of a\\b", [SECRET]), "100 % of a\\b")
        self.assertEqual(ops.hide("x", []), "x")

    def test_an_encoded_secret_takes_its_text_with_it(self) -> None:
        for dress in (
            "cf%5f0123456789",
            "cf%5F0123456789",
            "\\u0063f_0123456789",
            "cf\\_0123456789",
        ):
            self.assertEqual(ops.hide(f"see {dress}", [SECRET]), "<hidden>", dress)

    def test_one_glance_says_whether_a_body_needs_it(self) -> None:
        self.assertTrue(ops.is_harmless(b'{"a": "plain"}', [SECRET]))
        for body in (b'"\\u0041"', b'"50%"', b'"\x7f"', '"é"'.encode(), f'"{SECRET}"'.encode()):
            self.assertFalse(ops.is_harmless(body, [SECRET]), body)


class RetryAfter(unittest.TestCase):
    def test_seconds(self) -> None:
        for text, seconds in (("0", 0), ("120", 120), (" 7 ", 7), ("999999999", 999_999_999)):
            self.assertEqual(ops.read_retry_after_s(text), seconds)
        for text in ("", "-1", "1.5", "soon", "9" * 10, "１"):  # noqa: RUF001
            self.assertIsNone(ops.read_retry_after_s(text), text)

    def test_a_date_that_no_calendar_has(self) -> None:
        for year in (99999, 10**20):
            self.assertIsNone(ops.read_retry_after_s(f"Mon, 01 Jan {year} 00:00:00 GMT"))

    def test_a_date(self) -> None:
        with mock.patch.object(time, "time", lambda: 1_000_000_000.25):
            for ahead_s, seconds in ((60, 60), (1, 1), (0, None), (-60, None)):
                date = formatdate(1_000_000_000 + ahead_s, usegmt=True)
                self.assertEqual(ops.read_retry_after_s(date), seconds)


class ParseJson(unittest.TestCase):
    def test_what_strict_json_is_not(self) -> None:
        for body in (b"", b"x", b"NaN", b'{"a": 1, "a": 1}', b"[" * 100_000, b"\xff"):
            with self.assertRaises(ValueError, msg=body[:20]):
                ops.parse_json(body)
        self.assertEqual(ops.parse_json(b'\xef\xbb\xbf{"a": [1]}'), {"a": [1]})


class ErrorText(unittest.TestCase):
    def test_every_shape_in_use(self) -> None:
        for body, said in (
            (b'{"error": "no"}', "no"),
            (b'{"error": {"message": "no", "code": "x"}}', "no"),
            (b'{"message": "no"}', "no"),
            (b'{"type": "about:blank", "title": "No", "detail": "because"}', "because"),
            (b'{"error": null, "message": "no"}', "no"),
            (b'{"error": {"error": {"message": "deep"}}}', ""),
            (b'{"error": ["no"]}', ""),
            (b"<html>no</html>", ""),
            (b"", ""),
        ):
            self.assertEqual(ops.error_text(body), said, body)


class Classify(unittest.TestCase):
    def test_each_status_at_the_edge_of_its_class(self) -> None:
        for status, read, write in (
            (300, ops.Refused, ops.Refused),
            (399, ops.Refused, ops.Refused),
            (400, ops.Refused, ops.Refused),
            (401, ops.Unauthorized, ops.Unauthorized),
            (402, ops.PaymentRequired, ops.PaymentRequired),
            (403, ops.Unauthorized, ops.Unauthorized),
            (404, ops.Refused, ops.Refused),
            (429, ops.Unreachable, ops.Unreachable),
            (499, ops.Refused, ops.Refused),
            (500, ops.Unreachable, ops.Uncertain),
            (599, ops.Unreachable, ops.Uncertain),
            (199, ops.BadReply, ops.Uncertain),
        ):
            for is_write, kind in ((False, read), (True, write)):
                self.assertIs(ops.classify(status, is_write)[0], kind, status)

    def test_each_outcome_has_its_code_and_exit(self) -> None:
        expected = {
            ops.Failure: ("failed", 1, False),
            ops.Refused: ("failed", 1, False),
            ops.BadReply: ("failed", 1, False),
            ops.Usage: ("usage", 2, False),
            ops.Unauthorized: ("unauthorized", 3, False),
            ops.PaymentRequired: ("payment_required", 4, False),
            ops.Unreachable: ("unreachable", 5, True),
            ops.Uncertain: ("uncertain", 6, False),
            ops.Interrupted: ("interrupted", 130, False),
        }
        for kind, promised in expected.items():
            error = kind("x")
            self.assertEqual((error.code, error.exit, error.retryable), promised)


class Answer(unittest.TestCase):
    def answer(self, body: bytes = b"{}", **headers: str) -> ops.Answer:
        message = email.message.Message()
        for name, value in headers.items():
            message[name.replace("_", "-")] = value
        response: object = (200, message, body)
        return ops.Answer(response, False, [SECRET])  # type: ignore[arg-type]

    def doubt(self, body: bytes, ask: Callable[[ops.Reply], object]) -> str:
        """What is said of a body where `ask` asks for something that is not there."""
        with self.assertRaises(ops.BadReply) as caught:
            ask(self.answer(body).reply(empty_ok=False))
        return caught.exception.message.partition("cannot be used: ")[2]

    def test_what_cannot_be_believed_is_named(self) -> None:
        for body, ask, said in (
            (b"[]", str, "it is not an object"),
            (b"{}", lambda reply: reply.need("a", bool), "a is missing"),
            (b"{}", lambda reply: reply.integer("a"), "a is missing"),
            (b"{}", lambda reply: reply.text("a"), "a is missing or empty"),
            (b'{"a": " "}', lambda reply: reply.text("a"), "a is missing or empty"),
            (b'{"a": null}', lambda reply: reply.child("a"), "a is missing"),
            (b'{"a": {}}', lambda reply: reply.child("a").text("b"), "a.b is missing or empty"),
            (b'{"a": [1]}', lambda reply: reply.children("a"), "a is not an object"),
            (b'{"a": true}', lambda reply: reply.integer("a"), "a has the wrong type"),
            (b'{"a": 1.0}', lambda reply: reply.integer("a"), "a has the wrong type"),
            (b'{"a": 1}', lambda reply: reply.text("a"), "a has the wrong type"),
            (b'{"a": 9223372036854775808}', lambda reply: reply.integer("a"), "a is out of range"),
            (b'{"a": "no key"}', lambda reply: reply.token("a", ""), "a is not a key"),
        ):
            self.assertEqual(self.doubt(body, ask), said)

    def test_the_longest_link_and_the_largest_integers(self) -> None:
        for length, usable in ((4096, True), (4097, False)):
            link = "https://a.example/".ljust(length, "x")
            reply = self.answer(json.dumps({"a": link}).encode()).reply(empty_ok=False)
            if usable:
                self.assertEqual(reply.link("a", allow_loopback=False)[0], link)
            else:
                self.assertRaises(ops.BadReply, reply.link, "a", False)
        for integer in (2**63 - 1, 1 - 2**63):
            reply = self.answer(b'{"a": %d}' % integer).reply(empty_ok=False)
            self.assertEqual(reply.integer("a"), integer)

    def test_the_first_request_id_that_is_there(self) -> None:
        self.assertEqual(self.answer(X_Request_Id="a", CF_Ray="b").request_id, "a")
        self.assertEqual(self.answer(CF_Ray="b").request_id, "b")
        self.assertIsNone(self.answer().request_id)
        self.assertEqual(self.answer(X_Request_Id="x" * 500).request_id, "x" * 97 + "...")
        self.assertEqual(self.answer(X_Request_Id=SECRET).request_id, "<hidden>")


class Address(unittest.TestCase):
    def test_loopback_is_what_can_only_be_this_machine(self) -> None:
        for host in ("localhost", "LOCALHOST", "127.0.0.1", "127.255.255.255", "[::1]"):
            self.assertTrue(ops.Url(f"http://{host}:1/").is_loopback, host)
        for host in ("127.0.0.256", "127.0.0", "1127.0.0.1", "localhost.evil.example", "[::2]"):
            self.assertFalse(ops.Url(f"http://{host}/").is_loopback, host)

    def test_the_usual_port_is_left_out(self) -> None:
        self.assertEqual(ops.Url("https://a.example:443/x").authority, "a.example")
        self.assertEqual(ops.Url("http://a.example:443/x").authority, "a.example:443")
        self.assertEqual(ops.Url("http://a.example:80").authority, "a.example")


if __name__ == "__main__":
    unittest.main()
