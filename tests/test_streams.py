"""Streams and signals: what happens when nobody listens, or somebody interrupts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
import unittest
from typing import Any
from unittest import mock

from support import OPS, PATIENCE_S, Fault, Result, SandboxTest, base_env, call_ops, ops, run, start

BILLING = "GET /v1/account/billing"
CREATE = "POST /v1/account/keys"


@unittest.skipIf(os.name == "nt", "POSIX descriptors")
class Streams(SandboxTest):
    def shell(self, script: str, **env: str) -> Result:
        """Run a shell script in which $OPS is the program."""
        command = f"{sys.executable} {OPS}"
        result = run("bash", "-c", script.replace("$OPS", command), **{**self.box.env, **env})
        for noise in ("Traceback", "Exception ignored", "BrokenPipe"):
            self.assertNotIn(noise, result.err)
        return result

    def test_a_closed_stdout_exits_2_before_anything_is_sent(self) -> None:
        for command in ("keys --create", "keys --create --json", "balance", "topup"):
            result = self.shell(f"$OPS {command} >&-")
            self.assertEqual(result.exit, 2, result)
            self.assertIn("standard output", result.err)
        self.assertEqual(self.box.requests, [])

    @unittest.skipUnless(hasattr(select, "poll"), "needs poll")
    def test_a_pipe_that_nobody_reads_exits_2_before_a_key_is_made(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        child = subprocess.run(
            [sys.executable, str(OPS), "keys", "--create"],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=base_env(**self.box.env),
            timeout=PATIENCE_S,
            check=False,
        )
        os.close(writer)
        self.assertEqual(child.returncode, 2, child)
        self.assertEqual(self.box.requests, [])

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_a_full_stdout_exits_6_and_names_the_key_to_revoke(self) -> None:
        for extra in ("", " --json"):
            result = self.shell(f"$OPS keys --create{extra} > /dev/full")
            made = self.box.books.keys[-1]
            self.assertEqual(result.exit, 6, result)
            self.assertIn(f"keys --revoke {made.id}", result.err)
            self.assertIn("it is done, but standard output did not", result.err)
            self.assertIn("No space left", result.err)
            self.assertNotIn(made.secret, result.err)

    def test_our_own_words_hide_what_could_be_a_key(self) -> None:
        console = ops.Console(False, "ops.py", {})
        console.secrets = ["cf_45678", "cf_abcdef", "7 chars"]
        with mock.patch.object(sys, "stderr", io.StringIO()) as screen:
            console.fail(ops.Usage("a cf_abcdef b cf_45678 c 7 chars", hint="d cf_45678"))
        expected = "usage: a <hidden> b <hidden> c 7 chars\nd <hidden>\n"
        self.assertEqual(screen.getvalue(), expected)

    def test_a_stdout_that_closes_on_the_way_is_told_as_such(self) -> None:
        console = ops.Console(False, "ops.py", {})
        closed = io.StringIO()
        closed.close()
        gone = mock.patch.object(sys, "stdout", closed)
        with gone, self.assertRaisesRegex(ops.Undelivered, "it is closed"):
            console.deliver(ops.Report({}, lines=["x"]))
        with mock.patch.object(sys, "stderr", closed):
            console.note("nobody hears this, and that is no failure")

    @unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")
    def test_a_full_stdout_after_other_commands(self) -> None:
        self.save_card()
        for command, exit_code in (
            ("balance", 1),
            ("info --json", 1),
            ("topup", 6),
            ("auto-topup --enable", 6),
            ("upstream --set --kind anthropic", 6),
            ("topup --dry-run", 1),
            ("--help", 1),
            ("--version", 1),
        ):
            result = self.shell(f"$OPS {command} > /dev/full")
            self.assertEqual(result.exit, exit_code, f"{command}: {result}")
            self.assertEqual("it is done" in result.err, exit_code == 6)

    def test_a_reader_that_leaves_after_a_line(self) -> None:
        self.box.books.keys.extend(self.box.books.keys * 300)
        result = self.shell("set -o pipefail; $OPS keys | head -1")
        self.assertTrue(result.out.startswith("ID"))
        self.assertIn(result.exit, (0, 1))

    def test_a_closed_stderr_changes_nothing_else(self) -> None:
        self.assertIn("$12.34", self.shell("$OPS balance --verbose 2>&-").out)
        result = self.shell("$OPS topup --amount x 2>&-")
        self.assertEqual((result.exit, result.out), (2, ""))
        result = self.shell("$OPS keys --create >&- 2>&-")
        self.assertEqual((result.exit, self.box.writes), (2, []))

    def test_a_closed_stdin_is_nobody_to_ask(self) -> None:
        self.box.service.create_key({})
        for redirect in ("<&-", "</dev/null"):
            self.assertEqual(self.shell(f"$OPS keys --revoke key_2 {redirect}").exit, 2)
            result = self.shell(f"$OPS upstream --set --api-key - {redirect}")
            self.assertEqual(result.exit, 2)
        self.assertEqual(self.box.writes, [])

    def test_no_home_and_a_folder_that_cannot_be_written(self) -> None:
        result = self.shell("cd / && unset HOME && $OPS balance")
        self.assertEqual((result.exit, result.err), (0, ""))

    def test_nothing_is_written_beside_the_program(self) -> None:
        before = set(OPS.parent.rglob("*"))
        self.shell("$OPS balance && $OPS --help && $OPS keys --create")
        self.assertEqual(set(OPS.parent.rglob("*")), before)


@unittest.skipIf(os.name == "nt", "POSIX signals")
class Signals(SandboxTest):
    def interrupt(self, number: int, call: str, *argv: str) -> Result:
        """Start a command, wait until the service has its request, then signal."""
        del self.box.requests[:]
        self.box.script(call, *[Fault(end="hang")] * 3)
        child = start(sys.executable, str(OPS), *argv, **self.box.env)
        self.assertTrue(self.box.wait_for(call))
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE_S)
        result = Result(child.returncode, out.encode(), err.encode())
        self.assertNotIn("Traceback", result.err)
        self.assertEqual(result.out, "")
        self.box.script_nothing()
        return result

    def test_during_a_read_nothing_was_changed(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            result = self.interrupt(number, BILLING, "balance")
            self.assertEqual(result.exit, 130)
            self.assertNotIn("may have been", result.err)

    def test_during_a_write_it_is_called_uncertain(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            for extra in ((), ("--json",)):
                result = self.interrupt(number, CREATE, "keys", "--create", *extra)
                self.assertEqual(result.exit, 130)
                self.assertIn("may have been carried out", result.err)
                self.assertIn("keys", result.err.splitlines()[-1])
                if extra:
                    self.assertEqual(result.error["code"], "interrupted")

    def test_a_second_one_while_the_first_is_told(self) -> None:
        program = (
            "import sys\n"
            f"sys.path.insert(0, {str(OPS.parent)!r})\n"
            "import ops\n"
            "def main(): raise KeyboardInterrupt\n"
            "ops.main = main\n"
            "ops.start()\n"
        )
        result = run(sys.executable, "-B", "-c", program)
        self.assertEqual((result.exit, result.out, result.err), (130, "", ""))

    def test_before_a_write_leaves_it_unsent(self) -> None:
        self.save_card()
        self.box.service.create_key({})
        result = self.interrupt(
            signal.SIGINT, "GET /v1/account/keys", "keys", "--revoke", "key_2", "--yes"
        )
        self.assertEqual((result.exit, self.box.writes), (130, []))


class Asking(SandboxTest):
    """A person at a real terminal."""

    def setUp(self) -> None:
        super().setUp()
        try:
            import pty
        except ImportError:
            self.skipTest("needs a pseudo terminal")
        self.pty: Any = pty
        self.box.service.create_key({})

    def at_terminal(self, typed: bytes, *argv: str) -> tuple[int, str]:
        """Run a command on a pseudo terminal, typing once it asks; exit code and screen."""
        terminal, far_end = self.pty.openpty()
        child = subprocess.Popen(
            [sys.executable, str(OPS), *argv],
            stdin=far_end,
            stdout=far_end,
            stderr=far_end,
            env=base_env(**self.box.env, TERM="xterm"),
            start_new_session=True,
        )
        os.close(far_end)
        screen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is gone
            while True:
                block = os.read(terminal, 65536)
                if not block:
                    break
                screen += block
                if typed and (b"[y/N]" in screen or b"key: " in screen):
                    os.write(terminal, typed)
                    typed = b""
        os.close(terminal)
        return child.wait(PATIENCE_S), screen.decode()

    def test_yes_revokes_and_anything_else_does_not(self) -> None:
        for typed in (b"n\n", b"\n", b"\x04"):
            exit_code, screen = self.at_terminal(typed, "keys", "--revoke", "key_2")
            self.assertEqual(exit_code, 2, screen)
            self.assertIn("Revoke key_2", screen)
        self.assertEqual(self.box.writes, [])
        exit_code, screen = self.at_terminal(b"y\n", "keys", "--revoke", "key_2")
        self.assertEqual((exit_code, len(self.box.writes)), (0, 1), screen)

    def test_a_providers_key_is_typed_without_an_echo(self) -> None:
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-")
        exit_code, screen = self.at_terminal(b"sk-or-v1-Sup3rS3cret\n", *argv)
        self.assertEqual(exit_code, 0, screen)
        self.assertEqual(self.box.books.upstream["apiKey"], "sk-or-v1-Sup3rS3cret")
        self.assertNotIn("Sup3rS3cret", screen)

    def test_a_wait_counts_down_in_one_line(self) -> None:
        self.box.books.credit("spent", -12_340_000)
        exit_code, screen = self.at_terminal(b"", "balance", "--wait", "1.4")
        self.assertEqual(exit_code, 4)
        left = re.findall(r"\rwaiting, (\d+) s left ", screen)
        self.assertIn(left[0], ("1", "2"))
        self.assertLessEqual({*left}, {"0", "1", "2"})
        self.assertIn(" s left \r\nBalance", screen)

    def test_a_terminal_gets_bold_and_one_color(self) -> None:
        _, screen = self.at_terminal(b"", "balance")
        self.assertIn("\x1b[1;32m$12.34\x1b[0m", screen)


class BetweenWriteAndReadBack(SandboxTest):
    def test_ctrl_c_there_is_still_uncertain(self) -> None:
        self.save_card()
        self.box.script(BILLING, Fault.reply(429, {}))  # so that the read-back waits

        def interrupt(*_: object) -> None:
            raise KeyboardInterrupt

        with mock.patch("support.QuickConsole.sleep", interrupt):
            result = self.fails(130, "auto-topup", "--enable")
        self.assertTrue(self.box.books.auto_topup["enabled"])
        self.assertIn("may have been carried out", result.err)
        self.assertIn("ops.py auto-topup", result.err)

    def test_ctrl_c_after_a_read_alone_changed_nothing(self) -> None:
        with mock.patch.object(ops, "auto_topup_report", side_effect=KeyboardInterrupt):
            self.assertNotIn("may have been", self.fails(130, "auto-topup").err)


class OurOwnMistakes(SandboxTest):
    """A defect of the program itself must not print a traceback, nor lie about a write."""

    def test_a_bug_after_a_write_is_uncertain_and_quotes_nothing(self) -> None:
        secret = "cf_Sup3rS3cret"

        def broken(*_: object, **__: object) -> None:
            raise RuntimeError(secret)

        for name, argv, exit_code in (
            ("payment_report", ("topup",), 6),
            ("balance_report", ("balance",), 1),
            ("build_parser", ("balance",), 1),
        ):
            with self.subTest(name=name), mock.patch.object(ops, name, broken):
                result = self.ops(*argv)
                self.assertEqual((result.exit, result.out), (exit_code, ""))
                line = broken.__code__.co_firstlineno + 1  # where it was raised
                self.assertIn(f"RuntimeError at line {line}", result.err)
                self.assertIn("balance" if exit_code == 6 else "Please report it", result.err)
                self.assertNotIn(secret, result.err)

    def test_the_error_envelope_is_json_then_too(self) -> None:
        result = call_ops("balance", "--json")
        self.assertEqual(json.loads(result.err)["error"]["exit"], 2)


if __name__ == "__main__":
    unittest.main()
