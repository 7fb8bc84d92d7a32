"""Streams, signals and terminals: nobody listens, somebody interrupts, a person is asked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from pathlib import Path
from typing import Any

from support import (
    DEFAULT_KEY,
    OPS,
    PATIENCE_S,
    Fault,
    QuickClock,
    Result,
    SandboxTest,
    base_env,
    call_on,
    end,
    next_words,
    ops,
    run,
)

BILLING = "GET /v1/account/billing"
KEYS = "GET /v1/account/keys"
CREATE = "POST /v1/account/keys"
NOISE = "Traceback|Exception ignored|BrokenPipe|mistake in this program"
DOUBT = "may have been|nobody has|--revoke"
needs_a_full_device = unittest.skipUnless(os.path.exists("/dev/full"), "needs /dev/full")


@unittest.skipIf(os.name == "nt", "POSIX descriptors")
class Streams(SandboxTest):
    def shell(self, script: str, **env: str) -> Result:
        """Run a shell script in which $OPS is the program."""
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(OPS))}"
        result = run("bash", "-c", script.replace("$OPS", command), **{**self.box.env, **env})
        self.assertNotRegex(result.err, NOISE)
        return result

    def folder(self) -> Path:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        return Path(place.name)

    def test_a_closed_stdout_exits_2_before_anything_is_sent(self) -> None:
        for command in ("keys --create", "keys --create --json", "balance", "topup"):
            result = self.shell(f"$OPS {command} >&-")
            self.assertEqual(result.exit, 2, result)
            self.assertIn("standard output", result.err)
        self.assertEqual(self.shell("$OPS keys --create >&- 2>&-").exit, 2)
        self.assertEqual(self.box.requests, [])

    def check_undelivered(self, result: Result) -> None:
        """A key was made, and nobody got it: exit 6, and the command that revokes it."""
        made = self.box.books.keys[-1]
        self.assertEqual((result.exit, len(self.box.writes)), (6, 1), result)
        self.assertIn(f"keys --revoke {made.id}", result.err)
        self.assertNotIn(made.secret, result.err)
        self.box.requests.clear()

    @needs_a_full_device
    def test_a_new_key_that_a_full_stdout_swallowed_exits_6_and_is_named(self) -> None:
        for extra in ("", " --json"):
            self.check_undelivered(self.shell(f"$OPS keys --create{extra} > /dev/full"))

    def test_a_new_key_that_a_broken_pipe_swallowed_exits_6_and_is_named(self) -> None:
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
        self.check_undelivered(Result(child.returncode, b"", child.stderr))

    @needs_a_full_device
    def test_a_full_stdout_after_other_commands(self) -> None:
        self.save_card()
        for command in ("balance", "info --json", "topup --dry-run", "--help", "--version"):
            self.assertEqual(self.shell(f"$OPS {command} > /dev/full").exit, 1, command)
        for command in ("topup", "auto-topup --enable", "upstream --set --kind anthropic"):
            result = self.shell(f"$OPS {command} > /dev/full")
            self.assertIn(result.exit, (1, 5), result)  # all of these may be repeated
            self.assertIn("standard output", result.err)

    @needs_a_full_device
    def test_a_saved_key_outlives_a_full_stdout(self) -> None:
        path = self.folder() / "key"
        result = self.shell(f"$OPS keys --create --save '{path}' > /dev/full")
        self.assertEqual(path.read_text(), self.box.books.keys[-1].secret + "\n")
        self.assertNotIn(result.exit, (0, 6), result)

    @needs_a_full_device
    def test_a_full_or_closed_stderr_changes_nothing(self) -> None:
        for stderr in ("2>/dev/full", "2>&-"):
            for command, exit_code in (
                *(("balance --verbose", 0), ("balance --min 50 --verbose", 4)),
                *(("keys --create --verbose", 0), ("topup --amount x", 2)),
                ("topup --wait 1 --verbose", 4),
            ):
                result = self.shell(f"$OPS {command} {stderr}")
                self.assertEqual((result.exit, result.out != ""), (exit_code, exit_code != 2))

    def test_a_reader_that_leaves_early_exits_1_without_noise(self) -> None:
        self.box.books.keys.extend(self.box.books.keys * 3000)  # more than a pipe holds
        result = self.shell("set -o pipefail; $OPS keys | head -1")
        self.assertEqual((len(result.out.splitlines()), result.exit), (1, 1), result)

    def test_a_closed_stdin_is_nobody_to_ask(self) -> None:
        self.box.service.create_key({})
        for redirect in ("<&-", "</dev/null"):
            for options in ("", " --force", " --json"):
                self.assertEqual(
                    self.shell(f"$OPS keys --revoke key_2{options} {redirect}").exit, 2
                )
            self.assertEqual(self.shell(f"$OPS upstream --set --api-key - {redirect}").exit, 2)
        self.assertEqual(self.box.requests, [])

    def test_a_providers_key_that_is_no_text_exits_2(self) -> None:
        for encoding in ("utf-8:strict", "utf-8:surrogateescape", "ascii"):
            argv = ("upstream", "--set", "--kind", "anthropic", "--api-key", "-")
            result = self.process(*argv, stdin=b"sk-\xff\xfe\n", PYTHONIOENCODING=encoding)
            self.assertEqual((result.exit, result.out, self.box.writes), (2, "", []), result)
            self.assertNotRegex(result.err, NOISE)

    def test_nothing_is_needed_of_the_folder_and_nothing_is_written_to_it(self) -> None:
        before = set(OPS.parent.rglob("*"))
        result = self.shell("cd / && unset HOME && $OPS balance && $OPS keys --create")
        self.assertEqual((result.exit, result.err), (0, ""))
        self.assertEqual(set(OPS.parent.rglob("*")), before)


@unittest.skipIf(os.name == "nt", "POSIX signals")
class Signals(SandboxTest):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if os.name != "nt" else ()

    def interrupt(
        self, number: int, call: str, *argv: str, arrived: threading.Event | None = None
    ) -> Result:
        """Start a command, wait until the service has its request, then signal, twice."""
        del self.box.requests[:]
        if not arrived:
            self.box.script(call, *[Fault(end="hang")] * 3)
        child = self.start(sys.executable, str(OPS), *argv)
        if arrived:
            self.assertTrue(arrived.wait(PATIENCE_S))
        else:
            self.assertTrue(self.box.wait_for(call))
        child.send_signal(number)
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE_S)
        result = Result(child.returncode, out.encode(), err.encode())
        self.assertNotRegex(result.err, NOISE)
        self.assertEqual((result.exit, result.out), (130, ""), result)
        self.box.script_nothing()
        return result

    def test_during_a_read_nothing_was_changed(self) -> None:
        for number in self.numbers:
            self.assertNotRegex(self.interrupt(number, BILLING, "balance").err, DOUBT)

    def test_before_a_write_leaves_it_unsent(self) -> None:
        self.box.service.create_key({})
        for number in self.numbers:
            argv = ("keys", "--revoke", "key_2", "--yes")
            self.assertNotRegex(self.interrupt(number, KEYS, *argv).err, DOUBT)
            self.assertEqual(self.box.writes, [])

    def test_while_a_key_is_made_it_says_to_look_first(self) -> None:
        for number in self.numbers:
            result = self.interrupt(number, CREATE, "keys", "--create", "--json")
            self.assertEqual(result.error["code"], "interrupted")
            self.assertEqual(next_words(result.error["next"])[0], "keys")
            self.assertIs(result.error["retryable"], False)

    def test_while_a_setting_is_made_or_read_back_it_is_safe_to_repeat(self) -> None:
        self.save_card()
        argv = ("auto-topup", "--enable", "--json")
        call = "PATCH /v1/account/billing/auto-topup"
        self.assertIs(self.interrupt(signal.SIGINT, call, *argv).error["retryable"], True)
        with self.after_a_write(BILLING, Fault(end="hang")) as arrived:
            error = self.interrupt(signal.SIGINT, BILLING, *argv, arrived=arrived).error
        self.assertIs(error["retryable"], True)
        self.assertTrue(self.box.books.auto_topup["enabled"])

    def test_no_empty_file_is_left(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "key")
            for number in self.numbers:
                self.interrupt(number, CREATE, "keys", "--create", "--save", str(path))
                self.assertFalse(path.exists())

    def check_delivered(self, exit_code: int, shown: str, err: str) -> None:
        """Either the key is there, whole, and there is no doubt, or the list is named."""
        self.assertIn(exit_code, (0, 130), err)
        self.assertNotRegex(err, NOISE)
        error: dict[str, Any] = {"next": None}
        if exit_code:
            error = json.loads(err.splitlines()[-1])["error"]
        doubt = bool(error["next"]) and next_words(error["next"])[0] == "keys"
        whole = f'"api_key":"{self.box.books.keys[-1].secret}"' in shown
        self.assertEqual(whole, not doubt, err)

    def test_after_the_key_is_delivered_there_is_no_doubt(self) -> None:
        for number in self.numbers * 4:
            child = self.start(sys.executable, str(OPS), "keys", "--create", "--json")
            assert child.stdout
            shown = child.stdout.readline()
            child.send_signal(number)
            _, err = child.communicate(timeout=PATIENCE_S)
            self.assertIn("api_key", shown)
            self.check_delivered(child.returncode, shown, err)

    def test_while_the_key_is_delivered_it_comes_whole_or_is_in_doubt(self) -> None:
        for number in self.numbers * 3:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            with contextlib.suppress(BlockingIOError):  # so full that the key does not fit in
                while True:
                    os.write(writer, b"\n")
            os.set_blocking(writer, True)
            del self.box.requests[:]
            child = subprocess.Popen(
                [sys.executable, str(OPS), "keys", "--create", "--json"],
                stdout=writer,
                stderr=subprocess.PIPE,
                env=base_env(**self.box.env),
            )
            self.addCleanup(end, child)
            os.close(writer)
            self.assertTrue(self.box.wait_for(CREATE))
            child.send_signal(number)
            with open(reader, "rb") as pipe:
                shown = pipe.read().decode()
            _, err = child.communicate(timeout=PATIENCE_S)
            self.check_delivered(child.returncode, shown, err.decode())


class Asking(SandboxTest):
    """A person at a real terminal."""

    def setUp(self) -> None:
        super().setUp()
        try:
            import pty
        except ImportError:
            self.skipTest("needs a pseudo terminal")
        self.open_terminal = pty.openpty
        self.box.service.create_key({})

    def at_terminal(
        self, typed: bytes, *argv: str, piped: str = "", **env: str
    ) -> tuple[int, str, str]:
        """Run a command on a terminal of its own, typing once it asks. The exit code, the
        screen, and what went into `piped`: stdout or stderr, not on the terminal."""
        adopt = (
            "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
        )
        terminal, far_end = self.open_terminal()
        child = subprocess.Popen(
            [sys.executable, "-c", adopt, str(OPS), *argv],
            stdin=far_end,
            stdout=subprocess.PIPE if piped == "stdout" else far_end,
            stderr=subprocess.PIPE if piped == "stderr" else far_end,
            env=base_env(**{**self.box.env, "TERM": "xterm", **env}),
            start_new_session=True,
        )
        self.addCleanup(end, child)
        os.close(far_end)
        screen = b""
        with contextlib.suppress(OSError):  # how Linux says that the other side is gone
            while select.select([terminal], [], [], PATIENCE_S)[0]:
                block = os.read(terminal, 65536)
                if not block:
                    break
                screen += block
                if typed and (b"[y/N]" in screen or b"key: " in screen):
                    os.write(terminal, typed)
                    typed = b""
        os.close(terminal)
        out, err = child.communicate(timeout=PATIENCE_S)
        shown = screen.decode("utf-8", "replace")
        self.assertNotRegex(shown, NOISE)
        return child.returncode, shown, (out or err or b"").decode()

    def test_yes_revokes_and_anything_else_does_not(self) -> None:
        for typed in (b"n\n", b"\n", b"\x04"):
            exit_code, screen, _ = self.at_terminal(typed, "keys", "--revoke", "key_2")
            self.assertEqual(exit_code, 2, screen)
            self.assertIn("key_2", screen)
        exit_code, screen, _ = self.at_terminal(b"\x03", "keys", "--revoke", "key_2")
        self.assertEqual((exit_code, self.box.writes), (130, []), screen)
        exit_code, screen, _ = self.at_terminal(b"y\n", "keys", "--revoke", "key_2")
        self.assertEqual((exit_code, len(self.box.writes)), (0, 1), screen)

    def test_the_question_is_no_result(self) -> None:
        argv = ("keys", "--revoke", "key_2")
        exit_code, screen, out = self.at_terminal(b"y\n", *argv, piped="stdout")
        self.assertEqual(exit_code, 0)
        self.assertIn("[y/N]", screen)
        self.assertNotIn("[y/N]", out)

    def test_nobody_is_asked_where_the_question_cannot_be_seen_or_under_json(self) -> None:
        revoke, give = ("keys", "--revoke", "key_2"), ("upstream", "--set", "--api-key", "-")
        for argv, piped in ((revoke, "stderr"), ((*revoke, "--json"), ""), ((*give, "--json"), "")):
            exit_code, screen, err = self.at_terminal(b"\x04", *argv, piped=piped)
            self.assertEqual(exit_code, 2, screen)
            self.assertNotRegex(screen + err, r"\[y/N\]|key: $")
        self.assertEqual(self.box.requests, [])

    def test_a_providers_key_is_typed_without_an_echo(self) -> None:
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-")
        exit_code, screen, _ = self.at_terminal(b"sk-or-v1-Sup3rS3cret\n", *argv)
        self.assertEqual(exit_code, 0, screen)
        self.assertEqual(self.box.books.upstream["apiKey"], "sk-or-v1-Sup3rS3cret")
        self.assertNotIn("Sup3rS3cret", screen)

    def test_no_key_at_the_hidden_prompt_exits_2(self) -> None:
        for typed in (b"\x04", b"\n", b"sk-\xff\xfe\n"):
            argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-")
            exit_code, screen, _ = self.at_terminal(typed, *argv)
            self.assertEqual((exit_code, self.box.writes), (2, []), screen)

    def test_a_wait_counts_down_from_what_was_asked_in_one_line_of_its_own(self) -> None:
        self.box.books.credit("spent", -12_340_000)
        exit_code, screen, _ = self.at_terminal(b"", "balance", "--wait", "1")
        self.assertEqual(exit_code, 4)
        left_s = [int(left) for left in re.findall(r"\r[^\r\n]*?(\d+) s\b", screen)]
        self.assertEqual(left_s[0], 1, screen)
        self.assertEqual(left_s, sorted(left_s, reverse=True))
        self.assertRegex(screen, r"\r?\nBalance")

    def test_the_balance_is_green_or_red_unless_colour_is_not_wanted(self) -> None:
        for shown, code in (("$12.34", 32), ("$0.00", 31)):
            screen = self.at_terminal(b"", "balance")[1]
            self.assertRegex(screen, rf"\x1b\[[0-9;]*{code}m(\x1b\[1m)?{re.escape(shown)}\x1b\[0?m")
            self.assertEqual(len(re.findall(rf"\b{code}m", screen)), 1, screen)
            self.box.books.credit("spent", -12_340_000)
        for argv, env in (
            *((("balance",), {"NO_COLOR": "1"}), (("balance",), {"TERM": "dumb"})),
            *((("balance", "--json"), {}), (("--help",), {"NO_COLOR": "1"})),
        ):
            self.assertNotIn("\x1b", self.at_terminal(b"", *argv, **env)[1])
        self.assertNotIn("\x1b", self.at_terminal(b"", "balance", piped="stdout")[2])


class OurOwnMistakes(SandboxTest):
    """A defect of the program itself; the clock is the one place where a test can put one."""

    def test_it_says_so_with_the_version_and_the_place_to_report_and_quotes_nothing(self) -> None:
        class Broken(QuickClock):
            def sleep(self, seconds: float) -> None:
                raise RuntimeError(DEFAULT_KEY)

        for extra in ((), ("--json",)):
            self.box.script(BILLING, Fault.reply(503, {}))
            result = call_on(Broken(), "balance", *extra, **self.box.env)
            self.assertEqual((result.exit, result.out), (1, ""))
            self.assertRegex(result.err, f"mistake in this program.*{re.escape(ops.__version__)}")
            self.assertRegex(result.err, "(?i)report")
            self.assertNotRegex(result.err, f"Traceback|{DEFAULT_KEY[:12]}|support.py")


if __name__ == "__main__":
    unittest.main()
