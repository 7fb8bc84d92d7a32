"""Keys in and out: saving a new one, handing over the provider's, rehearsing writes."""

from __future__ import annotations

import json
import os
import stat
import tempfile
import unittest
from pathlib import Path
from typing import Any

from support import DEFAULT_KEY, Fault, SandboxTest, ops

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

CREATE = "POST /v1/account/keys"
THEIRS = "sk-or-v1-Sup3rS3cret"


class Save(SandboxTest):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name) / "new.key"
        self.argv = ("keys", "--create", "--save", str(self.path))

    def test_the_key_goes_into_the_file_and_nowhere_else(self) -> None:
        for extra in ((), ("--json",), ("--verbose",)):
            with self.subTest(extra=extra):
                result = self.ops(*self.argv, *extra)
                made = self.box.books.keys[-1]
                self.assertEqual(result.exit, 0)
                self.assertEqual(self.path.read_text(), made.secret + "\n")
                self.assertNotIn(made.secret, result.out + result.err)
                for part in (made.id, made.prefix, str(self.path)):
                    self.assertIn(part, result.out)
                self.path.unlink()

    def test_json(self) -> None:
        found = self.ok(*self.argv, "--json").json
        made = self.box.books.keys[-1]
        expected = {"id": made.id, "prefix": made.prefix, "saved_to": str(self.path)}
        self.assertEqual(found, expected)

    @unittest.skipIf(os.name == "nt", "no file modes on Windows")
    def test_only_its_owner_can_read_it(self) -> None:
        before = os.umask(0)
        try:
            self.ok(*self.argv)
        finally:
            os.umask(before)
        self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)

    def test_an_existing_file_is_never_overwritten(self) -> None:
        self.path.write_text("precious")
        self.assertIn("exists", self.fails(2, *self.argv).err)
        self.assertEqual(self.path.read_text(), "precious")
        self.assertEqual(self.box.requests, [])

    @unittest.skipIf(os.name == "nt", "symlinks need privileges on Windows")
    def test_no_symlink_is_followed_not_even_a_dangling_one(self) -> None:
        target = self.path.with_name("target")
        self.path.symlink_to(target)
        self.fails(2, *self.argv)
        self.assertFalse(target.exists())
        self.assertEqual(self.box.requests, [])

    def test_a_path_that_cannot_be_written_costs_nothing(self) -> None:
        for path in (str(self.path / "below"), str(self.path.parent), "a\0b", ""):
            with self.subTest(path=path):
                self.fails(2, "keys", "--create", f"--save={path}")
        self.assertEqual(self.box.requests, [])

    def test_a_file_that_somebody_else_removed_is_gone_all_the_same(self) -> None:
        file = ops.PrivateFile(str(self.path))
        file.keep("x")
        self.path.unlink()
        file.discard()
        self.assertFalse(self.path.exists())

    def test_the_file_is_removed_again_if_no_key_was_made(self) -> None:
        for exit_code, fault in (
            (1, Fault.reply(400, {"error": "no"})),
            (3, Fault.reply(401, {"error": "no"})),
            (6, Fault.reply(500, {"error": "no"})),
            (6, Fault(end="reset")),
            (6, Fault.reply(200, {"prefix": "cf_x"})),
        ):
            self.box.script(CREATE, fault)
            self.fails(exit_code, *self.argv)
            self.assertFalse(self.path.exists())

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_a_file_that_takes_no_more_exits_6_and_names_the_key_to_revoke(self) -> None:
        least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
        try:
            result = self.ops(*self.argv)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
        self.assertEqual((result.exit, result.out), (6, ""), result)
        self.assertIn("could not be saved: File too large", result.err)
        made = self.box.books.keys[-1]
        self.assertIn(f"keys --revoke {made.id}", result.err)
        self.assertNotIn(made.secret, result.err)
        self.assertFalse(self.path.exists())


class LostKey(unittest.TestCase):
    def test_the_hint_says_which_key_to_revoke_as_well_as_it_can(self) -> None:
        for key_id, prefix, words in (
            ("key_9", "cf_n", "{ops} keys --revoke key_9 --yes"),
            (None, "cf_n", "the one with the prefix cf_n"),
            (None, None, "the newest one"),
        ):
            key = ops.NewKey(id=key_id, prefix=prefix, api_key="cf_new")
            self.assertIn(words, ops.lost_key_hint(key))
            self.assertNotIn("cf_new", ops.lost_key_hint(key))


class ProviderKey(SandboxTest):
    argv = ("upstream", "--set", "--kind", "openrouter")

    def stored(self) -> str | None:
        return self.box.books.upstream.get("apiKey")

    def test_from_a_variable(self) -> None:
        self.ok(*self.argv, "--api-key-env", "THEIRS", THEIRS=f" {THEIRS}\n")
        self.assertEqual(self.stored(), THEIRS)

    def test_any_word_but_our_own_key_will_do(self) -> None:
        for word in ("aa", "zz", DEFAULT_KEY + "x"):
            argv = ("upstream", "--set", "--kind", "anthropic", "--api-key-env", "THEIRS")
            self.ok(*argv, THEIRS=word)
            self.assertEqual(self.stored(), word)

    def test_a_name_that_no_variable_has_holds_no_key(self) -> None:
        for name in ("A-B", "", "1A", "A B", THEIRS):
            self.assertNotIn(THEIRS, self.fails(2, *self.argv, f"--api-key-env={name}").err)
        self.assertEqual(self.box.requests, [])

    def test_from_a_line_of_standard_input(self) -> None:
        self.ok(*self.argv, "--api-key", "-", stdin=f"{THEIRS}\nrest\n")
        self.assertEqual(self.stored(), THEIRS)

    def test_from_a_pipe_into_a_process(self) -> None:
        result = self.process(*self.argv, "--api-key", "-", stdin=f"{THEIRS}\r\n".encode())
        self.assertEqual((result.exit, result.err), (0, ""))
        self.assertEqual(self.stored(), THEIRS)

    def test_what_is_no_text_is_no_key(self) -> None:
        for encoding in ("utf-8:strict", "latin-1"):
            argv = (*self.argv, "--api-key", "-")
            result = self.process(*argv, stdin=b"\xff\xfe\n", PYTHONIOENCODING=encoding)
            self.assertEqual((result.exit, result.out, self.box.requests), (2, "", []), result)

    def test_on_the_command_line_it_works_with_one_warning_that_names_both_others(self) -> None:
        result = self.ops(*self.argv, "--api-key", THEIRS)
        self.assertEqual((result.exit, self.stored()), (0, THEIRS))
        self.assertEqual(len(result.err.splitlines()), 1)
        self.assertIn("--api-key-env NAME", result.err)
        self.assertIn("--api-key -", result.err)

    def test_nothing_usable_exits_2_and_sends_nothing(self) -> None:
        self.fails(2, *self.argv, "--api-key-env", "NOT_SET")
        self.fails(2, *self.argv, "--api-key-env", "THEIRS", THEIRS="two words")
        for stdin in ("", "\n", "two words\n", "schlüssel\n"):
            self.fails(2, *self.argv, "--api-key", "-", stdin=stdin)
        result = self.process(*self.argv, "--api-key", "-", stdin=b"\xff\xfe\n")
        self.assertEqual(result.exit, 2, result)
        self.assertEqual(self.box.requests, [])

    def test_the_accounts_own_key_is_not_handed_to_the_provider(self) -> None:
        self.fails(2, *self.argv, "--api-key-env", "CACHEFORGE_API_KEY")
        self.assertEqual(self.box.requests, [])

    def test_a_key_of_another_provider_is_refused_before_it_is_sent(self) -> None:
        for kind, key in (
            ("anthropic", "sk-or-v1-abcdef"),
            ("openrouter", "sk-ant-abcdef"),
            ("openai", "sk-ant-abcdef"),
            ("openai", "sk-or-v1-abcdef"),
        ):
            argv = ("upstream", "--set", "--kind", kind, "--api-key-env", "THEIRS")
            self.assertIn("by its prefix", self.fails(2, *argv, THEIRS=key).err)
        self.assertEqual(self.box.requests, [])


class DryRun(SandboxTest):
    """Every write, rehearsed: the request is shown, and no write reaches the server."""

    def rehearse(self, *argv: str, stdin: str = "", **env: str) -> dict[str, object]:
        text = self.ops(*argv, "--dry-run", stdin=stdin, **env)
        self.assertEqual(text.exit, 0, text)
        self.assertIn("nothing was sent", text.out)
        result = self.ops(*argv, "--dry-run", "--json", stdin=stdin, **env)
        self.assertEqual((result.exit, self.box.writes), (0, []), result)
        for secret in (DEFAULT_KEY, THEIRS):
            self.assertNotIn(secret, text.out + text.err + result.out + result.err)
        shown = result.json["dry_run"]
        self.assertIn(shown["url"], text.out)
        self.assertIn(json.dumps(shown["body"], separators=(",", ":")), text.out)
        self.assertTrue(shown["url"].startswith(self.box.url + "/v1/account/"))
        return {**shown, "url": shown["url"][len(self.box.url) :]}

    def test_topup(self) -> None:
        for extra in ((), ("--wait",)):
            self.assertEqual(
                self.rehearse("topup", "--amount", "25", *extra),
                {
                    "method": "POST",
                    "url": "/v1/account/billing/topup",
                    "body": {"amountUsd": 25, "method": "stripe"},
                },
            )

    def test_auto_topup(self) -> None:
        shown = self.rehearse("auto-topup", "--enable")
        body = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
        self.assertEqual((shown["method"], shown["body"]), ("PATCH", body))
        self.assertEqual(self.rehearse("auto-topup", "--disable")["body"], {"enabled": False})

    def test_upstream_hides_the_providers_key(self) -> None:
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-")
        shown = self.rehearse(*argv, stdin=THEIRS)
        self.assertEqual(shown["body"], {"kind": "openrouter", "apiKey": "<hidden>"})

    def test_keys(self) -> None:
        self.assertEqual(self.rehearse("keys", "--create")["body"], {})
        self.box.service.create_key({})
        shown = self.rehearse("keys", "--revoke", "key_2")
        self.assertEqual(shown["url"], "/v1/account/keys/key_2/revoke")

    def test_saving_makes_no_file(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self.rehearse("keys", "--create", "--save", os.path.join(folder, "new.key"))
            self.assertEqual(os.listdir(folder), [])

    def test_what_a_real_run_would_refuse_is_refused(self) -> None:
        self.fails(2, "topup", "--amount", "1000", "--dry-run")
        self.fails(2, "keys", "--revoke", "key_1", "--dry-run")
        self.fails(2, "keys", "--revoke", "key_9", "--dry-run")
