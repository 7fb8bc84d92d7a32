"""Streams, signals and terminals: nobody listens, somebody interrupts, a disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

from support import (
    BILLING,
    CREATE,
    DEFAULT_KEY,
    KEYS,
    OPS,
    PATIENCE_S,
    SET_RULE,
    Fault,
    QuickClock,
    Result,
    Sandbox,
    SandboxTest,
    base_env,
    call_on,
    end,
    has_terminal,
    next_words,
    on_terminal,
    ops,
    run,
    side_by_side,
)

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

NOISE = "Traceback|Exception ignored|BrokenPipe|mistake in this program"
DOUBT = "may have been|nobody has|--revoke"


def full_pipe() -> tuple[int, int]:
    """A pipe that takes no more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n")
    os.set_blocking(writer, True)
    return reader, writer


@unittest.skipIf(os.name == "nt", "POSIX descriptors")
class Streams(SandboxTest):
    def shell(self, script: str, shell: str = "sh") -> Result:
        """Run a shell script in which $OPS is the program."""
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(OPS))}"
        result = run(shell, "-c", script.replace("$OPS", command), **self.box.env)
        self.assertNotRegex(result.err, NOISE)
        return result

    def test_with_a_closed_stdout_nothing_is_sent(self) -> None:
        for command in ("keys --create --json", "balance"):
            self.assertEqual(self.shell(f"$OPS {command} >&-").exit, 2)
        self.assertEqual(self.box.requests, [])

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
        made = self.box.books.keys[-1]
        self.assertEqual((child.returncode, len(self.box.writes)), (6, 1))
        self.assertIn(f"keys --revoke {made.id}", child.stderr.decode())
        self.assertNotIn(made.secret, child.stderr.decode())

    def test_a_wait_without_a_stderr_ends_as_ever(self) -> None:
        for stderr in ("2>&-", *["2>/dev/full"] * os.path.exists("/dev/full")):
            result = self.shell(f"$OPS topup --wait 0.5 --verbose {stderr}")
            self.assertEqual((result.exit, "/pay/" in result.out), (4, True), result)

    @unittest.skipUnless(shutil.which("bash"), "needs a shell with pipefail")
    def test_a_reader_that_leaves_early_exits_1_without_noise(self) -> None:
        self.box.books.keys.extend(self.box.books.keys * 3000)  # more than a pipe holds
        result = self.shell("set -o pipefail; $OPS keys | head -1", "bash")
        self.assertEqual((len(result.out.splitlines()), result.exit), (1, 1), result)

    def test_nothing_is_needed_of_the_folder_and_nothing_is_written_to_it(self) -> None:
        before = set(OPS.parent.rglob("*"))
        result = self.shell("cd / && unset HOME && $OPS balance && $OPS keys --create")
        self.assertEqual((result.exit, result.err), (0, ""))
        self.assertEqual(set(OPS.parent.rglob("*")), before)


class Files(SandboxTest):
    """The file of `--save`, where a page cannot show it."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "new.key")
        self.argv = ("keys", "--create", "--save", str(self.path))

    @unittest.skipIf(os.name == "nt", "an open file cannot be replaced on Windows")
    def test_a_file_that_another_run_put_there_is_left_alone(self) -> None:
        def replace(body: object) -> dict[str, str]:
            self.path.unlink()
            self.path.write_text("the key of another run")
            return {"error": "no"}

        self.box.service.routes[CREATE] = replace
        self.fails(1, *self.argv)
        self.assertEqual(self.path.read_text(), "the key of another run")

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_a_file_that_takes_no_more_exits_6_and_names_the_key_to_revoke(self) -> None:
        for odd_id in (None, "k; touch pwned #", "--pwned"):
            if odd_id:
                reply = Fault.reply(200, {"apiKey": "cf_new_0123456789abcdef", "id": odd_id})
                self.box.script(CREATE, reply)
            least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            try:
                error = self.fails(6, *self.argv, "--json").error
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
            made = self.box.books.keys[-1]
            plain = ["keys", "--revoke", made.id, "--yes"]
            self.assertEqual(next_words(error["next"]), ["keys"] if odd_id else plain)
            self.assertNotIn(made.secret, str(error))
            self.assertFalse(self.path.exists())

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_half_a_key_in_the_file_is_no_success(self) -> None:
        least, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, most))
        try:
            self.fails(6, *self.argv)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (least, most))
        self.assertFalse(self.path.exists())

    @unittest.skipIf(os.name == "nt", "no file modes")
    def test_the_file_is_for_its_owner_alone(self) -> None:
        self.ok(*self.argv)
        self.assertEqual(self.path.stat().st_mode & 0o777, 0o600)

    def test_what_is_there_already_is_not_overwritten(self) -> None:
        target = self.path.with_name("target")
        target.write_text("theirs")
        self.path.write_text("theirs")
        self.fails(2, *self.argv)
        self.path.unlink()
        if os.name != "nt":
            self.path.symlink_to(target)
            self.fails(2, *self.argv)
        self.assertEqual((target.read_text(), self.box.writes), ("theirs", []))

    def test_a_file_system_that_cannot_flush_to_disk_keeps_the_key(self) -> None:
        with mock.patch.object(os, "fsync", side_effect=OSError(errno.EINVAL, "no")):
            self.ok(*self.argv)
        self.assertEqual(self.path.read_text("utf-8"), self.box.books.keys[-1].secret + "\n")

    def test_a_device_is_no_file_for_a_key(self) -> None:
        reader, writer = os.pipe()  # as NUL on Windows: it opens as if it were new
        self.addCleanup(os.close, reader)
        with mock.patch.object(os, "open", return_value=writer):
            self.fails(2, "keys", "--create", "--save", "NUL")
        self.assertEqual(self.box.writes, [])
        self.assertRaises(OSError, os.fstat, writer)


@unittest.skipIf(os.name == "nt", "POSIX signals")
class Signals(SandboxTest):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if os.name != "nt" else ()

    def interrupt(
        self,
        box: Sandbox,
        number: int,
        call: str,
        *argv: str,
        arrived: threading.Event | None = None,
    ) -> Result:
        """Start a command, wait until the service has its request, then signal, twice."""
        if not arrived:
            box.script(call, *[Fault(end="hang")] * 3)
        child = self.start(sys.executable, str(OPS), *argv, **box.env)
        if arrived:
            self.assertTrue(arrived.wait(PATIENCE_S))
        else:
            self.assertTrue(box.wait_for(call))
        child.send_signal(number)
        child.send_signal(number)
        out, err = child.communicate(timeout=PATIENCE_S)
        result = Result(child.returncode, out.encode(), err.encode())
        self.assertNotRegex(result.err, NOISE)
        self.assertEqual((result.exit, result.out), (130, ""), result)
        box.script_nothing()
        return result

    def test_before_anything_was_sent_there_is_no_doubt(self) -> None:
        def check(box: Sandbox, number: int, call: str, line: str) -> None:
            box.service.create_key({})
            self.assertNotRegex(self.interrupt(box, number, call, *line.split()).err, DOUBT)
            self.assertEqual(box.writes, [])

        revoke = (signal.SIGINT, KEYS, "keys --revoke key_2 --yes")
        side_by_side(check, revoke, *((number, BILLING, "balance") for number in self.numbers))

    def test_a_long_pause_between_tries_ends_at_once(self) -> None:
        self.box.script(BILLING, Fault.reply(503, {}, {"Retry-After": "25"}))
        child = self.start(sys.executable, str(OPS), "balance", "--verbose")
        assert child.stderr
        self.assertIn("503", child.stderr.readline())
        self.box.closing.wait(0.3)  # it pauses by now
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(PATIENCE_S), 130)
        self.assertLess(time.monotonic() - began, 2.5)

    def test_a_signal_that_the_parent_ignores_is_ignored(self) -> None:
        self.box.script(BILLING, Fault(end="hang"))
        script = f"trap '' HUP; exec {shlex.quote(sys.executable)} {shlex.quote(str(OPS))}"
        child = self.start("sh", "-c", f"{script} balance --timeout 1")
        self.assertTrue(self.box.wait_for(BILLING))
        child.send_signal(signal.SIGHUP)
        self.assertEqual(child.wait(PATIENCE_S), 5)

    def test_while_a_key_is_made_it_says_to_look_first_and_leaves_no_empty_file(self) -> None:
        def check(box: Sandbox, number: int) -> None:
            path = Path(folder, f"key{number}")
            argv = ("keys", "--create", "--json", "--save", str(path))
            error = self.interrupt(box, number, CREATE, *argv).error
            self.assertEqual((error["code"], error["retryable"]), ("interrupted", False))
            self.assertEqual(next_words(error["next"])[0], "keys")
            self.assertFalse(path.exists())

        with tempfile.TemporaryDirectory() as folder:
            side_by_side(check, *zip(self.numbers))

    def test_a_new_key_that_is_on_its_way_is_delivered(self) -> None:
        def check(box: Sandbox, number: int) -> None:
            make, signalled = box.service.routes[CREATE], threading.Event()

            def make_later(body: Any) -> Any:
                signalled.wait(PATIENCE_S)
                box.closing.wait(0.3)  # longer than a loop takes to see the signal
                return make(body)

            box.service.routes[CREATE] = make_later
            child = self.start(sys.executable, str(OPS), "keys", "--create", **box.env)
            self.assertTrue(box.wait_for(CREATE))
            child.send_signal(number)
            signalled.set()
            out, err = child.communicate(timeout=PATIENCE_S)
            self.assertEqual(child.returncode, 0, err)
            self.assertEqual(out.splitlines()[0], box.books.keys[-1].secret)

        side_by_side(check, *zip(self.numbers))

    def test_while_a_setting_is_made_or_read_back_it_is_safe_to_repeat(self) -> None:
        self.save_card()
        number, argv = signal.SIGINT, ("auto-topup", "--enable", "--json")
        self.assertIs(self.interrupt(self.box, number, SET_RULE, *argv).error["retryable"], True)
        del self.box.requests[:]
        with self.after_a_write(BILLING, Fault(end="hang")) as arrived:
            result = self.interrupt(self.box, number, BILLING, *argv, arrived=arrived)
        self.assertIs(result.error["retryable"], True)
        self.assertTrue(self.box.books.auto_topup["enabled"])

    def check_delivered(self, box: Sandbox, exit_code: int, shown: str, err: str) -> None:
        """Either the key is there, whole, and there is no doubt, or the list is named."""
        self.assertIn(exit_code, (0, 130), err)
        self.assertNotRegex(err, NOISE)
        error: dict[str, Any] = {"next": None}
        if exit_code:
            error = json.loads(err.splitlines()[-1])["error"]
        doubt = bool(error["next"]) and next_words(error["next"])[0] == "keys"
        whole = f'"api_key":"{box.books.keys[-1].secret}"' in shown
        self.assertEqual(whole, not doubt, err)

    def test_after_the_key_is_delivered_there_is_no_doubt(self) -> None:
        def check(box: Sandbox, number: int) -> None:
            child = self.start(sys.executable, str(OPS), "keys", "--create", "--json", **box.env)
            assert child.stdout
            shown = child.stdout.readline()
            child.send_signal(number)
            _, err = child.communicate(timeout=PATIENCE_S)
            self.assertIn("api_key", shown)
            self.check_delivered(box, child.returncode, shown, err)

        side_by_side(check, *zip(self.numbers))

    def test_a_stdout_that_takes_nothing_does_not_hold_the_program_for_ever(self) -> None:
        reader, writer = full_pipe()
        self.addCleanup(os.close, reader)
        child = subprocess.Popen(
            [sys.executable, str(OPS), "balance"],
            stdout=writer,
            stderr=subprocess.DEVNULL,
            env=base_env(**self.box.env),
        )
        self.addCleanup(end, child)
        os.close(writer)
        self.assertTrue(self.box.wait_for(BILLING))
        ended = None
        for _ in range(20):  # the first is noted, one that comes a second later ends it
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = child.wait(0.5)
                break
        self.assertEqual(ended, 130)

    def test_while_the_key_is_delivered_it_comes_whole_or_is_in_doubt(self) -> None:
        for number in self.numbers:  # one at a time: a child must not inherit another's pipe
            reader, writer = full_pipe()
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
            self.check_delivered(self.box, child.returncode, shown, err.decode())


@unittest.skipUnless(has_terminal(), "needs a pseudo terminal")
class Terminal(SandboxTest):
    def test_no_text_at_the_hidden_prompt_exits_2_and_is_not_shown(self) -> None:
        command = (sys.executable, str(OPS), "upstream", "--set", "--api-key", "-")
        for typed in (b"\xff\xfe\n", b"sk-Sup3rS3cret \xff\n"):
            result = on_terminal(*command, typed=typed, env=self.box.env)
            self.assertEqual((result.exit, self.box.requests), (2, []), result)
            self.assertNotRegex(result.out, f"{NOISE}|Sup3rS3cret")

    def test_a_question_is_answered_with_a_capital_letter_too(self) -> None:
        self.box.service.create_key({})
        command = (sys.executable, str(OPS), "keys", "--revoke", "key_2")
        for typed, exit_code in ((b"n\n", 2), (b"Y\n", 0)):
            result = on_terminal(*command, typed=typed, env=self.box.env)
            self.assertEqual(result.exit, exit_code, result)

    def test_under_json_everything_on_the_terminal_is_json(self) -> None:
        self.box.spend()
        command = (sys.executable, str(OPS), "balance", "--wait", "1", "--json", "--verbose")
        result = on_terminal(*command, env=self.box.env)
        self.assertEqual(result.exit, 4)
        for line in result.out.splitlines():
            self.assertIsInstance(json.loads(line), dict)


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
