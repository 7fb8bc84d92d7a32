"""What the tests share: the program under test, scripted services, and odd surroundings."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import unittest
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SKILL = ROOT / "skills" / "cacheforge-ops"
OPS = SKILL / "ops.py"
sys.path.insert(0, str(SKILL))

import ops  # noqa: E402
import sandbox  # noqa: E402
from sandbox import DEFAULT_KEY, Fault, Request  # noqa: E402

__all__ = ["DEFAULT_KEY", "OPS", "ROOT", "SKILL", "Fault", "Request", "ops"]

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
LINK = "https://pay.example.com/c/cs_1"
NEW_KEY = "cf_new_0123456789abcdef"
# ops.py as a module that is the main one: Python keeps its byte code, so that a process starts in
# half the time. As a script it is started by test_docs and test_house, and by sandbox.py
START = f"""import runpy, sys
sys.path[0] = {str(SKILL)!r}
runpy.run_module("ops", run_name="__main__", alter_sys=True)"""
PROGRAM = (sys.executable, "-c", START)
CERTIFICATES = Path(__file__).parent / "certificates"
AUTHORITY = str(CERTIFICATES / "authority.pem")
POSIX = os.name != "nt"
LINUX = sys.platform == "linux"
CODES = {1: "failed", 2: "usage", 3: "unauthorized", 4: "payment_required", 5: "unreachable"}
CODES.update({6: "uncertain", 130: "interrupted"})
ERROR_FIELDS = ["code", "message", "exit", "http_status", "request_id", "retryable"]
ERROR_FIELDS += ["retry_after_seconds", "hint", "next"]
NOISE = "Traceback|Exception ignored|BrokenPipe|this is a bug"

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


def http(head: str, body: bytes = b"", end: str = "close") -> Fault:
    """A response given to the byte: status line and headers, then a body."""
    return Fault(head.replace("\n", "\r\n").encode("latin-1") + body, end=end)


def moved(status: int, place: str) -> Fault:
    """A redirect."""
    return http(f"HTTP/1.1 {status} Moved\nLocation: {place}\nContent-Length: 0\n\n")


def reply(body: object, status: int = 200, **headers: str) -> Fault:
    """A well-formed response; underscores in the names of headers stand for hyphens."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Fault.reply(status, body, named)


def billing(balance_usd: float = 5, rule: tuple[int, int] | None = None, card: bool = True) -> Any:
    """An account as the service describes it."""
    threshold, amount = rule or (0, 0)
    return {
        "billing": {
            "creditBalanceMicrousd": round(balance_usd * 1_000_000),
            "autoTopupEnabled": rule is not None,
            "autoTopupThresholdCents": threshold,
            "autoTopupAmountCents": amount,
            "defaultPaymentMethodSet": card,
        }
    }


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
    return run(*PROGRAM, *argv, stdin=stdin, **env)


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    """Start a command, to be watched, signalled and ended by the test; see SandboxTest.start."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=base_env(**env),
        text=True,
    )


def outcome(child: subprocess.Popen[str]) -> Result:
    """Wait for the end of such a command; what it left behind."""
    out, err = child.communicate(timeout=PATIENCE_S)
    return Result(child.returncode, out.encode(), err.encode())


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
    is typed at the first question, or when it says that it waits."""
    import fcntl
    import pty
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, bytes([24, 0, columns, 0, 0, 0, 0, 0]))
    # a session that has no terminal yet takes the first one that it opens, with its Ctrl-C. Its
    # leader stays until all was read here, because the kernel may drop the rest when it ends
    leader = f'exec 3<&0 <{os.ttyname(slave)}; trap : INT; "$@"; code=$?; printf "\\000"; '
    child = subprocess.Popen(
        ("sh", "-c", f"{leader}read _ <&3; exit $code", "sh", *command),
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        env=base_env(TERM="xterm", **(env or {})),
        start_new_session=True,
    )
    os.close(slave)
    rescue = threading.Timer(PATIENCE_S / 3, os.killpg, (child.pid, signal.SIGKILL))
    rescue.start()
    screen = b""
    with contextlib.suppress(OSError):  # EIO is the end, too
        while block := b"" if screen.endswith(b"\0") else os.read(master, 65536):
            screen += block
            if typed and re.search(rb"(: |\] |left |Waiting[^\n]*\n)$", screen):
                os.write(master, typed)
                typed = b""
    child.communicate()
    rescue.cancel()
    os.close(master)
    return Result(child.returncode, screen.rstrip(b"\0"), b"")


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
        raise SystemExit(0)  # without the sandbox's last words on standard error

    def main() -> None:
        try:
            opened.put(SystemExit(sandbox.main(words)))
        except SystemExit as refused:
            opened.put(refused)

    ours = mock.patch.object(sandbox, "Sandbox", Sandbox)  # which knows `shows_keys`
    with OPENING, ours, mock.patch.object(sandbox, "run_inside", run_inside):
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
    told = re.sub(r"^sandbox: (stopped|a fault).*\n", "", err.getvalue(), flags=re.MULTILINE)
    return Result(result.exit, result.raw, (result.err + told).encode())


def press_ctrl_c(box: Sandbox, call: str) -> None:
    """Do so once such a request has arrived."""
    if box.wait_for(call, 10):
        os.kill(os.getpid(), signal.SIGINT)


class Sandbox(sandbox.Sandbox):
    """The sandbox, with what only the tests of ops.py need: TLS, other key lists, waiting.

    `shows_keys` is `plain`, `masked` (prefixes), `bare` (no prefixes), `unmarked` (no
    revokedAt) or `dropped` (no revoked keys). It is a setting of the account, too.
    """

    def __init__(
        self, *args: Any, tls: ssl.SSLContext | None = None, shows_keys: str = "plain", **more: Any
    ) -> None:
        self.shows_keys = shows_keys
        self._arrival = threading.Condition()
        self._scheme = "https" if tls else "http"
        super().__init__(*args, **more)
        if tls:  # each connection's own thread does the handshake
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )

    @property
    def url(self) -> str:
        """The base URL."""
        return super().url.replace("http:", f"{self._scheme}:", 1)

    def reset(self) -> None:
        """Start again."""
        super().reset()
        self.service.routes[KEYS] = self._list_keys

    def _list_keys(self, body: Any) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.service.keys(body)["keys"]
        if self.shows_keys == "dropped":
            rows = [row for row in rows if row["revokedAt"] is None]
        for row in rows if self.shows_keys == "masked" else ():
            row["prefix"] = f"{row['prefix'][:7]}\u2026"
        left_out = {"bare": "prefix", "unmarked": "revokedAt"}.get(self.shows_keys)
        return {"keys": [{k: v for k, v in row.items() if k != left_out} for row in rows]}

    @property
    def writes(self) -> list[Request]:
        """The requests so far that were meant to change something."""
        return [each for each in self.requests if each.method not in ("GET", "HEAD")]

    def record(self, request: Request) -> None:
        """Remember a request, and wake those who wait for it."""
        with self._arrival:
            super().record(request)
            self._arrival.notify_all()

    def wait_for(self, call: str, timeout_s: float = PATIENCE_S) -> bool:
        """Wait until such a request has arrived; whether it has."""
        with self._arrival:
            return self._arrival.wait_for(lambda: call in self.calls(), timeout_s)


class SandboxTest(unittest.TestCase):
    """A test with a fresh sandbox, in `self.box`."""

    balance_usd = "12.34"

    def run(self, result: unittest.TestResult | None = None) -> unittest.TestResult | None:
        """Run it; see that those which overlap have begun."""
        OverlappingTest.begin_all()
        return super().run(result)

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

    def start_ops(self, *argv: str, **env: str) -> subprocess.Popen[str]:
        """Start ops.py against the sandbox; it does not outlive the test."""
        return self.start(*PROGRAM, *argv, **env)

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
        self.assertNotRegex(result.err, NOISE)
        return result

    def delay(self, call: str, seconds: float) -> None:
        """Answer every such call only after so many seconds."""
        answer = self.box.service.routes[call]

        def late(body: Any) -> Any:
            self.box.closing.wait(seconds)
            return answer(body)

        self.box.service.routes[call] = late

    @contextlib.contextmanager
    def after_a_write(self, call: str, *faults: Fault) -> Iterator[threading.Event]:
        """Answer this call so, but only once something was written; the event tells of it."""
        record, arrived = self.box.record, threading.Event()

        def recorded(seen: Request) -> None:
            record(seen)
            if seen.method != "GET":
                self.box.add_faults(call, *faults)
            elif seen.call == call and self.box.writes:
                arrived.set()

        with mock.patch.object(self.box, "record", recorded):
            yield arrived

    def script(self, call: str, *faults: Fault) -> None:
        """Answer the next such calls with these, and forget what was before."""
        self.box.clear_faults()
        del self.box.requests[:]
        self.box.add_faults(call, *faults)

    def route(self, call: str, body: object) -> None:
        """Answer every such call with this object."""
        self.box.service.routes[call] = lambda _: json.loads(json.dumps(body))

    @contextlib.contextmanager
    def until_a_write(self, call: str, fault: Fault) -> Iterator[None]:
        """Answer this call so, however often, until something was written."""
        record = self.box.record

        def recorded(seen: Any) -> None:
            record(seen)
            if seen.method != "GET":
                self.box.clear_faults()

        self.script(call, *[fault] * 9)
        with mock.patch.object(self.box, "record", recorded):
            yield

    def failure(self, exit_code: int, *argv: str, stdin: str = "", **env: str) -> Any:
        """The error object of a command that has to fail like this, with `words` added: all that
        a reader sees of it."""
        result = self.ops(*argv, "--json", stdin=stdin, **env)
        self.assertEqual((result.exit, result.out), (exit_code, ""), result)
        return self.error_of(result)

    def error_of(self, result: Result) -> Any:
        """The error object of a failure; what every failure has to keep is checked."""
        lines = [json.loads(line) for line in result.err.splitlines()]
        self.assertEqual([list(line) for line in lines if "note" not in line], [["error"]], result)
        error = lines[-1]["error"]
        self.assertEqual(list(error), ERROR_FIELDS)
        self.assertEqual((error["exit"], error["code"]), (result.exit, CODES[result.exit]))
        if result.exit != 130:
            self.assertIs(error["retryable"], result.exit == 5, result)
        self.assertNotRegex(result.err, NOISE)
        if error["next"]:
            self.assertNotIn("#", error["next"])
            next_words(error["next"])
        error["words"] = " ".join(str(error[name]) for name in ("message", "hint", "next"))
        return error

    def sent(self) -> list[str]:
        """The writes that arrived since the last question."""
        calls = [seen.call for seen in self.box.writes]
        del self.box.requests[:]
        return calls

    def save_card(self) -> None:
        """Let the account have a saved card."""
        self.box.account.card_saved = True


class OverlappingTest(SandboxTest):
    """Tests that spend their time in processes and waits, and do not call ops.py in this process.

    All that are loaded begin with the first SandboxTest that runs, in two threads;
    each is judged in its turn. So they overlap with each other, and with all other tests.
    """

    loaded: ClassVar[list[OverlappingTest]] = []
    threads = ThreadPoolExecutor(2)

    def __init__(self, name: str = "runTest") -> None:
        super().__init__(name)
        self.name = name
        self.loaded.append(self)

    @classmethod
    def begin_all(cls) -> None:
        """Run each in a thread, and let the test itself be to wait for how that ends."""
        while cls.loaded:
            test = cls.loaded.pop(0)
            if not getattr(test, "__unittest_skip__", False):
                twin = copy.deepcopy(test)
                setattr(test, test.name, cls.threads.submit(twin.run_in_thread).result)

    def run_in_thread(self) -> None:
        """Run it from the set-up to the clean-up. Raises what its failure or skip raises."""
        try:
            self.debug()
        finally:
            self.doCleanups()


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
        self.box.add_faults(call, *faults)
        result = self.ops(*argv, "--verbose", *extra, THEIRS=THEIRS)
        self.box.clear_faults()
        everything = result.out + result.err
        self.assertNotRegex(everything, NOISE)
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


def server_context(name: str) -> ssl.SSLContext:
    """What a server needs for one of the certificates here."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / name)
    return context


@contextlib.contextmanager
def listening(serve: Callable[[socket.socket], None], host: str = "127.0.0.1") -> Iterator[str]:
    """A raw server on loopback, a thread per connection; its base URL."""
    done = threading.Event()

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            serve(connection)

    def accept() -> None:
        while True:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                if done.is_set():
                    connection.close()
                    return
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        address = listener.getsockname()[:2]
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        shown = f"[{host}]" if ":" in host else host
        try:
            yield f"http://{shown}:{address[1]}"
        finally:
            done.set()
            socket.create_connection(address, PATIENCE_S).close()  # which wakes the thread
            thread.join()


class Proxy:
    """A proxy that leads everything to one port, and keeps what it was told."""

    def __init__(self, target_port: int, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self._target = ("127.0.0.1", target_port)
        self._answer = answer
        self.heard = b""

    def serve(self, client: socket.socket) -> None:
        """One connection, for `listening`."""
        head = b""
        while b"\r\n\r\n" not in head:
            block = client.recv(65536)
            head += block
            self.heard += block
            if not block:
                return
        tunnel = head.startswith(b"CONNECT")
        with socket.create_connection(self._target) as upstream:
            if tunnel:
                client.sendall(self._answer)
            else:
                upstream.sendall(head)
            back = threading.Thread(target=self._pump, args=(upstream, client), daemon=True)
            back.start()
            self._pump(client, upstream, keep=True)
            back.join(PATIENCE_S)

    def _pump(self, source: socket.socket, sink: socket.socket, keep: bool = False) -> None:
        with contextlib.suppress(OSError):
            while True:
                block = source.recv(65536)
                if not block:
                    break
                if keep:
                    self.heard += block
                sink.sendall(block)
            sink.shutdown(socket.SHUT_WR)


def changed(change: str) -> tuple[str, ...]:
    """The start of ops.py as a process in which something of Python was changed before: a name
    that resolves slowly, a system without threads, a Python without a module."""
    return (sys.executable, "-c", f"import socket, sys, threading\n{change}\n{START}")


def run_changed(change: str, *argv: str, **env: str) -> Result:
    """Run ops.py in such a process."""
    return run(*changed(change), *argv, **env)


@contextlib.contextmanager
def black_hole(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """A port whose queue of connections is full, so that Linux drops what else comes."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        fill(listener.getsockname(), stack)
        yield listener.getsockname()[1]


def fill(address: tuple[str, int], stack: contextlib.ExitStack) -> None:
    """Fill the queue of a listener until a connection is no longer accepted."""
    for _ in range(8):
        caller = stack.enter_context(socket.socket())
        caller.settimeout(0.1)
        try:
            caller.connect(address)
        except OSError:
            return
    raise AssertionError("the queue of connections never fills")


def connecting_to(port: int) -> int:
    """How many connections to a port wait for its first word (Linux)."""
    with open("/proc/net/tcp", encoding="ascii") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return sum(row[2].endswith(f":{port:04X}") and row[3] == "02" for row in rows)


SECTIONS = {  # of the program: the line where it begins, and its name
    number: line.split()[2].rstrip(":")
    for number, line in enumerate(OPS.read_text("utf-8").splitlines(), 1)
    if line.startswith("# ── ")
}


def section_of(line: int) -> str:
    """The section of a line; the docstring and the imports are above the first."""
    return SECTIONS.get(max([start for start in SECTIONS if start <= line] or [0]), "preface")


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
