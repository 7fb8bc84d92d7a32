"""Secrets: the one check that every key passes, and what is hidden in every output."""

from __future__ import annotations

import tempfile
from pathlib import Path

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    KEYS,
    SET_UPSTREAM,
    TOPUP,
    Fault,
    Result,
    Sandbox,
    SandboxTest,
    call_ops,
    http,
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
OURS = "CACHEFORGE_API_KEY"
SOURCES = ("--api-key={}", "--api-key-env=THEIRS", "--api-key=-")  # of the provider's key


class KeyTest(SandboxTest):
    def give(self, source: str, key: str, kind: str = "openrouter", *extra: str) -> Result:
        """Run a command with a key that comes from there."""
        if source == OURS:
            return self.ops("balance", *extra, CACHEFORGE_API_KEY=key)
        base = ("--base-url", "https://x.example") if kind == "custom" else ()
        argv = ("upstream", "--set", "--kind", kind, *base, source.format(key), *extra)
        return self.ops(*argv, stdin=f"{key}\n", THEIRS=key)


class OneCheck(KeyTest):
    def refused(self, source: str, key: str, kind: str = "openrouter", *extra: str) -> None:
        """A key does not pass; nothing is sent, and the key is not repeated."""
        with self.subTest(source=source, key=key, kind=kind):
            result = self.give(source, key, kind, "--json", *extra)
            self.assertEqual((result.exit, result.out), (2, ""), result)
            words = self.error_of(result)["words"]
            self.assertEqual(self.box.requests, [])
            if source == OURS:
                self.assertIn(OURS, words)
            if "0123" in key:
                self.assertNotIn("0123", words)
            if not key.strip():
                self.assertRegex(words, "(?i)not set|empty")

    def test_junk_is_refused_from_every_source(self) -> None:
        for source in (OURS, *SOURCES):
            for key in JUNK:
                self.refused(source, key)
        self.refused(SOURCES[0], JUNK[0], "openrouter", "--dry-run")

    def test_nothing_is_no_key(self) -> None:
        for source in (OURS, *SOURCES):
            for nothing in ("", " ", "\r", " \t\r"):
                self.refused(source, nothing)
        for name in ("UNSET", THEIRS):  # a key in place of the name is not repeated
            self.refused(f"--api-key-env={name}", "sk-or-v1-abc0123")

    def test_real_keys_pass_from_every_source(self) -> None:
        for key in FINE:
            for source in SOURCES:
                with self.subTest(source=source, key=key):
                    self.box.account.upstream = {}
                    self.assertEqual(self.give(source, key, "custom").exit, 0)
                    self.assertEqual(self.box.account.upstream["apiKey"], key)
            with Sandbox(api_key=key) as box, self.subTest(source=OURS, key=key):
                self.assertEqual(call_ops("balance", **box.env).exit, 0)
                self.assertEqual(box.requests[0].headers["Authorization"], f"Bearer {key}")

    def test_white_space_around_a_key_is_dropped(self) -> None:
        self.assertEqual(self.give(OURS, f" {DEFAULT_KEY}\r").exit, 0)
        for source in SOURCES[1:]:
            self.give(source, f" {THEIRS} \r")
            self.assertEqual(self.box.account.upstream.pop("apiKey"), THEIRS)

    def test_a_key_of_another_service_is_refused(self) -> None:
        for key in FOREIGN_TO_US:
            self.refused(OURS, key)
        for source in SOURCES:
            for kind, key in FOREIGN_TO_THEM:
                self.refused(source, key, kind)
        for source in SOURCES:
            for kind, key in AT_HOME:
                self.assertEqual(self.give(source, key, kind).exit, 0)
                self.assertEqual(self.sent(), [SET_UPSTREAM])


class Hidden(KeyTest):
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
                            result = self.give(SOURCES[1], THEIRS, "openrouter", *extra)
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

    def test_a_very_short_secret_hides_no_words(self) -> None:
        for key, reason in (("a", "an apple a day"), ("EMPTY", "the EMPTY set"), ("sk-1234", "x")):
            self.script(SET_UPSTREAM, reply({"error": reason}, 400))
            self.assertIn(reason, self.give(SOURCES[1], key, "custom").err)
            found = self.give(SOURCES[1], key, "custom", "--dry-run", "--json").json
            self.assertNotEqual(found["dry_run"]["body"]["apiKey"], key)
