"""What the tool says, to the letter: the pages in tests/transcripts, typed in again.

    python3 tests/test_transcripts.py [PAGE...]            show what is said differently now
    python3 tests/test_transcripts.py --update [PAGE...]   write down what is said now

A page is Markdown with blocks of commands, as anybody can type them, each with what it
answers: standard output as it is, standard error behind `2> `, the exit code. Only what
differs from run to run is replaced by a name (VARIES). A block marked `console` runs in
this process on a clock that jumps, against a sandbox made by the same options; `sh`, by a
shell in real processes; `terminal COLUMNS [WORDS]`, also on a terminal of that width,
where WORDS are typed at the first question, or a key such as ^C at it or the countdown.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import os
import re
import shlex
import signal
import sys
import tempfile
import threading
import unittest
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import sandbox
from support import ROOT, Result, Sandbox, call_ops, on_terminal, run

PAGES = sorted((ROOT / "tests" / "transcripts").glob("*.md"))
VARIES = (
    (rf"'?{re.escape(str(ROOT))}/([^\s']+)'?", r"\1"),
    (r"(?<=127\.0\.0\.1:)[0-9]{4,5}\b", "PORT"),
    (r"(?<=/pay/)[0-9a-f]{16}\b", "TOKEN"),
    (r"\breq_[0-9a-f]{12}\b", "req_ID"),
    (r"\bcf_[0-9a-f]{32}\b", "cf_NEW_KEY"),
    (r"\bcf_(?!d4735e3a2|4e0740856)[0-9a-f]{9}\b", "cf_NEWPREFIX"),  # but for those of --keys
    (r"\bcf_(?!d473|4e07)[0-9a-f]{4}(?=…|\\u2026)", "cf_NEWP"),
    (r"\b[0-9]+ ms\b", "N ms"),
    (r"\b(?!2026-01-02)20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9:]{8}Z", "20YY-MM-DDTHH:MM:SSZ"),
    (r"^optional arguments:", "options:"),  # argparse of Python 3.9
    (r"(?<=\S)\n {8,}(?=[\[A-Z-].*\])", " "),  # where a usage is broken differs, too
)


def in_process(line: str) -> Result:
    """Run `[echo WORD |] [NAME=value...] [timeout...] python3 SCRIPT ARG...`.

    In place of the seconds of `timeout`, it waits for the request that will hang.
    """
    typed, pipe, rest = line.rpartition(" | ")
    stdin = typed[len("echo ") :] + "\n" if pipe else ""
    words = shlex.split(rest)
    start = words.index("python3")
    env = dict(word.split("=", 1) for word in words[:start] if re.match("[A-Z_]+=", word))
    if words[start + 1] != "tests/sandbox.py":
        return call_ops(*words[start + 2 :], stdin=stdin, **env)
    hanging = re.search(r'"([^"=]+)=(?:done\+)?hang"', rest) if "timeout" in words else None
    results: list[Result] = []

    def run_inside(box: Sandbox, command: Sequence[str]) -> int:
        if hanging:
            threading.Thread(target=press_ctrl_c, args=(box, hanging[1]), daemon=True).start()
        results.append(call_ops(*command[2:], stdin=stdin, **{**box.env, **env}))
        return results[0].exit

    err = io.StringIO()
    with mock.patch.object(sandbox, "run_inside", run_inside), contextlib.redirect_stderr(err):
        try:
            sandbox.main(words[start + 2 :])
        except SystemExit as refused:
            return Result(int(str(refused)), b"", err.getvalue().encode())
    return results[0]


def press_ctrl_c(box: Sandbox, call: str) -> None:
    """Do so once such a request has arrived."""
    if box.wait_for(call, 10):
        os.kill(os.getpid(), signal.SIGINT)


def at_terminal(line: str, columns: str, typed: str = "") -> Result:
    """Run a line in a shell on a terminal; a word such as ^C is typed as that key."""
    keys = chr(ord(typed[1]) - 64) if typed[:1] == "^" else f"{typed}\n" if typed else ""
    result = on_terminal("sh", "-c", line, columns=int(columns), typed=keys.encode())
    screen = result.out.replace("\r", "␍").replace("\x1b", "␛")
    return Result(result.exit, screen.encode(), b"")


def as_lines(result: Result) -> Iterator[str]:
    """An answer as it stands on a page."""
    for said, mark in ((result.out, ""), (result.err, "2> ")):
        text = said
        for pattern, name in VARIES:
            text = re.sub(pattern, name, text, flags=re.MULTILINE)
        yield from (f"{mark}{line}" for line in text.splitlines())
        if text and not text.endswith("\n"):
            yield "(no line end)"
    yield f"exit {result.exit}"


def retyped(page: str) -> Iterator[str]:
    """The lines of a page, with all its commands run again."""
    mark = ""
    lines: list[str | Future[Result]] = []
    with ThreadPoolExecutor(2) as pool:
        for line in page.splitlines():
            if line.startswith("```"):
                mark = "" if mark else line[3:]
            elif mark and not line.startswith("$ "):
                continue  # what was said before
            lines.append(line)
            if mark == "console" and line.startswith("$ "):
                lines.extend(as_lines(in_process(line[2:])))
            elif mark == "sh" and line.startswith("$ "):
                lines.append(pool.submit(run, "sh", "-c", line[2:], folder="."))
            elif mark and line.startswith("$ "):
                lines.append(pool.submit(at_terminal, line[2:], *mark.split(" ", 2)[1:]))
    for each in lines:
        yield from [each] if isinstance(each, str) else as_lines(each.result())


def difference(path: Path, update: bool = False) -> str:
    """What a page says differently now; nothing if nothing. Perhaps write it down."""
    page, home = path.read_text("utf-8"), os.getcwd()
    with tempfile.TemporaryDirectory() as folder:  # new keys are saved here
        for name in ("skills", "tests"):
            os.symlink(ROOT / name, Path(folder, name))
        python = Path(folder, "python3")
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
        python.chmod(0o755)
        os.chdir(folder)
        with mock.patch.dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}"):
            now = list(retyped(page))
        os.chdir(home)
    if update:
        path.write_text("\n".join(now) + "\n", "utf-8")
    return "\n".join(difflib.unified_diff(page.splitlines(), now, path.name, "now", lineterm=""))


class Answer(NamedTuple):
    """What stands on a page."""

    command: str
    out: list[str]
    err: list[str]
    exit: int

    @property
    def objects(self) -> list[dict[str, Any]]:
        """All that was said under --json."""
        return [json.loads(line) for line in self.out + self.err]


def answers(mark: str = "console") -> Iterator[Answer]:
    """The answers in the blocks that are marked like this, on all pages."""
    for path in PAGES:
        for block in re.findall(rf"^```{mark}.*?\n(.*?)^```", path.read_text("utf-8"), re.M | re.S):
            for answer in re.split(r"^\$ ", block, flags=re.M)[1:]:
                command, *said, last = answer.splitlines()
                out = [line for line in said if not line.startswith("2> ")]
                err = [line[len("2> ") :] for line in said if line.startswith("2> ")]
                yield Answer(command, out, err, int(last[len("exit ") :]))


class Pages(unittest.TestCase):
    """What holds for all that the pages show."""

    def test_only_an_answer_is_on_stdout_and_no_failure_is_without_a_word(self) -> None:
        for answer in answers():
            with self.subTest(answer.command):
                self.assertIn(answer.exit, (0, 1, 2, 3, 4, 5, 6, 130))
                if answer.exit not in (0, 4):
                    self.assertEqual(answer.out, [])
                    self.assertTrue(answer.err)

    def test_neither_a_secret_nor_a_mistake_of_the_program_is_shown(self) -> None:
        for mark in ("console", "sh", "terminal"):
            for answer in answers(mark):
                if answer.command == "python3 tests/sandbox.py --help":
                    continue  # which names the key of its accounts
                told = "\n".join(answer.out + answer.err)
                self.assertNotRegex(told, r"cf_\w+cdef\b(?<!cf_0123456789abcdef0123456789abcdef)")
                self.assertNotRegex(told, "sk-or-v1-0123456789|Traceback|mistake in this program")

    def test_under_json_everything_is_json_and_an_error_has_all_its_parts(self) -> None:
        repeatable = {5: (True,), 130: (True, False)}
        names = ["code", "message", "exit", "http_status", "request_id", "retryable"]
        names += ["retry_after_seconds", "hint", "next"]
        found = 0
        for answer in answers():
            if "--json" not in answer.command.split() or "--help" in answer.command:
                continue
            for said in answer.objects:
                if "error" in said:
                    found += 1
                    self.assertEqual(list(said["error"]), names)
                    self.assertEqual(said["error"]["exit"], answer.exit)
                    told = said["error"]["retryable"]
                    self.assertIn(told, repeatable.get(answer.exit, (False,)), answer)
        self.assertGreater(found, 60)

    def test_each_next_line_is_a_command_that_is_not_refused(self) -> None:
        said = "\n".join(path.read_text("utf-8") for path in PAGES)
        lines = set(re.findall(r'(?:Next: |"next":")python3 \S+/ops\.py ([^"\n]+)', said))
        self.assertGreater(len(lines), 15)
        for line in lines:
            with self.subTest(line), Sandbox() as box:
                box.books.card_saved = True
                for _ in range(3):
                    box.service.create_key({})
                self.assertNotEqual(call_ops(*shlex.split(line), **box.env).exit, 2)


@unittest.skipIf(os.name == "nt", "the pages are in the words of POSIX systems and shells")
class Transcripts(unittest.TestCase):
    def test_every_command_of_the_pages_answers_to_the_letter(self) -> None:
        for path in PAGES:
            with self.subTest(page=path.name):
                if "/dev/full" in path.read_text("utf-8") and not Path("/dev/full").exists():
                    self.skipTest("this system has no /dev/full")
                told = difference(path)
                self.assertFalse(told, told)


if __name__ == "__main__":
    words = {Path(word).stem for word in sys.argv[1:] if word != "--update"}
    chosen = [path for path in PAGES if not words or path.stem in words]
    if len(chosen) < len(words):
        sys.exit(f"The pages are {', '.join(path.stem for path in PAGES)}.")
    told = [difference(path, "--update" in sys.argv) for path in chosen]
    print("\n".join(filter(None, told)) or "Nothing is said differently.")
    sys.exit(any(told) and "--update" not in sys.argv)
