"""What the tests share: the program under test, as a module and as a process."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import queue
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SKILL = ROOT / "skills" / "cacheforge-ops"
OPS = SKILL / "ops.py"
sys.path.insert(0, str(SKILL))

import ops  # noqa: E402
import sandbox  # noqa: E402
from sandbox import DEFAULT_KEY, Fault, Sandbox, Seen  # noqa: E402

__all__ = ["DEFAULT_KEY", "OPS", "ROOT", "SKILL", "Fault", "Sandbox", "Seen", "ops"]

PATIENCE_S = 60
BILLING = "GET /v1/account/billing"
TOPUP = "POST /v1/account/billing/topup"
KEYS = "GET /v1/account/keys"
CREATE = "POST /v1/account/keys"
UPSTREAM = "GET /v1/account/upstream"
INFO = "GET /v1/account/info"
SET_RULE = "PATCH /v1/account/billing/auto-topup"
SET_UPSTREAM = "POST /v1/account/upstream"
REVOKE = "POST /v1/account/keys/key_2/revoke"

THEIRS = "sk-or-v1-Sup3rS3cret"  # the provider's key
SET_THEIRS = ("upstream", "--set", "--kind", "openrouter", "--api-key-env", "THEIRS")
READS: dict[str, tuple[tuple[str, ...], str]] = {
    "balance": (("balance",), BILLING),
    "auto_topup": (("auto-topup",), BILLING),
    "upstream": (("upstream",), UPSTREAM),
    "keys": (("keys",), KEYS),
    "info": (("info",), INFO),
}
WRITES: dict[str, tuple[tuple[str, ...], str]] = {
    "topup": (("topup",), TOPUP),
    "auto_topup_enable": (("auto-topup", "--enable"), SET_RULE),
    "upstream_set": (SET_THEIRS, SET_UPSTREAM),
    "keys_create": (("keys", "--create"), CREATE),
    "keys_revoke": (("keys", "--revoke", "key_2", "--yes"), REVOKE),
}
COMMANDS = {**READS, **WRITES}
GOOD = (
    b'{"billing": {"creditBalanceMicrousd": 5, "autoTopupEnabled": false,'
    b' "defaultPaymentMethodSet": false}}'
)

# a runner in the background may have been told to ignore these, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


# of the environment, as little as a process can do with: nothing of the developer's own
KEPT = {
    name: os.environ[name]
    for name in ("PATH", "SYSTEMROOT", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    if name in os.environ
}


def base_env(**extra: str) -> dict[str, str]:
    """The environment of a process under test."""
    return {**KEPT, "PYTHONWARNINGS": "error", **extra}


def http(head: str, body: bytes = b"") -> Fault:
    """A response given to the byte: status line and headers, then a body."""
    return Fault(head.replace("\n", "\r\n").encode("latin-1") + body)


def moved(status: int, place: str) -> Fault:
    """A redirect."""
    return http(f"HTTP/1.1 {status} Moved\nLocation: {place}\nContent-Length: 0\n\n")


class Result:
    """What a finished process left behind."""

    def __init__(self, exit_code: int, stdout: bytes, stderr: bytes) -> None:
        self.exit = exit_code
        self.raw = stdout
        self.out = stdout.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
        self.err = stderr.decode("utf-8", "surrogateescape").replace("\r\n", "\n")

    @property
    def json(self) -> Any:
        """The one JSON object on standard output."""
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The error object that is the last line on standard error."""
        return json.loads(self.err.splitlines()[-1])["error"]

    def __repr__(self) -> str:
        return f"exit {self.exit}\n--- stdout\n{self.out}\n--- stderr\n{self.err}"


def run(*command: str, stdin: str | bytes = b"", folder: str | Path = ROOT, **env: str) -> Result:
    """Run a command to its end, in a process of its own."""
    done = subprocess.run(
        command,
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=folder,
        env=base_env(**env),
        timeout=PATIENCE_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def git(*argv: str) -> str:
    """What git says about this repository; the test is skipped where it cannot say anything."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        raise unittest.SkipTest("needs git and a checkout")
    command = ("git", "-c", "safe.directory=*", *argv)  # it may be somebody else's clone
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 128:
        raise unittest.SkipTest(done.stderr.partition("\n")[0])
    return done.stdout


def run_ops(*argv: str, stdin: str | bytes = b"", **env: str) -> Result:
    """Run ops.py as its users do: a process of its own."""
    return run(sys.executable, str(OPS), *argv, stdin=stdin, **env)


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    """Start a command, to be watched, signalled and ended by the test; see SandboxTest.start."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=base_env(**env),
        text=True,
    )


def has_terminal() -> bool:
    """Whether this machine has a pseudo terminal to run a command on."""
    try:
        for end_of_it in os.openpty():
            os.close(end_of_it)
    except (AttributeError, OSError):  # Windows; a container without /dev/pts
        return False
    return True


def on_terminal(
    *command: str, columns: int = 80, typed: bytes = b"", env: Mapping[str, str] | None = None
) -> Result:
    """Run a command on a terminal of its own; its screen is the standard output. What is typed
    is typed at the first question, or at the countdown."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, bytes([24, 0, columns, 0, 0, 0, 0, 0]))
    # a session that has no terminal yet takes the first one that it opens, with its Ctrl-C
    adopt = ("sh", "-c", f'exec "$@" <{os.ttyname(slave)}', "sh")
    child = subprocess.Popen(
        (*adopt, *command),
        stdout=slave,
        stderr=slave,
        env=base_env(TERM="xterm", **(env or {})),
        start_new_session=True,
    )
    os.close(slave)
    rescue = threading.Timer(PATIENCE_S / 3, os.killpg, (child.pid, signal.SIGKILL))
    rescue.start()
    screen = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while block := os.read(master, 65536):
            screen += block
            if typed and re.search(rb"(: |\] |left )$", screen):
                os.write(master, typed)
                typed = b""
    code = child.wait()
    rescue.cancel()
    os.close(master)
    return Result(128 - code if code < 0 else code, screen, b"")


def end(child: subprocess.Popen[Any]) -> None:
    """End a child, whatever state it is in, and close its pipes."""
    child.kill()
    child.wait(PATIENCE_S)
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream:
            with contextlib.suppress(OSError):
                stream.close()


def next_words(line: str) -> list[str]:
    """The words after `python3 …/ops.py` in a command line that is meant to be pasted."""
    # a Windows shell knows no backslash escapes, and quotes with " alone
    words = shlex.split(line.replace("\\", "/") if os.name == "nt" else line)
    python = "python" if os.name == "nt" else "python3"
    if words[:2] != [python, OPS.as_posix()]:
        raise AssertionError(f"does not start this program: {line}")
    return words[2:]


if not hasattr(ops, "Clock"):
    raise ImportError("ops.Clock is gone: without it the tests would wait for real")


class QuickClock(ops.Clock):
    """Real time, plus all that was slept, which takes no time."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def now(self) -> float:
        """The real time, moved on by what was slept."""
        return super().now() + sum(self.slept)

    def sleep(self, seconds: float) -> None:
        """Jump."""
        self.slept.append(seconds)


class JumpingClock(QuickClock):
    """Time passes by sleeping alone, so that every second is told exactly; for services that
    answer at once. `events` are called when so much was slept."""

    def __init__(self, events: Mapping[float, Callable[[], object]] | None = None) -> None:
        super().__init__()
        self._due = sorted((events or {}).items(), key=lambda event: event[0])

    @property
    def passed_s(self) -> float:
        """What was slept."""
        return math.fsum(self.slept)

    def now(self) -> float:
        """The seconds slept."""
        return 1000 + self.passed_s

    def sleep(self, seconds: float) -> None:
        """Jump, and let happen what is due."""
        super().sleep(seconds)
        while self._due and self.passed_s >= self._due[0][0]:
            self._due.pop(0)[1]()


def call_ops(*argv: str, stdin: str = "", **env: str) -> Result:
    """Call ops.py's `main` in this process: the same road, without the start."""
    return call_on(QuickClock(), *argv, stdin=stdin, **env)


def call_on(
    clock: ops.Clock, *argv: str, stdin: str = "", program: str = str(OPS), **env: str
) -> Result:
    """The same on a clock of one's own."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, base_env(**env), clear=True))
        stack.enter_context(mock.patch.object(sys, "argv", [program, *argv]))
        stack.enter_context(mock.patch.object(sys, "stdin", io.StringIO(stdin)))
        stack.enter_context(mock.patch.object(ops, "Clock", lambda: clock))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        exit_code = ops.main(list(argv))
        out.flush()
        err.flush()
    return Result(exit_code, out.buffer.getvalue(), err.buffer.getvalue())


def side_by_side(check: Callable[..., object], *cases: tuple[Any, ...]) -> None:
    """Check all cases at the same time, each in a sandbox of its own: real waits overlap."""

    def one(case: tuple[Any, ...]) -> None:
        with Sandbox() as box:
            check(box, *case)

    with ThreadPoolExecutor(len(cases)) as pool:
        list(pool.map(one, cases))


OPENING = threading.Lock()


@contextlib.contextmanager
def open_sandbox(words: Sequence[str]) -> Iterator[tuple[Sandbox, Sequence[str]]]:
    """The sandbox of `sandbox.py WORD...`, and the command that it would run.

    Raises SystemExit if the words are wrong.
    """
    opened, closed = queue.SimpleQueue[Any](), threading.Event()

    def run_inside(box: Sandbox, command: Sequence[str]) -> int:
        opened.put((box, command))
        closed.wait()
        return 0

    def main() -> None:
        try:
            opened.put(SystemExit(sandbox.main(words)))
        except SystemExit as refused:
            opened.put(refused)

    with OPENING, mock.patch.object(sandbox, "run_inside", run_inside):
        thread = threading.Thread(target=main)
        thread.start()
        first = opened.get()
    if isinstance(first, SystemExit):
        raise first
    try:
        yield first
    finally:
        closed.set()
        thread.join()


def in_process(line: str) -> Result:
    """Run `[echo WORD |] [NAME=value...] [timeout...] python3 SCRIPT ARG...` in this process.

    In place of the seconds of `timeout`, Ctrl-C comes with the request that will hang.
    """
    typed, pipe, rest = line.rpartition(" | ")
    stdin = typed[len("echo ") :] + "\n" if pipe else ""
    words = shlex.split(rest)
    start = words.index("python3")
    env = dict(word.split("=", 1) for word in words[:start] if re.match("[A-Z_]+=", word))
    if words[start + 1] != "tests/sandbox.py":
        return call_ops(*words[start + 2 :], stdin=stdin, **env)
    hanging = re.search(r'"([^"=]+)=(?:done\+)?hang"', rest) if "timeout" in words else None
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), open_sandbox(words[start + 2 :]) as (box, command):
            if hanging:
                threading.Thread(target=press_ctrl_c, args=(box, hanging[1]), daemon=True).start()
            result = call_ops(*command[2:], stdin=stdin, **{**box.env, **env})
    except SystemExit as refused:
        return Result(int(str(refused)), b"", err.getvalue().encode())
    return Result(result.exit, result.raw, (result.err + err.getvalue()).encode())


def press_ctrl_c(box: Sandbox, call: str) -> None:
    """Do so once such a request has arrived."""
    if box.wait_for(call, 10):
        os.kill(os.getpid(), signal.SIGINT)


class SandboxTest(unittest.TestCase):
    """A test with a fresh sandbox, in `self.box`."""

    balance_usd = "12.34"

    def setUp(self) -> None:
        stack = contextlib.ExitStack()
        self.addCleanup(stack.close)
        self.box = stack.enter_context(Sandbox(self.balance_usd))

    def ops(self, *argv: str, stdin: str = "", **env: str) -> Result:
        """Call ops.py against the sandbox."""
        return call_ops(*argv, stdin=stdin, **{**self.box.env, **env})

    def process(self, *argv: str, stdin: str | bytes = b"", **env: str) -> Result:
        """Run ops.py against the sandbox as a process."""
        return run_ops(*argv, stdin=stdin, **{**self.box.env, **env})

    def start(self, *command: str, **env: str) -> subprocess.Popen[str]:
        """Start a command against the sandbox; it does not outlive the test."""
        child = start(*command, **{**self.box.env, **env})
        self.addCleanup(end, child)
        return child

    def ok(self, *argv: str, stdin: str = "", **env: str) -> Result:
        """Run ops.py against the sandbox; it must succeed and say nothing on stderr."""
        result = self.ops(*argv, stdin=stdin, **env)
        self.assertEqual((result.exit, result.err), (0, ""), result)
        return result

    def fails(self, exit_code: int, *argv: str, stdin: str = "", **env: str) -> Result:
        """Run ops.py against the sandbox; it must fail like this, with an empty stdout."""
        result = self.ops(*argv, stdin=stdin, **env)
        self.assertEqual((result.exit, result.out), (exit_code, ""), result)
        self.assertNotEqual(result.err, "")
        self.assertNotIn("Traceback", result.err)
        return result

    @contextlib.contextmanager
    def after_a_write(self, call: str, *faults: Fault) -> Iterator[threading.Event]:
        """Answer this call so, but only once something was written; the event tells of it."""
        record, arrived = self.box.record, threading.Event()

        def recorded(seen: Seen) -> None:
            record(seen)
            if seen.method != "GET":
                self.box.script(call, *faults)
            elif seen.call == call and self.box.writes:
                arrived.set()

        with mock.patch.object(self.box, "record", recorded):
            yield arrived

    def save_card(self) -> None:
        """Let the account have a saved card."""
        self.box.books.card_saved = True


class FaultTest(SandboxTest):
    """A sandbox where every command would succeed, but for the fault under test."""

    def setUp(self) -> None:
        super().setUp()
        self.save_card()
        self.box.service.create_key({})

    def meet(self, name: str, *faults: Fault, extra: tuple[str, ...] = ()) -> Result:
        """Run a command against scripted faults; check what must hold whatever they are."""
        argv, call = COMMANDS[name]
        del self.box.requests[:]
        self.box.script(call, *faults)
        result = self.ops(*argv, "--verbose", *extra, THEIRS=THEIRS)
        self.box.script_nothing()
        everything = result.out + result.err
        self.assertNotIn("Traceback", everything)
        self.assertNotIn("mistake in this program", everything)
        for secret in (DEFAULT_KEY, THEIRS):
            self.assertNotIn(secret, everything)
        self.assertEqual([seen.call for seen in self.box.writes], [call] * (name in WRITES))
        if result.exit:
            self.assertEqual(result.out, "", result)
        for line in result.err.splitlines():
            self.assertLess(len(line), 800)
            self.assertTrue(line.isprintable(), ascii(line))
        return result

    def end(self, name: str, fault: Fault, exit_code: int) -> Result:
        """Meet a fault that does not go away, and end with this exit code."""
        result = self.meet(name, *[fault] * 3)
        self.assertEqual(result.exit, exit_code, result)
        return result


TRANSCRIPTS = sorted((ROOT / "tests" / "transcripts").glob("*.md"))


class Command(NamedTuple):
    """A command on a page, and what it answered when that was written down."""

    page: str
    mark: str
    line: str
    said: list[str]

    @property
    def out(self) -> list[str]:
        """The lines on standard output."""
        return [line for line in self.said[:-1] if not line.startswith("2> ")]

    @property
    def err(self) -> list[str]:
        """The lines on standard error."""
        return [line[len("2> ") :] for line in self.said if line.startswith("2> ")]

    @property
    def exit(self) -> int:
        """The exit code."""
        return int(self.said[-1][len("exit ") :])

    @property
    def can_run(self) -> bool:
        """Whether this machine has what the command needs."""
        devices = [Path(name).exists() for name in re.findall(r"/dev/\w+", self.line)]
        programs = [shutil.which(name) for name in ("iconv",) if name in self.line]
        return all(devices) and all(programs) and (self.mark[:8] != "terminal" or has_terminal())


def read_page(path: Path) -> list[str | Command]:
    """The lines of a page, with what is in its blocks as commands."""
    mark, parts = "", list[Any]()
    for line in path.read_text("utf-8").splitlines():
        if line.startswith("```"):
            mark = "" if mark else line[3:]
            parts.append(line)
        elif mark and line.startswith("$ "):
            parts.append(Command(path.name, mark, line[2:], []))
        elif mark:
            parts[-1].said.append(line)
        else:
            parts.append(line)
    return parts


def shown_commands(*marks: str) -> Iterator[Command]:
    """The commands of all pages, or those in blocks that are marked like this."""
    for path in TRANSCRIPTS:
        for part in read_page(path):
            if isinstance(part, Command) and (not marks or part.mark.split()[0] in marks):
                yield part
