"""Properties that hold for any input, not for examples alone.

They need Hypothesis, which the gate installs; on a bare Python they are skipped.
"""

from __future__ import annotations

import unicodedata
import unittest
from typing import Any

from support import (
    COMMANDS,
    DEFAULT_KEY,
    NOISE,
    THEIRS,
    WRITES,
    Fault,
    Result,
    Sandbox,
    call_ops,
)

try:
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ImportError:
    raise unittest.SkipTest("needs hypothesis: pip install hypothesis") from None

settings.register_profile(
    "gate",
    settings(max_examples=40, deadline=None, database=None, derandomize=True),
    suppress_health_check=list(HealthCheck),
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
NAME = st.one_of(st.sampled_from(FIELDS), TEXT)
JSON = st.recursive(
    LEAF,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAME, inner, max_size=6),
    max_leaves=25,
)
RECORD = st.dictionaries(st.sampled_from(FIELDS), LEAF)
SHAPED = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(("billing", "tenant", "upstream"), RECORD),
        **dict.fromkeys(("configured", "paymentUrl", "apiKey"), LEAF),
        **{"keys": st.lists(RECORD, max_size=3), "error": JSON},
    },
)


def check_clean(test: unittest.TestCase, result: Result) -> None:
    """What holds for every outcome."""
    test.assertIn(result.exit, DOCUMENTED, result)
    everything = result.out + result.err
    test.assertNotRegex(everything, NOISE)
    for char in set(everything) - {"\n"}:
        test.assertNotIn(unicodedata.category(char), {"Cc", "Cs", "Zl", "Zp"}, ascii(char))
    if result.exit not in (0, 4):
        test.assertEqual(result.out, "")


class AnyReply(unittest.TestCase):
    """Any answer, as any endpoint's."""

    def meet(self, name: str, fault: Fault) -> Result:
        argv, call = COMMANDS[name]
        with Sandbox() as box:
            box.account.card_saved = True
            box.service.create_key({})
            box.add_faults(call, *[fault] * 3)
            result = call_ops(*argv, **box.env, THEIRS=THEIRS)
            self.assertEqual(len(box.writes), 1 if name in WRITES else 0)
        check_clean(self, result)
        return result

    @given(st.sampled_from(sorted(COMMANDS)), st.one_of(JSON, SHAPED), st.integers(200, 599))
    def test_every_command_ends_in_a_documented_way_with_clean_output(
        self, name: str, body: Any, status: int
    ) -> None:
        status = 200 if status < 300 else status
        result = self.meet(name, Fault.reply(status, body))
        given = (DEFAULT_KEY, THEIRS) if name == "upstream_set" else (DEFAULT_KEY,)
        for secret in given:  # nobody can hide a secret that was never handed to it
            self.assertNotIn(secret, result.out + result.err)
        if status >= 500:
            self.assertEqual(result.exit, 6 if name == "keys_create" else 5)
        elif status >= 300:
            exits = {401: 3, 402: 4, 403: 3, 407: 2, 429: 5}
            self.assertEqual(result.exit, exits.get(status, 1))
        elif name != "keys_create":
            self.assertNotEqual(result.exit, 6)

    @given(st.sampled_from(sorted(COMMANDS)), st.binary(max_size=400))
    def test_any_bytes_are_no_answer(self, name: str, raw: bytes) -> None:
        result = self.meet(name, Fault(raw))
        expected = (6,) if name == "keys_create" else (5,) if name in WRITES else (1, 5)
        self.assertIn(result.exit, expected, result)


class AnyAmount(unittest.TestCase):
    @given(st.integers(-(2**63) + 1, 2**63 - 1))
    def test_a_balance_is_exact_in_json_and_never_more_than_there_is_in_text(
        self, microusd: int
    ) -> None:
        with Sandbox("0") as box:
            box.account.credit("so much", microusd)
            exact = call_ops("balance", "--json", **box.env).json["balance_usd"]
            text = call_ops("balance", **box.env).out
        sign = -1 if exact.startswith("-") else 1
        dollars, decimals = exact.lstrip("-").split(".")
        self.assertTrue(2 <= len(decimals) <= 6)
        self.assertEqual(sign * int(dollars + decimals.ljust(6, "0")), microusd)
        shown = text.split()[1].replace(",", "").replace("$", "").replace(".", "")
        self.assertLessEqual(int(shown) * 10_000, microusd)
        self.assertGreater((int(shown) + 1) * 10_000, microusd)

    @given(st.text(max_size=12))
    def test_text_that_is_no_amount_is_refused_without_repeating_it(self, text: str) -> None:
        with Sandbox() as box:
            argv = ("auto-topup", "--enable", f"--amount={text}", "--dry-run")
            result = call_ops(*argv, **box.env, CACHEFORGE_MAX_TOPUP_USD="100000000")
        check_clean(self, result)
        if result.exit == 0:
            self.assertRegex(text, r"\A[0-9]+(\.[0-9]{2})?([uU][sS][dD]|[cC])?\Z")
        else:
            self.assertEqual(result.exit, 2)
            self.assertTrue(len(text) < 6 or text not in result.err)
