"""Settings: the environment, variable by variable, in one value."""

from __future__ import annotations

import unittest

from support import SandboxTest, ops, run_ops

KEY = "cf_0123456789abcdefghij"
BASE = "CACHEFORGE_BASE_URL"


def settings(**environ: str) -> ops.Settings:
    return ops.Settings({"CACHEFORGE_API_KEY": KEY, **environ})


class BaseUrl(unittest.TestCase):
    def test_slash_and_v1_at_the_end_mean_the_same_service(self) -> None:
        for text, base in (
            ("", "https://app.anvil-ai.io"),
            ("  ", "https://app.anvil-ai.io"),
            ("https://gw.example.com", "https://gw.example.com"),
            ("https://gw.example.com/", "https://gw.example.com"),
            ("https://gw.example.com/v1", "https://gw.example.com"),
            ("https://gw.example.com/v1//", "https://gw.example.com"),
            ("HTTPS://GW.Example.com:443/v1/", "https://gw.example.com"),
            ("https://gw.example.com:8443/team/v1", "https://gw.example.com:8443/team"),
            ("https://gw.example.com/dev1", "https://gw.example.com/dev1"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost", "http://localhost"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
        ):
            self.assertEqual(settings(**{BASE: text}).base_url, base)

    def test_http_beyond_loopback_needs_the_variable(self) -> None:
        for host in ("gw.example.com", "10.0.0.1", "127.0.0.1.example.com", "0.0.0.0", "127.1"):
            with self.assertRaisesRegex(ops.Usage, "unencrypted", msg=host):
                settings(**{BASE: f"http://{host}"})
            allowed = settings(**{BASE: f"http://{host}", "CACHEFORGE_ALLOW_INSECURE_HTTP": "1"})
            self.assertEqual(allowed.base_url, f"http://{host}")
        for other in ("0", "2", "true", "yes"):
            with self.assertRaisesRegex(ops.Usage, "unencrypted", msg=other):
                settings(**{BASE: "http://gw.test", "CACHEFORGE_ALLOW_INSECURE_HTTP": other})

    def test_a_port_outside_1_to_65535_is_refused(self) -> None:
        for port in ("0", "65536", "70000", "99999"):
            with self.assertRaisesRegex(ops.Usage, "port"):
                settings(**{BASE: f"https://gw.example.com:{port}"})
        for port in ("1", "65535"):
            address = f"https://gw.example.com:{port}"
            self.assertEqual(settings(**{BASE: address}).base_url, address)


class BadInput(SandboxTest):
    """Each bad setting: one clear line, exit 2, nothing sent, the value not repeated."""

    def refused(self, name: str, value: str) -> None:
        with self.subTest(name=name, value=value):
            result = self.fails(2, "balance", **{name: value})
            self.assertIn(name, result.err)
            self.assertLessEqual(len(result.err.splitlines()), 2, result)
            if value.strip(" :/htps"):
                self.assertNotIn(value.strip(), result.err)
            self.assertEqual(self.box.requests, [])

    def test_base_urls(self) -> None:
        for value in (
            "app.anvil-ai.io",
            "file:///etc/passwd",
            "ftp://gw.example.com",
            "http://gw.example.com",
            "https://user:pass@gw.example.com",
            "https://gw.example.com?x=1",
            "https://gw.example.com/#x",
            "https://gw.example.com:0",
            "https://gw.example.com:70000",
            "https://",
            "https://gw.example.com\\@evil.example",
            "https://gw .example.com",
            "https://gw.example.com/\r\nX: y",
            "https://gẅ.example.com",
        ):
            self.refused(BASE, value)

    def test_keys(self) -> None:
        for value in ("", "   ", "cf_abc\ndef", "cf_abc def", "cf_äbc", "cf_abc\x01", "cf_a\x7f"):
            self.refused("CACHEFORGE_API_KEY", value)

    def test_caps(self) -> None:
        for value in ("many", "-1", "10.5", "1e3", "９", "1_000", "9" * 10):  # noqa: RUF001
            self.refused("CACHEFORGE_MAX_TOPUP_USD", value)

    def test_no_key_at_all_says_how_to_set_one(self) -> None:
        result = run_ops("balance")
        self.assertEqual((result.exit, result.out), (2, ""))
        self.assertIn("CACHEFORGE_API_KEY is not set", result.err)
        self.assertIn("export CACHEFORGE_API_KEY=", result.err)

    def test_white_space_around_a_key_is_dropped(self) -> None:
        self.ok("balance", CACHEFORGE_API_KEY=f"  {self.box.books.api_key}\n")


class MaskedKey(unittest.TestCase):
    def test_the_mask_keeps_too_little_to_use(self) -> None:
        for key, mask in (
            (KEY, "cf_...ghij"),
            ("cfk_short", "cfk_..."),
            ("x" * 16, "...xxxx"),
            ("x" * 15, "..."),
        ):
            self.assertEqual(ops.Settings({"CACHEFORGE_API_KEY": key}).mask_key(), mask)
