"""What the tests share: the program under test, as a module and as a process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
SKILL = ROOT / "skills" / "cacheforge-ops"
OPS = SKILL / "ops.py"
sys.path.insert(0, str(SKILL))

import ops  # noqa: E402
from sandbox import DEFAULT_KEY, Fault, Sandbox, Seen  # noqa: E402

__all__ = ["DEFAULT_KEY", "OPS", "ROOT", "SKILL", "Fault", "Result", "Sandbox", "SandboxTest"]
__all__ += ["Seen", "base_env", "call_ops", "ops", "run", "run_ops", "start"]

PATIENCE_S = 60

# a runner in the background may have been told to ignore Ctrl-C, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)


def base_env(**extra: str) -> dict[str, str]:
    """As little environment as a process can do with: nothing of the developer's own."""
    kept = ("PATH", "SYSTEMROOT", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")
    env = {name: os.environ[name] for name in kept if name in os.environ}
    return {**env, "PYTHONWARNINGS": "error", **extra}


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


def run_ops(*argv: str, stdin: str | bytes = b"", **env: str) -> Result:
    """Run ops.py as its users do: a process of its own."""
    return run(sys.executable, str(OPS), *argv, stdin=stdin, **env)


def start(*command: str, **env: str) -> subprocess.Popen[str]:
    """Start a command, to be watched, signalled and ended by the test."""
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=base_env(**env),
        text=True,
    )


class QuickConsole(ops.Console):
    """The real console on a clock that jumps instead of waiting."""

    slept_s = 0.0

    def now(self) -> float:
        """The real time, plus all that was slept."""
        return super().now() + self.slept_s

    def sleep(self, seconds: float) -> None:
        """Jump."""
        self.slept_s += seconds


def call_ops(*argv: str, stdin: str = "", **env: str) -> Result:
    """Call ops.py's `main` in this process: the same road, without the start."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ, base_env(**env), clear=True))
        stack.enter_context(mock.patch.object(sys, "argv", [str(OPS), *argv]))
        stack.enter_context(mock.patch.object(sys, "stdin", io.StringIO(stdin)))
        stack.enter_context(mock.patch.object(ops, "Console", QuickConsole))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        exit_code = ops.main(list(argv))
        out.flush()
        err.flush()
    return Result(exit_code, out.buffer.getvalue(), err.buffer.getvalue())


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

    def save_card(self) -> None:
        """Let the account have a saved card."""
        self.box.books.card_saved = True
