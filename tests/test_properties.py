"""Properties that hold for any input, not for examples alone.

They need Hypothesis, which the gate installs; on a bare Python they are skipped.
"""

from __future__ import annotations

import json
import unicodedata
import unittest
from typing import Any

from support import DEFAULT_KEY, Fault, Result, Sandbox, call_ops, ops
from test_faults import COMMANDS, THEIRS, WRITES

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError:
    raise unittest.SkipTest("needs hypothesis: pip install hypothesis") from None

settings.register_profile(
    "gate",
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    database=None,
    derandomize=True,
)
settings.load_profile("gate")

DOCUMENTED = {0, 1, 2, 3, 4, 5, 6, 130}
FIELDS = (
    *("billing", "creditBalanceMicrousd", "autoTopupEnabled", "autoTopupThresholdCents"),
    *("autoTopupAmountCents", "defaultPaymentMethodSet", "paymentUrl", "tenant", "id", "name"),
    *("status", "upstreamConfigured", "activeKeys", "configured", "upstream", "kind", "baseUrl"),
    *("keys", "prefix", "label", "createdAt", "revokedAt", "lastUsedAt", "apiKey", "error"),
    *("message", "code"),
)
TEXT = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(min_codepoint=0, max_codepoint=0x2FFF), max_size=60),
    st.sampled_from([DEFAULT_KEY, f"x{THEIRS}y", "https://pay.example.com/x", "\x1b[31m", "a\nb"]),
)
LEAF = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT)
JSON = st.recursive(
    LEAF,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.sampled_from(FIELDS), TEXT), inner, max_size=6),
    ),
    max_leaves=25,
)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        "billing": st.dictionaries(st.sampled_from(FIELDS), LEAF),
        "tenant": st.dictionaries(st.sampled_from(FIELDS), LEAF),
        "keys": st.lists(st.dictionaries(st.sampled_from(FIELDS), LEAF), max_size=3),
        "upstream": st.dictionaries(st.sampled_from(FIELDS), LEAF),
        "configured": LEAF,
        "paymentUrl": LEAF,
        "apiKey": LEAF,
        "error": JSON,
    },
)


def check_clean(test: unittest.TestCase, result: Result) -> None:
    """What holds for every outcome."""
    test.assertIn(result.exit, DOCUMENTED, result)
    everything = result.out + result.err
    test.assertNotIn("Traceback", everything)
    test.assertNotIn("mistake in this program", everything)
    for char in set(everything) - {"\n"}:
        test.assertNotIn(unicodedata.category(char), {"Cc", "Cs", "Zl", "Zp"}, ascii(char))
    if result.exit not in (0, 4):
        test.assertEqual(result.out, "")


class AnyReply(unittest.TestCase):
    """Any JSON with any status, as any endpoint's reply."""

    @given(st.sampled_from(sorted(COMMANDS)), st.one_of(JSON, SHAPED), st.integers(200, 599))
    def test_every_command_ends_in_a_documented_way_with_clean_output(
        self, name: str, body: Any, status: int
    ) -> None:
        argv, call = COMMANDS[name]
        status = 200 if status < 300 else status
        with Sandbox() as box:
            box.books.card_saved = True
            box.service.create_key({})
            box.script(call, *[Fault.reply(status, body)] * 3)
            result = call_ops(*argv, **box.env, THEIRS=THEIRS)
            check_clean(self, result)
            given = (DEFAULT_KEY, THEIRS) if name == "upstream_set" else (DEFAULT_KEY,)
            for secret in given:  # nobody can hide a secret that was never handed to it
                self.assertNotIn(secret, result.out + result.err)
            self.assertEqual(len(box.writes), 1 if name in WRITES else 0)
            if status >= 500:
                self.assertEqual(result.exit, 6 if name in WRITES else 5)

    @given(st.sampled_from(sorted(COMMANDS)), st.binary(max_size=400))
    def test_any_bytes_as_an_answer(self, name: str, raw: bytes) -> None:
        argv, call = COMMANDS[name]
        with Sandbox() as box:
            box.books.card_saved = True
            box.service.create_key({})
            box.script(call, *[Fault(raw)] * 3)
            result = call_ops(*argv, **box.env, THEIRS=THEIRS)
            check_clean(self, result)
            self.assertIn(result.exit, (6,) if name in WRITES else (1, 5), result)


class AnyText(unittest.TestCase):
    @given(st.text())
    def test_cleaning_leaves_one_line_and_is_done_after_one_go(self, text: str) -> None:
        cleaned = ops.clean(text)
        self.assertLessEqual(len(cleaned.splitlines()), 1)
        self.assertEqual(ops.clean(cleaned), cleaned)

    @given(st.text(min_size=4, max_size=20, alphabet="abc_123-%\\"), st.text(), st.text())
    def test_what_is_hidden_is_not_there(self, secret: str, before: str, after: str) -> None:
        if secret in "<hidden>":
            return
        self.assertNotIn(secret, ops.hide(before + secret + after, [secret]))

    @given(st.text(max_size=2000), st.integers(10, 400))
    def test_shortening_bounds(self, text: str, limit: int) -> None:
        self.assertLessEqual(len(ops.shorten(text, limit)), limit)

    @given(st.lists(st.lists(TEXT.map(ops.clean), min_size=3, max_size=3), min_size=1, max_size=5))
    def test_a_table_has_a_line_for_each_row(self, rows: list[list[str]]) -> None:
        self.assertEqual(len("\n".join(ops.table(rows)).split("\n")), len(rows))


class AnyAmount(unittest.TestCase):
    @given(st.integers(-(2**63), 2**63))
    def test_text_never_shows_more_than_there_is(self, microusd: int) -> None:
        shown = ops.microusd_text(microusd).replace(",", "").replace("$", "")
        dollars, cents = shown.lstrip("-").split(".")
        shown_microusd = (int(dollars) * 100 + int(cents)) * 10_000
        shown_microusd = -shown_microusd if shown.startswith("-") else shown_microusd
        self.assertLessEqual(shown_microusd, microusd)
        self.assertGreater(shown_microusd + 10_000, microusd)

    @given(st.integers(-(2**63), 2**63))
    def test_the_exact_form_comes_back(self, microusd: int) -> None:
        text = ops.microusd_exact(microusd)
        dollars, decimals = text.lstrip("-").split(".")
        value = int(dollars) * 1_000_000 + int(decimals.ljust(6, "0"))
        self.assertEqual(-value if text.startswith("-") else value, microusd)
        self.assertTrue(2 <= len(decimals) <= 6)

    @given(st.integers(0, 10**15 - 1), st.sampled_from(["usd", "c"]))
    def test_amounts_are_read_as_they_are_written(self, count: int, unit: str) -> None:
        cents = count * 100 if unit == "usd" else count
        self.assertEqual(ops.read_cents(f"{count}{unit}", "usd"), cents)
        self.assertEqual(ops.read_cents(str(count), unit), cents)

    @given(st.text())
    def test_any_other_text_is_refused_or_all_ascii_digits(self, text: str) -> None:
        try:
            cents = ops.read_cents(text, "usd", decimals=True)
        except ValueError as error:
            self.assertTrue(len(text) < 4 or text not in str(error))
        else:
            self.assertRegex(text, r"\A[0-9]+(\.[0-9]{2})?([uU][sS][dD]|[cC])?\Z")
            self.assertGreaterEqual(cents, 0)

    @given(st.integers(-(10**12), 10**12))
    def test_the_suggested_topup_covers_what_is_missing(self, microusd: int) -> None:
        usd = ops.enough_usd(microusd)
        self.assertGreaterEqual(usd * 1_000_000, microusd)
        self.assertGreaterEqual(usd, 10)
        self.assertTrue(usd == 10 or (usd - 1) * 1_000_000 < microusd)


WORDS = st.one_of(
    st.sampled_from(
        [
            *("balance", "topup", "auto-topup", "upstream", "keys", "info", "--json", "--min"),
            *("--amount", "--method", "--enable", "--disable", "--threshold", "--set", "--kind"),
            *("--create", "--revoke", "--yes", "--force", "--wait", "--dry-run", "--timeout"),
            *("--api-key-env", "--base-url", "10", "1000c", "5usd", "stripe", "custom", "key_1"),
            *("--", "-", "-h", "--help", "--version", "", "=", "--amount=", "--wait=1"),
        ]
    ),
    st.text(max_size=12),
)


class AnyCommandLine(unittest.TestCase):
    @given(st.lists(WORDS, max_size=7))
    def test_the_parser_never_crashes_and_repeats_nothing(self, argv: list[str]) -> None:
        argv = [word for word in argv if word != "--save"]
        with Sandbox() as box:
            result = call_ops(*argv, **box.env)
        self.assertIn(result.exit, DOCUMENTED)
        self.assertNotIn("mistake in this program", result.err)
        if result.exit == 2 and "--json" in argv:
            self.assertEqual(json.loads(result.err.splitlines()[-1])["error"]["code"], "usage")


class AnySetting(unittest.TestCase):
    @given(st.text(max_size=60))
    def test_any_base_url_is_refused_or_plain(self, text: str) -> None:
        try:
            url = ops.Settings({"CACHEFORGE_API_KEY": "cf_x", "CACHEFORGE_BASE_URL": text}).base_url
        except ops.Usage:
            return
        self.assertRegex(url, r"\Ahttps?://[a-z0-9._\[\]:-]+(/[!-~]*)?\Z")

    @given(st.text(max_size=60))
    def test_any_key_is_refused_or_visible_ascii(self, text: str) -> None:
        try:
            key = ops.Settings({"CACHEFORGE_API_KEY": text}).api_key
        except ops.Usage:
            return
        self.assertRegex(key, r"\A[!-~]+\Z")


if __name__ == "__main__":
    unittest.main()
