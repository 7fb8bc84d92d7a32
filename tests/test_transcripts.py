"""What the tool says, to the letter: the pages in tests/transcripts, typed in again.

    python3 tests/test_transcripts.py [PAGE...]            show what is said differently now
    python3 tests/test_transcripts.py --update [PAGE...]   write down what is said now

A page is Markdown with blocks of commands, as anybody can type them, each with what it
answers: standard output as it is, standard error behind `2> `, the exit code. Only what
differs from run to run is replaced by a name (VARIES). A block marked `console` runs in
this process on a clock that jumps, against a sandbox made by the same options; `sh`, by a
shell in real processes; `terminal COLUMNS [WORDS]`, also on a terminal of that width,
where WORDS are typed at the first question, or a key such as ^C at it or in a wait.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import shlex
import sys
import tempfile
import unittest
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support import (
    KEPT,
    PROGRAM,
    ROOT,
    TRANSCRIPTS,
    Command,
    OverlappingTest,
    Result,
    Sandbox,
    SandboxTest,
    call_ops,
    in_process,
    on_terminal,
    open_sandbox,
    read_page,
    run,
    shown_commands,
)

MARKS = ("console", "sh", "terminal")
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
    (r"\b(?!2026-01-02)20[0-9]{2}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}\b", "20YY-MM-DD HH:MM"),
    (r"^optional arguments:", "options:"),  # argparse of Python 3.9
    (r"(?<=\S)\n {8,}(?=[\[A-Z-].*\])", " "),  # where a usage is broken differs, too
)


# `python3 tests/sandbox.py` and its words, up to what is the shell's
SANDBOXED = re.compile(r"""python3 tests/sandbox\.py((?: +(?:"[^"]*"|'[^']*'|[^\s"'|;&<>])+)*)""")
WORD = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'])+""")


def opened(line: str, boxes: contextlib.ExitStack) -> str:
    """The line with the program itself for each `python3 tests/sandbox.py`, and the address of
    a sandbox in this process: that saves a start."""

    def start(match: re.Match[str]) -> str:
        raw = WORD.findall(match[1])
        if {"--exec", "--help"} & set(raw):
            return match[0]
        opening = open_sandbox([shlex.split(word)[0] for word in raw])
        box, command = boxes.enter_context(opening)
        settings = [f"{name}={value}" for name, value in box.env.items()]
        return " ".join([*settings, shlex.join(PROGRAM), *raw[len(raw) - len(command[2:]) :]])

    return SANDBOXED.sub(start, line)


def in_shell(command: Command, folder: Path) -> Result:
    """Run a command in a shell, perhaps on a terminal, where a word such as ^C is that key."""
    mark, _, options = command.mark.partition(" ")
    columns, _, typed = options.partition(" ")
    keys = chr(ord(typed[1]) - 64) if typed[:1] == "^" else f"{typed}\n" if typed else ""
    env = {"PATH": f"{folder}{os.pathsep}{KEPT['PATH']}"}
    with contextlib.ExitStack() as boxes:
        script = f"cd {shlex.quote(str(folder))}; {opened(command.line, boxes)}"
        if mark == "sh":
            return run("sh", "-c", script, **env)
        # if Ctrl-C ended the shell first, its terminal would be gone before the last words
        script = f"trap : INT; {script}"
        result = on_terminal("sh", "-c", script, columns=int(columns), typed=keys.encode(), env=env)
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


def retype(pages: Sequence[Path], *marks: str) -> Iterator[tuple[Path, str]]:
    """Each page with its commands in such blocks run again, those of the shell two at a time."""
    with tempfile.TemporaryDirectory() as place:
        folders = {page.name: make_folder(Path(place, page.stem)) for page in pages}
        parts = {page: read_page(page) for page in pages}
        found = [part for page in pages for part in parts[page] if isinstance(part, Command)]
        chosen = [each for each in found if each.mark.split()[0] in marks and each.can_run]
        answers = {id(each): each.said for each in found if each not in chosen}
        typed = [each for each in chosen if each.mark != "console"]
        with ThreadPoolExecutor(2) as pool:
            results = pool.map(lambda each: in_shell(each, folders[each.page]), typed)
            answers.update((id(each), list(as_lines(done))) for each, done in zip(typed, results))
        for page in pages:
            with inside(folders[page.name]) if "console" in marks else contextlib.nullcontext():
                yield page, "\n".join(answer_all(parts[page], answers)) + "\n"


def answer_all(parts: Sequence[str | Command], answers: dict[int, list[str]]) -> Iterator[str]:
    """The lines of a page, with the answers that are there, and those of this process."""
    for part in parts:
        if isinstance(part, str):
            yield part
        else:
            yield f"$ {part.line}"
            yield from answers.get(id(part)) or as_lines(in_process(part.line))


def make_folder(folder: Path) -> Path:
    """A folder like a clone, for the files of a page, with a `python3` that is this one."""
    folder.mkdir()
    for name in ("skills", "tests"):
        os.symlink(ROOT / name, folder / name)
    python = folder / "python3"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', "utf-8")
    python.chmod(0o755)
    return folder


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in a folder for a while."""
    home = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(home)


def differences(pages: Sequence[Path], *marks: str, update: bool = False) -> Iterator[str]:
    """What each page says differently in such blocks now; nothing if nothing. Perhaps write it
    down."""
    for page, now in retype(pages, *marks):
        old = page.read_text("utf-8")
        if update:
            page.write_text(now, "utf-8")
        lines = old.splitlines(), now.splitlines()
        yield "\n".join(difflib.unified_diff(*lines, page.name, "now", lineterm=""))


class Pages(unittest.TestCase):
    """What holds for all that the pages show."""

    def test_only_an_answer_is_on_stdout_and_no_failure_is_without_a_word(self) -> None:
        for answer in shown_commands("console"):
            with self.subTest(answer.line):
                self.assertIn(answer.exit, (0, 1, 2, 3, 4, 5, 6, 130))
                if answer.exit not in (0, 4):
                    delivered = 2 if "topup --wait" in answer.line and answer.exit == 3 else 0
                    self.assertEqual(len(answer.out), delivered)
                    self.assertTrue(answer.err)

    def test_neither_a_secret_nor_a_mistake_of_the_program_is_shown(self) -> None:
        for answer in shown_commands():
            if answer.line == "python3 tests/sandbox.py --help":
                continue  # which names the key of its accounts
            told = "\n".join(answer.said)
            self.assertNotRegex(told, r"cf_\w+cdef\b(?<!cf_0123456789abcdef0123456789abcdef)")
            self.assertNotRegex(told, "sk-or-v1-0123456789|Traceback|this is a bug")
            self.assertNotRegex(told, "(?i)(stays|still|remains) (valid|open|good)")  # links expire

    def test_under_json_everything_is_json_and_an_error_has_all_its_parts(self) -> None:
        repeatable = {5: (True,), 130: (True, False)}
        names = ["code", "message", "exit", "http_status", "request_id", "retryable"]
        names += ["retry_after_seconds", "hint", "next"]
        found = 0
        for answer in shown_commands("console"):
            if "--json" not in answer.line.split() or "--help" in answer.line:
                continue
            for said in map(json.loads, answer.out + answer.err):
                if "error" in said:
                    found += 1
                    self.assertEqual(list(said["error"]), names)
                    self.assertEqual(said["error"]["exit"], answer.exit)
                    told = said["error"]["retryable"]
                    self.assertIn(told, repeatable.get(answer.exit, (False,)), answer)
        self.assertGreater(found, 25)

    def test_each_next_line_is_a_command_that_is_not_refused(self) -> None:
        said = "\n".join(path.read_text("utf-8") for path in TRANSCRIPTS)
        lines = set(re.findall(r'(?:Next: |"next":")python3 \S+/ops\.py ([^"\n]+)', said))
        self.assertGreater(len(lines), 15)
        for line in lines:
            with self.subTest(line), Sandbox() as box:
                box.account.card_saved = True
                for _ in range(3):
                    box.service.create_key({})
                self.assertNotEqual(call_ops(*shlex.split(line), **box.env).exit, 2)


@unittest.skipIf(os.name == "nt", "the pages are in the words of POSIX systems")
class Console(SandboxTest):
    def test_every_command_answers_to_the_letter(self) -> None:
        for told in differences(TRANSCRIPTS, "console"):
            with self.subTest(page=told.partition("\n")[0]):
                self.assertFalse(told, told)


@unittest.skipIf(os.name == "nt", "the pages are in the words of POSIX shells")
class Shell(OverlappingTest):
    def test_every_command_answers_to_the_letter(self) -> None:
        told = list(differences(TRANSCRIPTS, "sh", "terminal"))
        self.assertFalse(any(told), "\n".join(told))


if __name__ == "__main__":
    words = {Path(word).stem for word in sys.argv[1:] if word != "--update"}
    chosen = [path for path in TRANSCRIPTS if not words or path.stem in words]
    if len(chosen) < len(words):
        sys.exit(f"The pages are {', '.join(path.stem for path in TRANSCRIPTS)}.")
    told = list(differences(chosen, *MARKS, update="--update" in sys.argv))
    print("\n".join(filter(None, told)) or "Nothing is said differently.")
    sys.exit(any(told) and "--update" not in sys.argv)
