"""Settings: the environment, variable by variable."""

from __future__ import annotations

from contract import ContractTest
from support import call_ops

BASE = "CACHEFORGE_BASE_URL"
KEY = "CACHEFORGE_API_KEY"
INSECURE = "CACHEFORGE_ALLOW_INSECURE_HTTP"
DEFAULT = "https://app.anvil-ai.io"
SETTING_ONLY = ("auto-topup", "--disable", "--dry-run", "--json")  # sends nothing at all


class BaseUrl(ContractTest):
    def address(self, **env: str) -> str:
        """The address that the tool would send to, up to the path of the API."""
        url: str = self.ok(*SETTING_ONLY, **env).json["dry_run"]["url"]
        tail = "/v1/account/billing/auto-topup"
        self.assertTrue(url.endswith(tail), url)
        return url[: -len(tail)]

    def test_slash_and_v1_at_the_end_mean_the_same_service(self) -> None:
        for text, base in (
            ("", DEFAULT),
            ("  ", DEFAULT),
            ("https://gw.example.com", "https://gw.example.com"),
            ("https://gw.example.com/", "https://gw.example.com"),
            ("https://gw.example.com/v1", "https://gw.example.com"),
            ("https://gw.example.com/v1//", "https://gw.example.com"),
            ("HTTPS://GW.Example.com/v1/", "https://gw.example.com"),
            ("https://gw.example.com:8443/team/v1", "https://gw.example.com:8443/team"),
            ("https://gw.example.com/dev1", "https://gw.example.com/dev1"),
            ("https://gw.example.com:1", "https://gw.example.com:1"),
            ("https://gw.example.com:65535", "https://gw.example.com:65535"),
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("http://localhost", "http://localhost"),
            ("http://[::1]:8080/", "http://[::1]:8080"),
        ):
            with self.subTest(text):
                self.assertEqual(self.address(**{BASE: text}).lower(), base)

    def test_http_beyond_loopback_needs_the_variable(self) -> None:
        for host in ("gw.example.com", "10.0.0.1", "127.0.0.1.example.com", "localhost.example"):
            url = f"http://{host}"
            self.refused(*SETTING_ONLY, **{BASE: url}, says=INSECURE)
            self.assertEqual(self.address(**{BASE: url, INSECURE: "1"}), url)
        for other in ("0", "2", "true", "yes", ""):
            self.refused(*SETTING_ONLY, **{BASE: "http://gw.example.com", INSECURE: other})


class BadInput(ContractTest):
    """Each bad setting: exit 2, its name, nothing sent, the value not repeated."""

    def bad(self, name: str, *values: str, **env: str) -> None:
        for value in values:
            result = self.refused("balance", says=name, **{**env, name: value})
            self.assertNotIn("Sup3rS3cret", result.err)
            if name == KEY and value.strip() and value != "cf_...":
                self.assertNotIn(value.strip(), result.err)

    def test_base_urls(self) -> None:
        self.bad(
            BASE,
            *("app.anvil-ai.io", "file:///etc/passwd", "ftp://gw.example.com", "https://"),
            *("http://gw.example.com", "https://user:Sup3rS3cret@gw.example.com"),
            *("https://gw.example.com?x=1", "https://gw.example.com/#x"),
            *(f"https://gw.example.com:{port}" for port in (0, 65536, 70000)),
            *("https://gw.example.com\\@evil.example", "https://gw .example.com"),
            "https://gw.example.com/\r\nX: y",
        )

    def test_keys(self) -> None:
        self.bad(KEY, "", "   ", "cf_abc\ndef", "cf_abc def", "cf_\xe4bc", "cf_abc\x01", "cf_a\x7f")

    def test_keys_in_quotes_placeholders_and_other_providers_keys_are_not_sent(self) -> None:
        self.bad(KEY, '"cf_0123456789abcdef"', "'cf_0123456789abcdef'", "cf_...")
        self.bad(KEY, "sk-or-v1-0123456789abcdef", "sk-ant-0123456789abcdef", "sk-0123456789abcdef")

    def test_caps(self) -> None:
        self.bad("CACHEFORGE_MAX_TOPUP_USD", "many", "-1", "10.5", "1e3", "\uff19", "1_000")

    def test_no_key_at_all_says_which_variable_to_set(self) -> None:
        result = call_ops("balance")
        self.assertEqual((result.exit, result.out), (2, ""))
        self.assertIn(KEY, result.err)


class ApiKey(ContractTest):
    def test_white_space_around_it_is_dropped(self) -> None:
        self.ok("balance", **{KEY: f"  {self.box.books.api_key}\n"})

    def test_an_older_key_works(self) -> None:
        self.box.books.keys[0].secret = "cfk_0123456789"
        self.ok("balance", **{KEY: "cfk_0123456789"})

    def test_info_shows_too_little_of_it_to_use(self) -> None:
        for key, last in (
            ("cf_0123456789abcdefghij", "ghij"),
            ("cfk_short", ""),
            ("x" * 15, ""),
        ):
            self.box.books.keys[0].secret = key
            masked = self.ok("info", "--json", **{KEY: key}).json["api_key"]
            self.assertTrue(masked.endswith(last))
            for start in range(3, len(key) - 5):
                self.assertNotIn(key[start : start + 5], masked)
