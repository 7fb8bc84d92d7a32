"""Secrets: the one check that every key passes, and what is hidden in every output."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    KEYS,
    PROGRAM,
    SET_UPSTREAM,
    TOPUP,
    Fault,
    SandboxTest,
    has_terminal,
    http,
    on_terminal,
    reply,
)

THEIRS = "sk-or-v1-Sup3rS3cret0123456789"
# what people paste, and what pipes and files make of it; whatever the source
JUNK = (
    *('"cf_abc0123456789"', "'cf_abc0123456789'", '"cf_abc', "cf_abc'", '"', "''"),
    *("API_KEY=cf_abc0123456789", "OPENROUTER_API_KEY=sk-or-v1-abc", "export=x"),
    *("$API_KEY", "${API_KEY}", "${API_KEY:-x}", "%API_KEY%", "$OPENROUTER_API_KEY"),
    *("cf_...", "sk-or-...", "cf_ab..cd", "sk-or-v1-0123...cdef", "..", "cf_abc0123*", "sk-or-*"),
    *("***", "cf_**cdef", "****cdef", "<your-key>", "<key>", "<YOUR_API_KEY>", "null", "undefined"),
    *("cf_abc def", "cf_a\tb", "cf_\xe4bc0123456789", "cf_abc\u2026", "sk-or-\u2026", "cf_a\x01b"),
    *("cf_a\x7fb", "\u201ccf_abc0123\u201d", "cf_abc\u200b"),
)
FINE = (
    *("EMPTY", "ollama", "a", "a.b.c", "abc=", "abc==", "eyJhbGciOi.eyJzdWIi.c2ln", "x" * 300),
    *("nullable", "undefined_key", "a-b_c~d+e/f", "ab*cd", 'a"b', "key!#(){}[]|;:,?@^&"),
)
FOREIGN_TO_US = ("sk-1234", "sk-or-v1-0123456789abcdef", "sk-ant-api03-abc", "sk-proj-abc")
FOREIGN_TO_THEM = (
    *(("openrouter", "cf_abc0123456789"), ("anthropic", "cfk_abc0123456789")),
    *(("custom", "cf_abc0123456789"), ("custom", DEFAULT_KEY)),
    *(("anthropic", "sk-or-v1-abc0123456789"), ("openrouter", "sk-ant-api03-abc0123456789")),
)
AT_HOME = (
    *(("openrouter", THEIRS), ("anthropic", "sk-ant-api03-abc"), ("custom", "sk-1234")),
    *(("custom", "EMPTY"), ("custom", "sk-proj-abc")),
)
BASE = ("--base-url", "https://x.example")


class KeyTest(SandboxTest):
    def sources(self, kind: str, key: str) -> list[tuple[tuple[str, ...], str, dict[str, str]]]:
        """The three ways in which a provider's key is given: arguments, input, environment."""
        argv = ("upstream", "--set", "--kind", kind, *(BASE if kind == "custom" else ()))
        return [
            ((*argv, f"--api-key={key}"), "", {}),
            ((*argv, "--api-key-env", "THEIRS"), "", {"THEIRS": key}),
            ((*argv, "--api-key", "-"), f"{key}\n", {}),
        ]

    def refused(self, key: str, *argv: str, stdin: str = "", **env: str) -> Any:
        """The error for a key that does not pass; nothing was sent or repeated."""
        del self.box.requests[:]
        error = self.failure(2, *argv, stdin=stdin, **env)
        self.assertEqual(self.box.writes, [])
        if "0123" in key:
            self.assertNotIn("0123", error["words"])
        return error


class OneCheck(KeyTest):
    def test_junk_is_refused_from_every_source(self) -> None:
        for key in JUNK:
            with self.subTest(source="CACHEFORGE_API_KEY", key=key):
                error = self.refused(key, "balance", CACHEFORGE_API_KEY=key)
                self.assertIn("CACHEFORGE_API_KEY", error["words"])
                self.assertEqual(self.box.requests, [])
            for argv, stdin, env in self.sources("openrouter", key):
                with self.subTest(source=argv[-2:], key=key):
                    self.refused(key, *argv, stdin=stdin, **env)
                    self.refused(key, *argv, "--dry-run", stdin=stdin, **env)

    def test_nothing_is_no_key(self) -> None:
        for value in ("", " ", "\r", " \t\r"):
            error = self.failure(2, "balance", CACHEFORGE_API_KEY=value)
            self.assertRegex(error["words"], "(?i)not set|empty")
            for argv, stdin, env in self.sources("openrouter", value):
                with self.subTest(argv=argv, value=value):
                    self.refused("", *argv, stdin=stdin, **env)
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key-env")
        self.assertRegex(self.failure(2, *argv, "UNSET")["words"], "(?i)not set|empty")
        self.assertNotIn(THEIRS, str(self.failure(2, *argv, THEIRS)))
        self.failure(2, *argv[:-1], "--api-key", "-", stdin="")
        self.assertEqual(self.box.requests, [])

    def test_real_keys_pass_from_every_source(self) -> None:
        for key in FINE:
            with self.subTest(source="CACHEFORGE_API_KEY", key=key):
                self.box.account.keys[0].secret = self.box.account.api_key = key
                self.assertEqual(self.ops("balance").exit, 0)
                heard = self.box.requests[-1].headers["Authorization"]
                self.assertEqual(heard, f"Bearer {key}")
            self.box.account.keys[0].secret = self.box.account.api_key = DEFAULT_KEY
            for argv, stdin, env in self.sources("custom", key):
                with self.subTest(source=argv[-2:], key=key):
                    self.box.account.upstream = {}
                    result = self.ops(*argv, stdin=stdin, **env)
                    self.assertEqual(result.exit, 0, result)
                    self.assertEqual(self.box.account.upstream["apiKey"], key)

    def test_white_space_around_a_key_is_dropped(self) -> None:
        self.assertEqual(self.ops("balance", CACHEFORGE_API_KEY=f" {DEFAULT_KEY}\r").exit, 0)
        for argv, stdin, env in self.sources("openrouter", f" {THEIRS} \r")[1:]:
            self.ops(*argv, stdin=stdin, **env)
            self.assertEqual(self.box.account.upstream["apiKey"], THEIRS)

    def test_a_key_of_another_service_is_refused(self) -> None:
        for key in FOREIGN_TO_US:
            self.refused(key, "balance", CACHEFORGE_API_KEY=key)
            self.assertEqual(self.box.requests, [])
        for kind, key in FOREIGN_TO_THEM:
            for argv, stdin, env in self.sources(kind, key):
                with self.subTest(kind=kind, key=key, argv=argv[-2:]):
                    self.refused(key, *argv, stdin=stdin, **env)
        for kind, key in AT_HOME:
            for argv, stdin, env in self.sources(kind, key):
                result = self.ops(*argv, stdin=stdin, **env)
                self.assertEqual((result.exit, self.sent()), (0, [SET_UPSTREAM]), result)

    @unittest.skipUnless(has_terminal(), "needs a pseudo terminal")
    def test_with_json_a_terminal_is_not_asked_for_a_key(self) -> None:
        command = (*PROGRAM, "upstream", "--set", "--kind", "openrouter")
        result = on_terminal(*command, "--api-key", "-", "--json", env=self.box.env)
        self.assertEqual((result.exit, self.box.requests), (2, []), result)
        self.assertTrue(result.out.startswith("{"), result)
        shown = on_terminal(
            *command, "--api-key", "-", typed=f"{THEIRS}\n".encode(), env=self.box.env
        )
        self.assertEqual((shown.exit, self.sent()), (0, [SET_UPSTREAM]), shown)
        self.assertNotIn(THEIRS[:16], shown.out)


class Hidden(KeyTest):
    def test_the_key_is_hidden_in_what_the_user_gave(self) -> None:
        url = f"{self.box.url}/{DEFAULT_KEY}"
        self.box.service.routes[f"GET /{DEFAULT_KEY}/v1/account/info"] = self.box.service.info
        for argv, code in ((("info", "--verbose"), 0), (("balance", "--verbose"), 1)):
            result = self.ops(*argv, CACHEFORGE_BASE_URL=url)
            self.assertEqual(result.exit, code, result)
            self.assertNotIn(DEFAULT_KEY, result.out + result.err)
        base_url = f"https://h.example/{DEFAULT_KEY}"
        line = f"upstream --set --kind openai --dry-run --base-url {base_url}"
        result = self.ops(*line.split())
        self.assertEqual(result.exit, 0, result)
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
                for body in ({"error": reason}, reason.encode()):
                    for extra in ((), ("--json",)):
                        with self.subTest(piece=piece, body=body, extra=extra):
                            kind = "text/plain" if isinstance(body, bytes) else "application/json"
                            fault = reply(body, 400, X_Request_Id=secret, Content_Type=kind)
                            self.script(SET_UPSTREAM, fault)
                            argv, _, env = self.sources("openrouter", THEIRS)[1]
                            result = self.ops(*argv, *extra, "--verbose", **env)
                            self.assertEqual(result.exit, 1, result)
                            self.check(result.err, secret, "before", "after")

    def test_in_every_success(self) -> None:
        for piece in self.pieces(DEFAULT_KEY):
            self.route(KEYS, {"keys": [{"id": "k1", "prefix": "cf_1", "label": f"a {piece} z"}]})
            tenant = {"id": piece, "name": piece, "status": f"fine {piece}"}
            self.route("GET /v1/account/info", {"tenant": tenant})
            upstream = {"kind": "custom", "baseUrl": f"https://x.example/{piece}"}
            self.route("GET /v1/account/upstream", {"configured": True, "upstream": upstream})
            for extra in ((), ("--json",)):
                for command in ("keys", "info", "upstream"):
                    with self.subTest(piece=piece, command=command):
                        self.check(self.ok(command, *extra).out, DEFAULT_KEY)
                self.assertIn("fine", self.ok("info").out)

    def test_fifteen_characters_are_no_secret(self) -> None:
        self.script(TOPUP, reply({"error": f"Invalid key {DEFAULT_KEY[:15]}"}, 400))
        self.assertIn(DEFAULT_KEY[:15], self.failure(1, "topup")["message"])

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

    def test_a_short_secret_is_hidden_only_where_it_occurs_whole(self) -> None:
        for key in ("cf_12345", "cf_1234567890ab"):
            self.box.account.keys[0].secret = self.box.account.api_key = key
            for shown in (key, f"<{key}>", f"x={key};"):
                self.script(TOPUP, reply({"error": f"before {shown} after {key[:-1]}!"}, 400))
                words = self.failure(1, "topup")["words"]
                self.assertNotIn(key, words)
                for kept in ("before", "after", key[:-1]):
                    self.assertIn(kept, words)

    def test_a_very_short_secret_hides_no_words(self) -> None:
        for key, reason in (("a", "an apple a day"), ("EMPTY", "the EMPTY set"), ("sk-1234", "x")):
            self.script(SET_UPSTREAM, reply({"error": reason}, 400))
            argv, _, env = self.sources("custom", key)[1]
            self.assertIn(reason, self.failure(1, *argv, **env)["words"])
            found = self.ok(*argv, "--dry-run", "--json", **env).json["dry_run"]["body"]
            self.assertNotEqual(found["apiKey"], key)

    def test_a_rate_limit_is_no_refused_key(self) -> None:
        for body in ({"error": "slow down"}, b"<html>slow</html>"):
            self.script(BILLING, *[reply(body, 403, Retry_After="1")] * 3)
            error = self.failure(5, "balance")
            self.assertEqual(error["retry_after_seconds"], 1)
            self.assertEqual(len(self.box.requests), 3)
            self.script(BILLING, reply(body, 403, Retry_After="1"))
            self.assertEqual(self.ops("balance").exit, 0)
