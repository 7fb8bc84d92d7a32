"""Keys in and out: saving a new one, handing over the provider's, rehearsing writes."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

from contract import ContractTest, next_commands
from support import DEFAULT_KEY, OPS, PATIENCE_S, Fault, Result, base_env, run

pty: Any
resource: Any
try:
    import pty
    import resource
except ImportError:  # Windows
    pty = resource = None

CREATE = "POST /v1/account/keys"
NEW = "cf_new_0123456789abcdef"
THEIRS = "sk-or-v1-Sup3rS3cret"
THEIR_ARGV = ("--base-url", "https://llm.example.com", "--api-key", "-")


class Save(ContractTest):
    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        self.path = self.folder / "new.key"
        self.argv = ("keys", "--create", "--save", str(self.path))

    def test_the_key_goes_into_the_file_and_nowhere_else(self) -> None:
        for extra in ((), ("--json",), ("--verbose",)):
            with self.subTest(extra=extra):
                result = self.ops(*self.argv, *extra)
                made = self.box.books.keys[-1]
                self.assertEqual(result.exit, 0, result)
                self.assertEqual(self.path.read_text(), made.secret + "\n")
                if os.name != "nt":
                    self.assertEqual(stat.S_IMODE(self.path.stat().st_mode), 0o600)
                self.assertNotIn(made.secret, result.out + result.err)
                for part in (made.id, made.prefix, str(self.path)):
                    self.assertIn(part, result.out)
                if extra == ("--json",):
                    self.has(result.json, id=made.id, saved_to=str(self.path))
                    self.assertNotIn("api_key", result.json)
                self.path.unlink()

    def test_a_prefix_or_id_that_is_the_whole_key_is_not_shown(self) -> None:
        for part in ("prefix", "id", "label"):
            for extra in ((), ("--json",), ("--verbose",)):
                self.box.script(CREATE, Fault.reply(200, {"apiKey": NEW, part: NEW}))
                result = self.ops(*self.argv, *extra)
                self.assertEqual((result.exit, self.path.read_text()), (0, NEW + "\n"), result)
                self.assertNotIn(NEW, result.out + result.err)
                self.path.unlink()

    @unittest.skipIf(os.name == "nt", "symlinks need privileges on Windows")
    def test_what_exists_is_never_overwritten_and_no_symlink_followed(self) -> None:
        self.path.write_text("precious")
        dangling, link = self.folder / "dangling", self.folder / "link"
        dangling.symlink_to(self.folder / "target")
        link.symlink_to(self.path)
        for path in (self.path, dangling, link):
            for extra in ((), ("--dry-run",)):
                self.refused("keys", "--create", "--save", str(path), *extra)
        self.assertEqual(self.path.read_text(), "precious")
        self.assertFalse((self.folder / "target").exists())

    def test_a_path_that_cannot_be_written_costs_nothing_and_a_dry_run_says_so(self) -> None:
        self.path.write_text("a file, not a folder")
        for path in (str(self.path / "below"), str(self.folder), "a\0b", ""):
            for extra in ((), ("--dry-run",)):
                self.refused("keys", "--create", f"--save={path}", *extra)

    def test_a_dash_is_no_file(self) -> None:
        argv = (str(OPS), "keys", "--create", "--save", "-")
        result = run(sys.executable, *argv, folder=self.folder, **self.box.env)
        self.assertEqual((result.exit, result.out), (2, ""), result)
        self.assertEqual((os.listdir(self.folder), self.box.requests), ([], []))

    @unittest.skipIf(os.name == "nt", "no such names on Windows")
    def test_a_path_that_is_not_plain_is_never_shown_as_another_one(self) -> None:
        for odd in ("new\x1b[31m.key", "new\n.key", "new\u202e.key", "ne\udcffw.key"):
            del self.box.requests[:]
            path = str(self.folder / odd)
            result = self.ops("keys", "--create", "--save", path)
            told = result.out + result.err
            self.assertNotIn("\x1b", told)
            self.assertNotIn("\u202e", told)
            self.assertNotIn("new.key", told)
            if result.exit:
                self.assertEqual((result.exit, self.box.requests), (2, []), result)
            else:
                os.unlink(path)
                found = self.ok("keys", "--create", "--save", path, "--json").json
                self.assertTrue(os.path.samefile(found["saved_to"], path))

    def test_the_file_is_removed_again_if_no_key_was_made(self) -> None:
        for exit_code, fault in (
            (1, Fault.reply(400, {"error": "no"})),
            (3, Fault.reply(401, {"error": "no"})),
            (6, Fault(end="reset", after=True)),
            (6, Fault.reply(200, {"prefix": "cf_x"})),
        ):
            self.box.script(CREATE, fault)
            self.fails(exit_code, *self.argv)
            self.assertFalse(self.path.exists())

    @unittest.skipIf(os.name == "nt", "an open file cannot be replaced on Windows")
    def test_a_file_that_another_run_put_there_is_left_alone(self) -> None:
        def replace(body: object) -> object:
            self.path.unlink()
            self.path.write_text("the key of another run")
            return {"error": "no"}

        self.box.service.routes[CREATE] = replace
        result = self.ops(*self.argv)
        self.assertEqual(self.path.read_text(), "the key of another run")
        self.assertEqual(result.exit, 1, result)

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_a_file_that_takes_no_more_exits_6_and_names_the_key_to_revoke(self) -> None:
        def fill_up() -> Result:
            least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            try:
                return self.fails(6, *self.argv)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))

        result = fill_up()
        made = self.box.books.keys[-1]
        self.assertIn(made.id, result.err)
        self.assertNotIn(made.secret, result.err)
        self.assertFalse(self.path.exists())
        self.assertEqual(self.follow(result).exit, 0)
        self.assertIsNotNone(made.revoked_at)
        for odd in ("k; touch pwned #", "$(pwned)", "--pwned"):
            self.box.script(CREATE, Fault.reply(200, {"apiKey": NEW, "id": odd}))
            result = fill_up()
            self.assertNotIn("pwned", str(next_commands(result)))
            for line in result.err.splitlines():
                self.assertFalse("pwned" in line and "--revoke" in line, line)


class ProviderKey(ContractTest):
    argv = ("upstream", "--set", "--kind", "openrouter")

    def stored(self) -> str | None:
        return self.box.books.upstream.get("apiKey")

    def test_it_comes_from_a_variable_a_line_of_input_or_the_command_line(self) -> None:
        for extra, stdin in (
            (("--api-key-env", "THEIRS"), ""),
            (("--api-key", "-"), f"{THEIRS}\nrest\n"),
            (("--api-key", "-"), f"{THEIRS}"),
            (("--api-key", THEIRS), ""),
        ):
            self.box.books.upstream = {}
            for run_it, shown in (
                (self.ops, ()),
                (self.ops, ("--json",)),
                (self.process, ("--verbose",)),
            ):
                result = run_it(*self.argv, *extra, *shown, stdin=stdin, THEIRS=f" {THEIRS}\n")
                self.assertEqual((result.exit, self.stored()), (0, THEIRS), result)
                self.assertNotIn(THEIRS, result.out + result.err)

    def test_what_is_no_key_exits_2_and_sends_nothing(self) -> None:
        for name in ("NOT_SET", "A-B", "", "1A", "TWO"):
            self.refused(*self.argv, f"--api-key-env={name}", TWO="two words")
        for text in ("", "\n", "two words\n", "schl\xfcssel\n"):
            self.refused(*self.argv, "--api-key", "-", stdin=text)
        for text in ("", " ", "sk or", "sk\nor", "schl\xfcssel"):
            self.refused(*self.argv, f"--api-key={text}")
        for encoding in ("utf-8:strict", "latin-1"):
            argv = (*self.argv, "--api-key", "-")
            result = self.process(*argv, stdin=b"\xff\xfe\n", PYTHONIOENCODING=encoding)
            self.assertEqual((result.exit, result.out, self.box.requests), (2, "", []), result)

    def test_the_accounts_own_key_is_not_handed_to_the_provider(self) -> None:
        self.refused(*self.argv, "--api-key-env", "CACHEFORGE_API_KEY")
        self.ok(*self.argv, "--api-key-env", "THEIRS", THEIRS=DEFAULT_KEY + "x")

    def test_a_key_that_is_another_providers_is_refused_except_for_a_custom_one(self) -> None:
        for kind, key in (
            ("anthropic", "sk-or-v1-abcdef"),
            ("openrouter", "sk-ant-abcdef"),
            ("openai", "sk-ant-abcdef"),
            ("openai", "sk-or-v1-abcdef"),
        ):
            self.refused("upstream", "--set", "--kind", kind, "--api-key-env", "T", T=key)
        for key in ("sk-or-v1-abcdef", "sk-ant-abcdef", "aa"):
            argv = ("--kind", "custom", "--base-url", "https://llm.example.com")
            self.ok("upstream", "--set", *argv, "--api-key-env", "T", T=key)
            self.assertEqual(self.stored(), key)


@unittest.skipUnless(pty, "needs a pseudo terminal")
class AtTheKeyboard(ContractTest):
    """Somebody may be asked, since standard input is a terminal."""

    def type(self, typed: bytes, *argv: str) -> Result:
        """Run a command on a terminal, typing once it asks."""
        terminal, far_end = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, str(OPS), *argv],
            stdin=far_end,
            stdout=far_end,
            stderr=far_end,
            env=base_env(**self.box.env, TERM="xterm"),
            start_new_session=True,
        )
        os.close(far_end)
        self.addCleanup(child.wait)
        impatience = threading.Timer(PATIENCE_S / 3, child.kill)
        impatience.start()
        self.addCleanup(impatience.cancel)
        screen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is gone
            while block := os.read(terminal, 65536):
                screen += block
                if typed and (b"? " in screen or b": " in screen):
                    os.write(terminal, typed)
                    typed = b""
        os.close(terminal)
        return Result(child.wait(PATIENCE_S), screen, b"")

    def test_what_is_no_key_there_exits_2_and_is_no_mistake_of_ours(self) -> None:
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-")
        for typed in (b"\x04", b"\xff\xfe\n", b"\n", b"sk-Sup3rS3cret \xff\n"):
            result = self.type(typed, *argv)
            self.assertEqual((result.exit, self.box.requests), (2, []), result)
            self.assertNotRegex(result.out, "Traceback|mistake|Sup3rS3cret")

    def test_under_json_nobody_is_asked(self) -> None:
        self.box.service.create_key({})
        for argv in (
            ("keys", "--revoke", "key_2"),
            ("keys", "--revoke", "key_2", "--force"),
            ("upstream", "--set", "--kind", "openrouter", "--api-key", "-"),
        ):
            result = self.type(b"\x04", *argv, "--json")
            self.assertEqual((result.exit, self.box.requests), (2, []), result)
            self.assertEqual(json.loads(result.out)["error"]["code"], "usage")


class DryRun(ContractTest):
    """Every write, rehearsed: the request is shown, and no write reaches the server."""

    def rehearse(self, *argv: str) -> dict[str, Any]:
        text = self.ops(*argv, "--dry-run", stdin=THEIRS)
        self.assertEqual(text.exit, 0, text)
        result = self.ops(*argv, "--dry-run", "--json", stdin=THEIRS)
        self.assertEqual((result.exit, self.box.writes), (0, []), result)
        for secret in (DEFAULT_KEY, THEIRS):
            self.assertNotIn(secret, text.out + text.err + result.out + result.err)
        shown: dict[str, Any] = result.json["dry_run"]
        for part in (shown["method"], shown["url"]):
            self.assertIn(part, text.out)
        if self.box.requests:
            self.assertNotIn("nothing was sent", text.out)
        self.assertTrue(shown["url"].startswith(self.box.url + "/v1/account/"))
        return {**shown, "url": shown["url"][len(self.box.url) :]}

    def test_every_write_is_shown_and_not_sent(self) -> None:
        self.box.service.create_key({})
        self.box.service.revoke_key("key_2")
        rule = {"enabled": True, "thresholdCents": 200, "amountCents": 1000}
        for line, method, url, body in (
            ("topup", "POST", "billing/topup", {"amountUsd": 10, "method": "stripe"}),
            ("topup --wait", "POST", "billing/topup", {"amountUsd": 10, "method": "stripe"}),
            ("auto-topup --enable", "PATCH", "billing/auto-topup", rule),
            ("auto-topup --disable", "PATCH", "billing/auto-topup", {"enabled": False}),
            ("upstream --set --kind anthropic", "POST", "upstream", {"kind": "anthropic"}),
            ("keys --create", "POST", "keys", {}),
            ("keys --revoke key_2 --yes", "POST", "keys/key_2/revoke", {}),
        ):
            with self.subTest(line):
                del self.box.requests[:]
                shown = self.rehearse(*line.split())
                expected = {"method": method, "url": f"/v1/account/{url}", "body": body}
                self.assertEqual(shown, expected)
        body = self.rehearse("upstream", "--set", "--kind", "custom", *THEIR_ARGV)["body"]
        self.has(body, kind="custom", baseUrl="https://llm.example.com")
        self.assertIn("apiKey", body)
        with tempfile.TemporaryDirectory() as folder:
            self.rehearse("keys", "--create", "--save", os.path.join(folder, "new.key"))
            self.assertEqual(os.listdir(folder), [])

    def test_what_a_real_run_would_refuse_is_refused(self) -> None:
        for line in (
            *("topup --amount 1000", "keys --revoke key_1 --yes", "keys --revoke key_9 --yes"),
            *("auto-topup --enable --amount 10", "upstream --set --kind custom"),
        ):
            self.fails(2, *line.split(), "--dry-run")
        self.assertEqual(self.box.writes, [])
