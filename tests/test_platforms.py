"""Other systems, as far as they can be met here: odd folders, Windows, Pythons that are too old."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import tempfile
import unittest
from unittest import mock

from support import OPS, QuickClock, SandboxTest, call_on, run


class Pasting(SandboxTest):
    """The `Next:` line starts the program again, wherever it lies."""

    balance_usd = "0"

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_a_next_line_from_an_odd_folder_runs_in_a_shell(self) -> None:
        with tempfile.TemporaryDirectory("it's my $HOME; a&b caf\xe9") as folder:
            program = shutil.copy(OPS, folder)
            shown = run(sys.executable, program, "balance", **self.box.env)
            line = shown.out.splitlines()[-1].partition("Next: python3 ")[2]
            pasted = run("sh", "-c", f"{shlex.quote(sys.executable)} {line}", **self.box.env)
        self.assertEqual((pasted.exit, len(self.box.account.links)), (0, 1), pasted)

    def test_on_windows_it_starts_python_and_quotes_for_its_shells(self) -> None:
        # no Windows here: only its name, so that one in-process run takes that road
        for path, words in (
            (r"C:\skills\ops.py", r"python C:\skills\ops.py topup"),
            (r"C:\my skills\ops.py", r'python "C:\my skills\ops.py" topup'),
        ):
            with mock.patch.object(os, "name", "nt"):
                result = call_on(QuickClock(), "balance", program=path, **self.box.env)
            self.assertIn(f"Next: {words}", result.out)


class OldPythons(unittest.TestCase):
    def test_one_that_says_it_is_3_8_is_told_in_one_line_what_is_needed(self) -> None:
        old = "import runpy, sys; sys.version_info = (3, 8, 20, 'final', 0); sys.argv.pop(0);"
        old += "runpy.run_path(sys.argv[0], run_name='__main__')"
        result = run(sys.executable, "-c", old, str(OPS), "balance")
        self.assertEqual((result.exit, result.out, result.err.count("\n")), (2, "", 1), result)
        self.assertIn("3.9", result.err)
