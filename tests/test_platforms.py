"""Other systems, as far as they can be simulated here: Windows, macOS, odd folders."""

from __future__ import annotations

import io
import os
import select
import shlex
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from support import OPS, Sandbox, SandboxTest, ops, run


class Pasting(unittest.TestCase):
    """The `Next:` line starts the program again, wherever it lies."""

    def program(self, path: str, system: str) -> str:
        with mock.patch.object(sys, "argv", [path]), mock.patch.object(os, "name", system):
            return ops.this_program()

    def test_on_posix(self) -> None:
        self.assertEqual(self.program("a/ops.py", "posix"), "python3 a/ops.py")
        odd = "my skills/it's/$HOME/ops.py"
        self.assertEqual(self.program(odd, "posix"), f"python3 {shlex.quote(odd)}")

    def test_on_windows(self) -> None:
        self.assertEqual(self.program(r"C:\skills\ops.py", "nt"), r"python C:\skills\ops.py")
        self.assertEqual(
            self.program(r"C:\my skills\ops.py", "nt"), r'python "C:\my skills\ops.py"'
        )

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_a_next_line_from_a_folder_with_a_space_runs_in_a_shell(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        path = Path(place.name) / "my skills" / "ops.py"
        path.parent.mkdir()
        path.write_bytes(OPS.read_bytes())
        with Sandbox("0") as box:
            shown = run(sys.executable, str(path), "balance", **box.env)
            self.assertEqual(shown.exit, 0, shown)
            last = shown.out.splitlines()[-1]
            line = last.partition("Next: ")[2].replace("python3", shlex.quote(sys.executable), 1)
            pasted = run("sh", "-c", line, **box.env)
            self.assertEqual(pasted.exit, 0, pasted)
            self.assertEqual(len(box.books.links), 1)


class WithoutPosix(SandboxTest):
    @unittest.skipUnless(hasattr(select, "poll"), "needs poll, to take it away")
    def test_without_poll_an_open_stdout_is_taken_as_it_is(self) -> None:
        reader, writer = os.pipe()
        os.close(reader)
        self.addCleanup(os.close, writer)
        pipe = mock.Mock(closed=False, fileno=lambda: writer)
        with mock.patch.object(sys, "stdout", pipe):
            with self.assertRaisesRegex(ops.Usage, "nobody reads"):
                ops.check_stdout()
            with mock.patch.object(select, "poll"):
                del select.poll
                ops.check_stdout()

    def test_a_device_is_no_file_for_a_key(self) -> None:
        reader, writer = os.pipe()  # as NUL on Windows: it opens as if it were new
        self.addCleanup(os.close, reader)
        with mock.patch.object(os, "open", return_value=writer):
            result = self.ops("keys", "--create", "--save", "NUL")
        self.assertEqual((result.exit, self.box.requests), (2, []), result)
        self.assertRaises(OSError, os.fstat, writer)

    def test_a_terminal_that_cannot_show_a_question_is_not_read(self) -> None:
        console = ops.Console(False, "ops.py", {})
        for answer in (lambda: console.ask("Sure?"), console.read_secret):
            typed = mock.patch.object(sys, "stdin", mock.Mock(isatty=lambda: True))
            with typed as stdin, mock.patch.object(sys, "stderr", io.StringIO()):
                self.assertFalse(answer())
            stdin.readline.assert_not_called()

    def test_a_countdown_and_other_lines_do_not_run_together(self) -> None:
        console = ops.Console(False, "ops.py", {})
        with mock.patch.object(sys, "stderr", io.StringIO()) as screen:
            screen.isatty = lambda: True  # type: ignore[method-assign]
            console.countdown(2)
            console.countdown(1)
            console.note("a")
            console.note("b")
            console.countdown(-1)
        expected = "\rwaiting, 2 s left \rwaiting, 1 s left \na\nb\n\rwaiting, 0 s left "
        self.assertEqual(screen.getvalue(), expected)

    def test_no_colour_on_windows_consoles_unless_forced(self) -> None:
        terminal = mock.patch.object(sys, "stdout", mock.Mock(isatty=lambda: True))
        with terminal, mock.patch.object(os, "name", "nt"):
            self.assertFalse(ops.wants_color({}))
            self.assertTrue(ops.wants_color({"FORCE_COLOR": "1"}))

    def test_colour_follows_the_usual_rules_elsewhere(self) -> None:
        terminal = mock.patch.object(sys, "stdout", mock.Mock(isatty=lambda: True))
        with terminal, mock.patch.object(os, "name", "posix"):
            self.assertTrue(ops.wants_color({"TERM": "xterm"}))
            self.assertFalse(ops.wants_color({"TERM": "dumb"}))
            self.assertFalse(ops.wants_color({"NO_COLOR": "1", "FORCE_COLOR": "1"}))
            self.assertTrue(ops.wants_color({"NO_COLOR": "", "TERM": "xterm"}))

    def test_a_missing_key_is_explained_for_both_kinds_of_shell(self) -> None:
        result = self.fails(2, "balance", CACHEFORGE_API_KEY="")
        self.assertIn("export CACHEFORGE_API_KEY=", result.err)
        self.assertIn("$env:CACHEFORGE_API_KEY", result.err)


if __name__ == "__main__":
    unittest.main()
