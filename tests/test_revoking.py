"""Revoking: which key is in use, what guards it, and what counts as revoked."""

from __future__ import annotations

from typing import Any

from support import (
    DEFAULT_KEY,
    KEYS,
    Fault,
    JumpingClock,
    Result,
    SandboxTest,
    call_on,
    reply,
)

REVOKE = "POST /v1/account/keys/%s/revoke"
REVOKE_2 = REVOKE % "key_2"
LIVE = "cf_live_9abc0123456789ab"
MISSING = "(no prefix)"
# the account's own key, the prefixes that are listed, and which of them may be in use
IN_USE: tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...] = (
    (DEFAULT_KEY, ("cf_sandbox_0", "cf_1234567ab"), (True, False)),
    (DEFAULT_KEY, ("cf_1234567ab", "CF_SANDBOX_0"), (False, True)),
    (DEFAULT_KEY, (DEFAULT_KEY, "cf_1234567ab"), (True, False)),
    (DEFAULT_KEY, ("cf_sandb--cdef", "cf_12--9999"), (True, False)),
    (DEFAULT_KEY, ("cf_sandbxxxx", "cf_12345678"), (True, False)),  # a mask of letters
    (DEFAULT_KEY, ("cf_sand", "cf_1234567ab"), (None, False)),  # fewer than 8 characters
    (DEFAULT_KEY, ("cf_sa--cdef", "cf_12--3456"), (None, False)),
    (DEFAULT_KEY, ("cf_saxxxx", "cf_zzxxxx"), (None, False)),
    (DEFAULT_KEY, ("cf_s", "cf_1"), (None, False)),
    (DEFAULT_KEY, ("cf_s1111", "cf_2222"), (None, False)),  # four characters are enough
    (DEFAULT_KEY, ("cf_1111", "ab_2222"), (None, None)),  # three are not
    (DEFAULT_KEY, ("cf_sandbox_0", "cf_sandbox_0"), (None, None)),
    (DEFAULT_KEY, ("cf_1111", "cf_2222"), (None, None)),  # none of these: any of them
    (DEFAULT_KEY, (MISSING, "cf_1234567ab"), (None, False)),
    (DEFAULT_KEY, (None, 42, "cf_1234567ab"), (None, None, False)),
    (DEFAULT_KEY, ("****cdef", "cf_1234567ab"), (None, False)),
    (DEFAULT_KEY, ("cf_...", "cf_1234567ab"), (None, False)),
    (DEFAULT_KEY, ("cf_sandbox_\u2026", "cf_1234567ab"), (True, False)),
    (LIVE, ("cf_live_9abc", "cf_live_1111"), (True, False)),
    (LIVE, ("cf_live_1111", "cf_live_2222"), (None, None)),
    (LIVE, ("cf_live_****", "cf_live_2222"), (None, None)),
    (DEFAULT_KEY, ({"prefix": "cf_sandbox_0", "revoked": True}, "cf_1111"), (False, None)),
    (DEFAULT_KEY, ({"prefix": "cf_sandbox_0", "revokedAt": 1767225600}, "cf_sand"), (False, None)),
)


class Guarded(SandboxTest):
    def list_keys(self, *prefixes: Any) -> None:
        """Let the service list keys k0, k1, ... with these prefixes."""
        rows: list[dict[str, Any]] = []
        for number, prefix in enumerate(prefixes):
            row: dict[str, Any] = {"id": f"k{number}", "label": f"agent {number}"}
            if isinstance(prefix, dict):
                row.update(prefix)
            elif prefix != MISSING:
                row["prefix"] = prefix
            rows.append(row)
        self.route(KEYS, {"keys": rows})

    def test_which_key_is_in_use_and_that_it_is_not_revoked_without_force(self) -> None:
        for own, prefixes, expected in IN_USE:
            with self.subTest(own=own, prefixes=prefixes):
                self.box.account.keys[0].secret = self.box.account.api_key = own
                self.list_keys(*prefixes)
                found = self.ok("keys", "--json").json["keys"]
                self.assertEqual(tuple(row["in_use"] for row in found), expected)
                for row in found:
                    call = REVOKE % row["id"]
                    argv = ("keys", "--revoke", row["id"], "--yes")
                    if row["revoked"]:
                        self.assertIs(self.ok(*argv, "--json").json["already"], True)
                        continue
                    self.script(call, reply({"ok": True}))
                    if row["in_use"] is False:
                        self.ops(*argv)
                        self.assertEqual(self.sent(), [call])
                        continue
                    self.failure(2, *argv)
                    self.assertEqual(self.sent(), [])
                    self.ops(*argv, "--force")
                    self.assertEqual(self.sent(), [call])

    def test_a_key_is_revoked_only_if_that_is_said_plainly(self) -> None:
        said: tuple[tuple[dict[str, Any], Any], ...] = (
            *(({"revokedAt": "2026-01-02T03:04:05Z"}, True), ({"revokedAt": 1767225600}, True)),
            *(({"revoked": True}, True), ({"revoked": True, "revokedAt": None}, True)),
            *(({"revokedAt": None}, False), ({"revoked": False}, False), ({}, None)),
            *(({"revokedAt": "0001-01-01T00:00:00Z"}, None), ({"revokedAt": ""}, None)),
            *(({"revokedAt": "never"}, None), ({"revokedAt": {}}, None)),
            ({"revoked": False, "revokedAt": "0001-01-01T00:00:00Z"}, False),
            ({"revoked": False, "revokedAt": "2026-01-02T03:04:05Z"}, None),
        )
        for fields, revoked in said:
            with self.subTest(fields=fields):
                self.list_keys("cf_sandbox_0", {"prefix": "cf_other", **fields})
                self.assertIs(self.ok("keys", "--json").json["keys"][1]["revoked"], revoked)
                self.script(REVOKE % "k1", reply({"ok": True}))
                self.ops("keys", "--revoke", "k1", "--yes", "--json")
                self.assertEqual(self.sent(), [] if revoked else [REVOKE % "k1"])

    def test_ids_that_look_alike_do_not_get_round_the_guard(self) -> None:
        ours = {"id": "k", "prefix": "cf_sandbox_0"}
        for twin, marks in (("k", {}), ("k\u200b", {}), ("k\n", {}), ("k", {"revoked": True})):
            other = {"id": twin, "prefix": "cf_1234567ab", **marks}
            for rows in ((ours, other), (other, ours)):
                with self.subTest(rows=rows):
                    self.list_keys(*rows)
                    self.failure(2, "keys", "--revoke", "k", "--yes")
                    self.assertEqual(self.sent(), [])

    def test_the_best_match_beside_a_mask_stays_guarded(self) -> None:
        self.list_keys("cf_sandbox_0", "cf_...", "cf_1234567ab")
        first, second, third = (row["in_use"] for row in self.ok("keys", "--json").json["keys"])
        self.assertIn(first, (True, None))
        self.assertEqual((second, third), (None, False))

    def test_an_id_that_is_not_listed_needs_force_and_then_the_service_decides(self) -> None:
        call = REVOKE % "key_9"
        argv = ("keys", "--revoke", "key_9", "--yes")
        self.failure(2, *argv)
        self.assertEqual(self.sent(), [])
        for fault, code in ((reply({"ok": True}), 0), (reply(b"", 204), 0), (reply({}, 404), 1)):
            self.script(call, fault)
            result = self.ops(*argv, "--force", "--json")
            self.assertEqual((result.exit, self.sent()), (code, [call]), result)
            if code == 0:
                found = result.json
                self.assertIs(found["confirmed"], False)
                self.assertEqual(found["revoked"]["id"], "key_9")
        self.script(call, Fault())
        self.failure(5, *argv, "--force")

    def test_the_id_of_a_key_is_one_segment_of_the_path(self) -> None:
        for key_id in (".", "..", DEFAULT_KEY, "<hidden>", "k\udcff", "k\u200b1"):
            error = self.failure(2, "keys", "--revoke", key_id, "--yes", "--force")
            self.assertNotIn("bug", error["words"])
            self.assertEqual(self.sent(), [])
        for key_id, quoted in (("../keys?a#b", "..%2Fkeys%3Fa%23b"), ("-Lx9", "-Lx9")):
            self.list_keys("cf_sandbox_0", {"id": key_id, "prefix": "cf_123456"})
            self.ops("keys", f"--revoke={key_id}", "--yes")
            self.assertEqual(self.sent(), [REVOKE % quoted])


class Confirmed(SandboxTest):
    """The list of keys decides; more of this is in tests/transcripts/keys-revoke.md."""

    def setUp(self) -> None:
        super().setUp()
        self.box.service.create_key({})
        self.rows = self.box.service.keys(None)["keys"]

    def states(self, *marks: dict[str, Any] | None) -> list[Fault]:
        """Lists in which key_2 carries these marks, or is not listed."""
        own, row = self.rows
        bare = {name: value for name, value in row.items() if name != "revokedAt"}
        return [
            reply({"keys": [own] if mark is None else [own, {**bare, **mark}]}) for mark in marks
        ]

    def revoke(self, fault: Fault, *after: Fault) -> Result:
        """Revoke key_2 with this response and these lists afterwards."""
        self.script(REVOKE_2, fault)
        with self.after_a_write(KEYS, *after):
            argv = ("keys", "--revoke", "key_2", "--yes", "--json")
            return call_on(JumpingClock(), *argv, **self.box.env)

    def test_the_list_is_the_proof_and_may_lag_behind(self) -> None:
        open_, marked = {"revokedAt": None, "revoked": False}, {"revoked": True}
        for fault in (reply({"ok": True}), reply(b"OK"), Fault(), reply({}, 502)):
            for marks in ((marked,), (None,), (open_, marked), (open_, open_, None)):
                with self.subTest(fault=fault.raw[:40], marks=marks):
                    result = self.revoke(fault, *self.states(*marks))
                    self.assertEqual(result.exit, 0, result)
                    self.assertIs(result.json["confirmed"], True)
                    self.assertIs(result.json["already"], False)
                    self.assertEqual(self.sent(), [REVOKE_2])

    def test_a_list_that_says_no_is_believed_after_three_reads(self) -> None:
        still = self.states(*[{"revoked": False, "revokedAt": None}] * 9)
        for fault, code in ((reply({"ok": True}), 1), (Fault(), 5)):
            self.assertEqual(self.revoke(fault, *still).exit, code)
            calls = self.box.calls()
            self.assertEqual(calls[calls.index(REVOKE_2) :].count(KEYS), 3)

    def test_a_403_after_the_own_key_was_revoked_proves_nothing(self) -> None:
        with self.after_a_write(KEYS, *[reply({"error": "no"}, 403)] * 3):
            self.failure(5, "keys", "--revoke", "key_1", "--yes", "--force")

    def test_what_cannot_be_read_back_exits_5(self) -> None:
        for fault in (reply({"ok": True}), Fault()):
            for after in (reply({}, 400), reply({}, 401), reply(b"<html>"), Fault()):
                self.assertEqual(self.revoke(fault, *[after] * 9).exit, 5)
