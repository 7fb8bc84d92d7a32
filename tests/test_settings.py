"""Settings: keys, the other variables, addresses and amounts; what passes and what is refused."""

from __future__ import annotations

from support import (
    AUTHORITY,
    DEFAULT_KEY,
    SET_UPSTREAM,
    Proxy,
    Result,
    Sandbox,
    SandboxTest,
    call_ops,
    listening,
    server_context,
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


class Keys(SandboxTest):
    """The one check that every key passes; pages of transcripts have its words."""

    def give(self, source: str, key: str, kind: str = "openrouter", *extra: str) -> Result:
        """Run a command with a key that comes from there."""
        if source == OURS:
            return self.ops("balance", *extra, CACHEFORGE_API_KEY=key)
        base = ("--base-url", "https://x.example") if kind == "custom" else ()
        argv = ("upstream", "--set", "--kind", kind, *base, source.format(key), *extra)
        return self.ops(*argv, stdin=f"{key}\n", THEIRS=key)

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


class Variables(SandboxTest):
    def test_white_space_around_each_is_dropped(self) -> None:
        for name, value in (
            *(("CACHEFORGE_API_KEY", DEFAULT_KEY), ("CACHEFORGE_BASE_URL", self.box.url)),
            *(("CACHEFORGE_MAX_TOPUP_USD", "10"), ("SSL_CERT_FILE", AUTHORITY)),
        ):
            for shown in (f"{value}\r", f" {value} ", f"\t{value}\r\n"):
                with self.subTest(name=name, shown=shown):
                    self.assertEqual(self.ops("topup", **{name: shown}).exit, 0)
        with Sandbox(tls=server_context("good.pem")) as box:
            result = call_ops("balance", **box.env, SSL_CERT_FILE=f" {AUTHORITY}\r")
            self.assertEqual(result.exit, 0, result)
        proxy = Proxy(int(self.box.url.rpartition(":")[2]))
        with listening(proxy.serve) as url:
            env = {"HTTP_PROXY": f"{url}\r", "CACHEFORGE_ALLOW_INSECURE_HTTP": "1\r"}
            result = self.ops("balance", CACHEFORGE_BASE_URL="http://service.test", **env)
            self.assertEqual(result.exit, 0, result)
            proxy.heard = b""
            env["CACHEFORGE_BASE_URL"] = "http://no-such-host.invalid"
            for none in (".invalid\r", "*\r"):
                result = self.ops("balance", "--timeout", "2", **env, NO_PROXY=none)
                self.assertEqual((result.exit, proxy.heard), (5, b""), result)

    def test_addresses_that_are_none(self) -> None:
        for base in (
            *("http://localhost.example", f"https://{THEIRS}@h.example", "https://h.example#x"),
            *("https://h.example/?", "//h.example", "https:///x", "https://[::1"),
            *("https://h\xe4.example", f"{self.box.url}?x=1", f"{self.box.url}#x"),
            self.box.url.replace("//", "//me:pw@"),
        ):
            with self.subTest(base=base):
                error = self.failure(2, "balance", "--timeout", "1", CACHEFORGE_BASE_URL=base)
                self.assertIn("CACHEFORGE_BASE_URL", error["words"])
                self.assertNotIn(THEIRS, str(error))


class Amounts(SandboxTest):
    def test_what_is_no_amount(self) -> None:
        for number in (
            *("1_000", "\uff11\uff10", "1e3", "+5", "-5", "nan", "inf", "", "0x10", "ten", "1,000"),
            *("$20", "20$", "20 usd", "10eur", "10USDT", "\u0661\u0660"),
        ):
            for command in ("topup --amount", "auto-topup --enable --amount", "balance --min"):
                *words, option = command.split()
                with self.subTest(command=command, number=number):
                    self.failure(2, *words, f"{option}={number}")
        for line in ("topup --amount=10.5", "topup --amount=10.50usd", "balance --min=2.555"):
            self.failure(2, *line.split())
        self.assertEqual(self.box.requests, [])
