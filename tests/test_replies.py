"""Replies: what may be shown of a text, and believed of an answer."""

from __future__ import annotations

import email.message
import time
import unittest
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

    def test_a_date(self) -> None:
        with mock.patch.object(time, "time", lambda: 1_000_000_000.25):
            for ahead_s, seconds in ((60, 60), (1, 1), (0, None), (-60, None)):
                date = formatdate(1_000_000_000 + ahead_s, usegmt=True)
                self.assertEqual(ops.read_retry_after_s(date), seconds)


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


class Answer(unittest.TestCase):
    def answer(self, **headers: str) -> ops.Answer:
        message = email.message.Message()
        for name, value in headers.items():
            message[name.replace("_", "-")] = value
        response: object = (200, message, b"{}")
        return ops.Answer(response, False, [SECRET])  # type: ignore[arg-type]

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
