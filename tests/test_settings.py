"""Settings: the environment, addresses, and amounts that are none."""

from __future__ import annotations

from support import (
    AUTHORITY,
    BILLING,
    DEFAULT_KEY,
    Proxy,
    Sandbox,
    SandboxTest,
    call_ops,
    listening,
    server_context,
)

PASSWORD = "Sup3rS3cret0123456789"


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

    def test_addresses_of_the_service(self) -> None:
        port = self.box.url.rpartition(":")[2]
        for base in ("", "/", "/v1", "/v1/"):
            for host in ("127.0.0.1", "localhost"):
                result = self.ops("balance", CACHEFORGE_BASE_URL=f"http://{host}:{port}{base}")
                self.assertEqual(result.exit, 0, result)
        self.assertEqual(set(self.box.calls()), {BILLING})
        for base in (
            *("http://example.com", "http://127.0.0.1.example.com", "http://localhost.example"),
            *(f"https://me:{PASSWORD}@h.example", "https://me@h.example", "https://h.example?x=1"),
            *("https://h.example#x", "https://h.example/?", "ftp://h.example", "h.example"),
            *("//h.example", "https://", "https:///x", "https://h.example:99999", "https://[::1"),
            *("https://a b.example", "https://h.example\\@evil.example", "https://h\xe4.example"),
            *(f"{self.box.url}?x=1", f"{self.box.url}#x", self.box.url.replace("//", "//me:pw@")),
        ):
            with self.subTest(base=base):
                error = self.failure(2, "balance", "--timeout", "1", CACHEFORGE_BASE_URL=base)
                self.assertIn("CACHEFORGE_BASE_URL", error["words"])
                self.assertNotIn(PASSWORD, str(error))


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
