"""Streams, files, signals and terminals: nobody listens, somebody interrupts, a disk is full."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
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
    LINUX,
    NOISE,
    OPS,
    PATIENCE_S,
    POSIX,
    PROGRAM,
    SET_RULE,
    Fault,
    OverlappingTest,
    QuickClock,
    Result,
    Sandbox,
    SandboxTest,
    base_env,
    billing,
    black_hole,
    call_on,
    changed,
    connecting_to,
    end,
    fill,
    has_terminal,
    next_words,
    on_terminal,
    ops,
    outcome,
    reply,
    run,
    run_changed,
    side_by_side,
)

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

DOUBT = "(?i)may have|uncertain|--revoke"


def small_files(limit: int) -> str:
    """For `changed`: a limit on the size of files, as a disk that is nearly full."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"


def full_pipe(blocking: bool = True) -> tuple[int, int]:
    """A pipe that takes no more."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"\n")
    os.set_blocking(writer, blocking)
    return reader, writer


@unittest.skipUnless(POSIX, "POSIX descriptors")
class Streams(OverlappingTest):
    def shell(self, script: str, shell: str = "sh") -> Result:
        """Run a shell script in which $OPS is the program."""
        command = shlex.join(PROGRAM)
        result = run(shell, "-c", script.replace("$OPS", command), **self.box.env)
        self.assertNotRegex(result.err, NOISE)
        return result

    def test_with_a_closed_stdout_nothing_is_sent(self) -> None:
        self.assertEqual(self.shell("$OPS keys --create --json >&-").exit, 2)
        self.assertEqual(self.box.requests, [])

    def run_into(self, stdout: Any, *command: str, **env: str) -> Result:
        """Run a command with this standard output, which it may fail to write."""
        child = subprocess.run(
            command,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=base_env(**self.box.env, **env),
            timeout=PATIENCE_S,
            check=False,
        )
        result = Result(child.returncode, b"", child.stderr)
        self.assertNotRegex(result.err, NOISE)
        self.assertNotIn(self.box.account.keys[-1].secret, result.err)
        return result

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_half_a_result_is_none(self) -> None:
        for line, limit, unbuffered, exit_code in (
            *(("keys --create", 10, "", 6), ("keys --create --json", 10, "1", 6)),
            *(("topup", 10, "1", 1), ("--version", 3, "1", 1)),
        ):
            with self.subTest(line, unbuffered=unbuffered), tempfile.TemporaryFile() as out:
                command = (*changed(small_files(limit)), *line.split())
                result = self.run_into(out, *command, PYTHONUNBUFFERED=unbuffered)
                self.assertEqual(result.exit, exit_code, result)

    def test_a_new_key_that_a_pipe_did_not_take_exits_6_and_is_named(self) -> None:
        gone, to_nobody = os.pipe()
        os.close(gone)
        reader, full = full_pipe(blocking=False)
        for writer, unbuffered in ((to_nobody, ""), (to_nobody, "1"), (full, "1")):
            command = (*PROGRAM, "keys", "--create", "--json")
            error = self.error_of(self.run_into(writer, *command, PYTHONUNBUFFERED=unbuffered))
            self.assertEqual((error["exit"], next_words(error["next"])), (6, ["keys"]))
            self.assertIn(self.box.account.keys[-1].id, error["message"])
        os.close(to_nobody)
        os.close(full)
        with open(reader, "rb") as pipe:
            self.assertNotIn(b"cf_", pipe.read())

    def test_a_wait_without_a_stderr_ends_as_with_one(self) -> None:
        for stderr in ("2>&-", *["2>/dev/full"] * os.path.exists("/dev/full")):
            result = self.shell(f"$OPS topup --wait 0.5 --verbose {stderr}")
            self.assertEqual((result.exit, "/pay/" in result.out), (4, True), result)

    @unittest.skipUnless(shutil.which("bash"), "needs a shell with pipefail")
    def test_a_reader_that_leaves_early_exits_1_without_noise(self) -> None:
        self.box.account.keys.extend(self.box.account.keys * 3000)  # more than a pipe holds
        result = self.shell("set -o pipefail; $OPS keys | head -1", "bash")
        self.assertEqual((len(result.out.splitlines()), result.exit), (1, 1), result)

    @unittest.skipUnless(resource, "needs a limit on the size of files")
    def test_a_file_that_takes_no_more_exits_6_and_is_removed(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            argv = ("keys", "--create", "--json", "--save", str(Path(folder, "new.key")))
            for limit, odd_id in ((0, None), (10, "k; touch pwned #"), (0, "--pwned")):
                if odd_id:
                    self.script(CREATE, reply({"apiKey": "cf_new_0123456789abcdef", "id": odd_id}))
                result = run_changed(small_files(limit), *argv, **self.box.env)
                self.assertEqual((result.exit, result.out), (6, ""), result)
                error = self.error_of(result)
                self.assertEqual(next_words(error["next"]), ["keys"])
                self.assertNotIn(self.box.account.keys[-1].secret, str(error))
                self.assertEqual(os.listdir(folder), [])


class Files(SandboxTest):
    """The file of `--save`, where a page cannot show it."""

    def setUp(self) -> None:
        super().setUp()
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.path = Path(folder.name, "new.key")
        self.argv = ("keys", "--create", "--save", str(self.path))

    def test_a_file_system_that_cannot_flush_to_disk_keeps_the_key(self) -> None:
        with mock.patch.object(os, "fsync", side_effect=OSError(errno.EINVAL, "no")):
            self.ok(*self.argv)
        self.assertEqual(self.path.read_text("utf-8"), self.box.account.keys[-1].secret + "\n")

    def test_a_signal_while_the_disk_is_slow_leaves_the_key_in_its_file(self) -> None:
        with mock.patch.object(os, "fsync", side_effect=KeyboardInterrupt):
            self.ok(*self.argv)
        self.assertEqual(self.path.read_text("utf-8"), self.box.account.keys[-1].secret + "\n")


@unittest.skipUnless(POSIX, "POSIX signals")
class Signals(OverlappingTest):
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if POSIX else ()

    def setUp(self) -> None:
        super().setUp()
        self.save_card()
        self.box.service.create_key({})

    def interrupted(self, child: Any, number: int, retryable: bool) -> Any:
        """Signal a process, twice; it has to end with 130 and know whether a key is in doubt."""
        child.send_signal(number)
        child.send_signal(number)
        result = outcome(child)
        self.assertEqual((result.exit, result.out), (130, ""), result)
        error = self.error_of(result)
        self.assertIs(error["retryable"], retryable, error)
        if not retryable:
            self.assertEqual(next_words(error["next"]), ["keys"])
        return error

    def test_before_anything_was_sent_there_is_no_doubt(self) -> None:
        def check(box: Sandbox, number: int, line: str, call: str) -> None:
            box.service.create_key({})
            box.add_faults(call, Fault(end="hang"))
            child = self.start_ops(*line.split(), "--json", **box.env)
            self.assertTrue(box.wait_for(call))
            self.assertNotRegex(self.interrupted(child, number, True)["words"], DOUBT)
            self.assertEqual(box.writes, [])

        lines = ("balance", "topup", "keys --revoke key_2 --yes")
        side_by_side(check, *zip(self.numbers, lines, (BILLING, BILLING, KEYS)))

    def test_a_signal_before_the_first_response_stops_the_write(self) -> None:
        for number, line, call in zip(
            self.numbers * 2,
            ("topup", "keys --create", "auto-topup --enable", "keys --revoke key_2 --yes"),
            (BILLING, KEYS, BILLING, KEYS),
        ):
            with self.subTest(line=line):
                honest, signalled = self.box.service.routes[call], threading.Event()

                def late(body: Any, honest: Any = honest, signalled: Any = signalled) -> Any:
                    signalled.wait(PATIENCE_S)
                    return honest(body)

                self.script(call)
                with mock.patch.dict(self.box.service.routes, {call: late}):
                    child = self.start_ops(*line.split(), "--json")
                    self.assertTrue(self.box.wait_for(call))
                    threading.Timer(0.02, signalled.set).start()
                    error = self.interrupted(child, number, True)
                self.assertNotRegex(error["words"], DOUBT)
                self.assertEqual(self.sent(), [])

    @unittest.skipUnless(LINUX, "needs /proc and a queue of connections that drops")
    def test_while_a_read_connects_nothing_was_sent(self) -> None:
        with black_hole() as port, tempfile.TemporaryDirectory() as folder:
            path, before = Path(folder, "key"), connecting_to(port)
            argv = ("keys", "--create", "--save", str(path), "--json")
            child = self.start_ops(*argv, CACHEFORGE_BASE_URL=f"http://127.0.0.1:{port}")
            self.wait_for_connect(port, before)
            error = self.interrupted(child, signal.SIGINT, True)
            self.assertNotRegex(error["words"], DOUBT)
            self.assertFalse(path.exists())

    @unittest.skipUnless(LINUX, "needs /proc and a queue of connections that drops")
    def test_while_a_write_connects_nothing_was_sent(self) -> None:
        for line in ("topup", "keys --create"):
            with contextlib.ExitStack() as stack:
                listener = stack.enter_context(socket.socket())
                listener.bind(("127.0.0.1", 0))
                listener.listen(0)
                port = listener.getsockname()[1]
                env = {"CACHEFORGE_BASE_URL": f"http://127.0.0.1:{port}"}
                child = self.start_ops(*line.split(), "--json", **env)
                connection = stack.enter_context(listener.accept()[0])
                connection.recv(65536)
                fill(listener.getsockname(), stack)
                before = connecting_to(port)
                connection.sendall(reply({**billing(), "keys": []}).raw)
                connection.close()
                self.wait_for_connect(port, before)
                error = self.interrupted(child, signal.SIGINT, True)
                self.assertNotRegex(error["words"], DOUBT)

    def wait_for_connect(self, port: int, before: int) -> None:
        """Wait until one more connection hangs there."""
        ends = time.monotonic() + PATIENCE_S
        while connecting_to(port) <= before:
            self.assertLess(time.monotonic(), ends)
            self.box.closing.wait(0.01)

    def test_a_long_pause_between_tries_ends_at_once(self) -> None:
        self.box.add_faults(BILLING, Fault.reply(503, {}, {"Retry-After": "25"}))
        child = self.start_ops("balance", "--verbose")
        assert child.stderr
        self.assertIn("503", child.stderr.readline())
        self.box.closing.wait(0.3)  # it pauses by now
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        self.assertEqual(child.wait(PATIENCE_S), 130)
        self.assertLess(time.monotonic() - began, 2.5)

    def test_a_signal_that_the_parent_ignores_is_ignored(self) -> None:
        self.box.add_faults(BILLING, Fault(end="hang"))
        script = f"trap '' HUP; exec {shlex.join(PROGRAM)}"
        child = self.start("sh", "-c", f"{script} balance --timeout 1")
        self.assertTrue(self.box.wait_for(BILLING))
        child.send_signal(signal.SIGHUP)
        self.assertEqual(child.wait(PATIENCE_S), 5)

    def test_while_a_key_is_created_it_says_to_run_keys_and_leaves_no_empty_file(self) -> None:
        def check(box: Sandbox, number: int) -> None:
            path = Path(folder, f"key{number}")
            box.add_faults(CREATE, Fault(end="hang"))
            argv = ("keys", "--create", "--json", "--save", str(path))
            child = self.start_ops(*argv, **box.env)
            self.assertTrue(box.wait_for(CREATE))
            self.interrupted(child, number, False)
            self.assertFalse(path.exists())

        with tempfile.TemporaryDirectory() as folder:
            side_by_side(check, *zip(self.numbers))

    def test_a_new_key_that_is_on_its_way_is_delivered(self) -> None:
        make, signalled = self.box.service.routes[CREATE], threading.Event()

        def make_later(body: Any) -> Any:
            signalled.wait(PATIENCE_S)
            self.box.closing.wait(0.3)  # longer than a loop takes to see the signal
            return make(body)

        self.box.service.routes[CREATE] = make_later
        child = self.start_ops("keys", "--create")
        self.assertTrue(self.box.wait_for(CREATE))
        child.send_signal(signal.SIGTERM)
        signalled.set()
        result = outcome(child)
        self.assertEqual(result.exit, 0, result)
        self.assertEqual(result.out.splitlines()[0], self.box.account.keys[-1].secret)

    def test_while_a_setting_is_sent_or_read_back_it_is_safe_to_repeat(self) -> None:
        self.script(SET_RULE, Fault(end="hang"))
        child = self.start_ops("auto-topup", "--enable", "--json")
        self.assertTrue(self.box.wait_for(SET_RULE))
        self.interrupted(child, signal.SIGINT, True)
        self.script(SET_RULE)
        with self.after_a_write(BILLING, Fault(end="hang")) as arrived:
            child = self.start_ops("auto-topup", "--enable", "--json")
            self.assertTrue(arrived.wait(PATIENCE_S))
            self.interrupted(child, signal.SIGINT, True)
        self.assertTrue(self.box.account.auto_topup["enabled"])

    def check_delivered(self, exit_code: int, shown: str, err: str) -> None:
        """Either the key is there, whole, and the exit code is 0, or `keys` is next."""
        self.assertIn(exit_code, (0, 130), err)
        self.assertNotRegex(err, NOISE)
        whole = f'"api_key":"{self.box.account.keys[-1].secret}"' in shown
        self.assertEqual(whole, exit_code == 0, err)
        if not whole:
            error = json.loads(err.splitlines()[-1])["error"]
            self.assertEqual(next_words(error["next"]), ["keys"])

    def test_after_the_key_is_delivered_there_is_no_doubt(self) -> None:
        child = self.start_ops("keys", "--create", "--json")
        assert child.stdout
        shown = child.stdout.readline()
        child.send_signal(signal.SIGINT)
        result = outcome(child)
        self.assertIn("api_key", shown)
        self.check_delivered(result.exit, shown, result.err)

    def start_blocked(self, *argv: str) -> tuple[subprocess.Popen[bytes], int]:
        """Start ops.py with a full pipe as its stdout; also returns the end to read from."""
        reader, writer = full_pipe()
        child = subprocess.Popen(
            [*PROGRAM, *argv],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=base_env(**self.box.env),
        )
        self.addCleanup(end, child)
        os.close(writer)
        return child, reader

    def test_a_stdout_that_takes_nothing_does_not_hold_the_program_for_ever(self) -> None:
        child, reader = self.start_blocked("balance")
        self.addCleanup(os.close, reader)
        self.assertTrue(self.box.wait_for(BILLING))
        ended = None
        for _ in range(20):  # the first is noted, one that comes a second later ends it
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                ended = child.wait(0.5)
                break
        self.assertEqual(ended, 130)

    def test_while_the_key_is_delivered_it_comes_whole_or_is_in_doubt(self) -> None:
        child, reader = self.start_blocked("keys", "--create", "--json")
        self.assertTrue(self.box.wait_for(CREATE))
        child.send_signal(signal.SIGHUP)
        with open(reader, "rb") as pipe:
            shown = pipe.read().decode()
        _, err = child.communicate(timeout=PATIENCE_S)
        self.check_delivered(child.returncode, shown, err.decode())


@unittest.skipUnless(has_terminal(), "needs a pseudo terminal")
class Terminal(OverlappingTest):
    def test_no_text_at_the_hidden_prompt_exits_2_and_is_not_shown(self) -> None:
        command = (*PROGRAM, "upstream", "--set", "--api-key", "-")
        for typed in (b"\xff\xfe\n", b"sk-Sup3rS3cret \xff\n"):
            result = on_terminal(*command, typed=typed, env=self.box.env)
            self.assertEqual((result.exit, self.box.requests), (2, []), result)
            self.assertNotRegex(result.out, f"{NOISE}|Sup3rS3cret")

    def test_under_json_everything_on_the_terminal_is_json(self) -> None:
        self.box.set_balance(0)
        command = (*PROGRAM, "balance", "--wait", "1", "--json", "--verbose")
        result = on_terminal(*command, env=self.box.env)
        self.assertEqual(result.exit, 4)
        for line in result.out.splitlines():
            self.assertIsInstance(json.loads(line), dict)

    @unittest.skipUnless(hasattr(signal, "pthread_sigmask"), "POSIX signals")
    def test_a_signal_that_does_not_interrupt_the_question_is_noticed(self) -> None:
        """As one that comes just before Python blocks; here, because another thread receives it."""
        script = (
            "import runpy, signal, sys, threading, time\n"
            "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})\n"
            "sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')"
        )
        command = (PROGRAM[0], "-c", script, str(OPS), "upstream", "--set", "--api-key", "-")
        result = on_terminal(*command, typed=b"\x03", env=self.box.env)
        self.assertEqual((result.exit, self.box.requests), (130, []), result)
        self.assertIn("nothing was changed", result.out)


class StandardInput(SandboxTest):
    @unittest.skipUnless(POSIX, "on Windows nothing interrupts the read")
    def test_a_key_that_does_not_come_is_waited_for_until_the_timeout(self) -> None:
        reader, writer = os.pipe()  # which stays open, as that of an agent's shell may
        argv = ("upstream", "--set", "--kind", "openrouter", "--api-key", "-", "--timeout", "1")
        began = time.monotonic()
        with open(reader, "rb") as pipe, open(writer, "wb"):
            done = subprocess.run(
                (*PROGRAM, *argv),
                stdin=pipe,
                capture_output=True,
                env=base_env(**self.box.env),
                timeout=PATIENCE_S,
                check=False,
            )
        self.assertEqual((done.returncode, self.box.requests), (2, []), done)
        self.assertIn(b"standard input is missing or empty", done.stderr)
        self.assertLess(time.monotonic() - began, 5)


class OurOwnMistakes(SandboxTest):
    """A defect of the program itself; the clock is the one place where a test can put one."""

    def test_it_says_so_with_the_version_and_the_place_to_report_and_quotes_nothing(self) -> None:
        class Broken(QuickClock):
            def sleep(self, seconds: float) -> None:
                raise RuntimeError(f"the text {DEFAULT_KEY}")

        for extra in ((), ("--json",)):
            self.box.add_faults(BILLING, Fault.reply(503, {}))
            result = call_on(Broken(), "balance", *extra, **self.box.env)
            self.assertEqual((result.exit, result.out), (1, ""))
            self.assertRegex(result.err, f"this is a bug in .*-ops {re.escape(ops.__version__)}")
            self.assertRegex(result.err, "(?i)report")
            self.assertNotRegex(result.err, f"Traceback|the text|{DEFAULT_KEY[:12]}|support.py")
