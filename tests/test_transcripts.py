"""What the tool says, to the letter: the pages in tests/transcripts, typed in again.

    python3 tests/test_transcripts.py [PAGE...]            show what is said differently now
    python3 tests/test_transcripts.py --update [PAGE...]   write down what is said now

A page is Markdown. Under each heading stands a block of commands as anybody can type
them, with what they answer: standard output as it is, standard error behind `2> `, and
the exit code. Only what is another one each time is replaced by a name (see VARIES).

A block marked `console` runs in this process, on a clock that jumps over waits, against
a sandbox that the same options have made. One marked `sh` is run by a shell as it
stands, in real processes, and one marked `terminal COLUMNS` is too, on a terminal of
that width, where the last word of the mark is typed at the first question or countdown.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import sandbox
from support import OPS, PATIENCE_S, ROOT, Result, Sandbox, base_env, call_ops

PAGES = sorted((ROOT / "tests" / "transcripts").glob("*.md"))
VARIES = (
    (rf"'?{re.escape(str(ROOT))}[/\\]([^\s']+)'?", r"\1"),
    (r"(?<=127\.0\.0\.1:)[0-9]{4,5}\b", "PORT"),
    (r"(?<=/pay/)[0-9a-f]{16}\b", "TOKEN"),
    (r"\breq_[0-9a-f]{12}\b", "req_ID"),
    (r"\bcf_[0-9a-f]{32}\b", "cf_NEW_KEY"),
    # the keys that --keys makes are the same ones each time
    (r"\bcf_(?!d4735e3a2|4e0740856)[0-9a-f]{9}\b", "cf_NEWPREFIX"),
    (r"\bcf_(?!d473|4e07)[0-9a-f]{4}(?=…|\\u2026)", "cf_NEWP"),
    (r"\b[0-9]+ ms\b", "N ms"),
    (r"\b(?!2026-01-02)20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", "20YY-MM-DDTHH:MM:SSZ"),
    (r"^optional arguments:", "options:"),  # Python 3.9
)


def in_process(line: str) -> Result:
    """Run `[echo WORDS |] [NAME=value...] python3 SCRIPT ARG...` without a new process.

    In place of the seconds that `timeout` would wait, it waits for the request that hangs.
    """
    typed, pipe, words = line.rpartition(" | ")
    stdin = " ".join(shlex.split(typed)[1:]) + "\n" if pipe else ""
    script = shlex.split(words)
    start = script.index("python3")
    env = dict(word.split("=", 1) for word in script[:start] if "=" in word)
    hanging = re.search(r'"([^"=]+)=(?:done\+)?hang"', line) if "timeout" in script[:start] else None
    script, argv = script[start + 1 :], script[start + 2 :]
    if script[0] != "tests/sandbox.py":
        return call_ops(*argv, stdin=stdin, **env)
    results: list[Result] = []

    def run_inside(box: Sandbox, command: Sequence[str]) -> int:
        if hanging:
            threading.Thread(target=interrupt, args=(box, hanging[1]), daemon=True).start()
        results.append(call_ops(*command[2:], stdin=stdin, **{**box.env, **env}))
        return results[0].exit

    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sandbox, "run_inside", run_inside):
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = sandbox.main(argv)
            except SystemExit as end:  # argparse's own
                code = int(end.code or 0)
    return results[0] if results else Result(code, out.getvalue().encode(), err.getvalue().encode())


def interrupt(box: Sandbox, call: str) -> None:
    """Press Ctrl-C once such a request has arrived."""
    if box.wait_for(call, 10):
        os.kill(os.getpid(), signal.SIGINT)


def by_shell(line: str, folder: str) -> Result:
    """Run a line as it stands, in real processes."""
    done = subprocess.run(
        ["sh", "-c", line],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env=shell_env(folder),
        timeout=PATIENCE_S,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def shell_env(folder: str) -> dict[str, str]:
    """An environment in which `python3` is this very Python."""
    env = base_env(TERM="xterm")
    return {**env, "PATH": f"{folder}{os.pathsep}{env['PATH']}"}


def on_terminal(line: str, folder: str, columns: int, typed: str) -> Result:
    """Run a line as it stands on a terminal; its screen is the standard output."""
    import fcntl
    import pty
    import struct
    import termios

    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    # the first terminal that the leader of a session opens is its own
    own = f'exec <"{os.ttyname(slave)}"; {line}'
    child = subprocess.Popen(
        ["sh", "-c", own],
        stdin=slave, stdout=slave, stderr=slave, env=shell_env(folder), start_new_session=True,
    )  # fmt: skip
    os.close(slave)
    rescue = threading.Timer(PATIENCE_S / 3, os.killpg, (child.pid, signal.SIGKILL))
    rescue.start()
    screen = b""
    with contextlib.suppress(OSError):  # EIO is the end
        while block := os.read(master, 65536):
            screen += block
            if typed and re.search(rb"(: |\] |left )$", screen):
                os.write(master, b"\x03" if typed == "^C" else typed.encode() + b"\n")
                typed = ""
    rescue.cancel()
    os.close(master)
    shown = screen.replace(b"\r\n", b"\n").replace(b"\r", "␍".encode())
    code = child.wait(PATIENCE_S)
    return Result(128 - code if code < 0 else code, shown.replace(b"\x1b", "␛".encode()), b"")


def as_text(result: Result) -> Iterator[str]:
    """An answer, line by line, as it stands on a page."""
    for text, mark in ((result.out, ""), (result.err, "2> ")):
        for pattern, name in VARIES:
            text = re.sub(pattern, name, text, flags=re.MULTILINE)
        yield from (f"{mark}{line}" for line in text.splitlines())
        if text and not text.endswith("\n"):
            yield "(no line end)"
    yield f"exit {result.exit}"


def retyped(page: str, folder: str) -> str:
    """A page with all its commands run again."""
    lines: list[str] = []
    mark: list[str] = []
    for line in page.splitlines():
        if line.startswith("```"):
            mark = [] if mark else line[3:].split()
        elif mark and not line.startswith("$ "):
            continue  # what was said before
        lines.append(line)
        if mark and line.startswith("$ "):
            lines.extend(as_text(answer(mark, line[2:], folder)))
    return "\n".join(lines) + "\n"


def answer(mark: Sequence[str], line: str, folder: str) -> Result:
    """What a command of a block answers."""
    if mark[0] == "terminal":
        return on_terminal(line, folder, int(mark[1]), " ".join(mark[2:]))
    return by_shell(line, folder) if mark[0] == "sh" else in_process(line)


@contextlib.contextmanager
def desk() -> Iterator[str]:
    """A folder to type in, with the repository's two folders, and `python3` on the PATH."""
    home = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("skills", "tests"):
            os.symlink(ROOT / name, Path(folder) / name)
        script = Path(folder) / "python3"
        script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
        script.chmod(0o755)
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(home)


@unittest.skipIf(os.name == "nt", "the pages have the words of POSIX systems and shells")
class Transcripts(unittest.TestCase):
    maxDiff = None

    def check(self, path: Path) -> None:
        page = path.read_text("utf-8")
        with desk() as folder:
            self.assertEqual(page, retyped(page, folder))


for _path in PAGES:

    def _test(self: Transcripts, path: Path = _path) -> None:
        self.check(path)

    setattr(Transcripts, f"test_{_path.stem.replace('-', '_')}_is_what_is_said", _test)


def main(argv: Sequence[str]) -> int:
    """Show or write down what is said differently now; 1 where something is."""
    chosen = [Path(word).resolve() for word in argv if word != "--update"] or PAGES
    differs = 0
    for path in chosen:
        page = path.read_text("utf-8")
        with desk() as folder:
            now = retyped(page, folder)
        diff = difflib.unified_diff(page.splitlines(), now.splitlines(), path.name, "now", n=3)
        for line in diff:
            differs = 1
            print(line)
        if "--update" in argv:
            path.write_text(now, "utf-8")
    return 0 if "--update" in argv else differs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
