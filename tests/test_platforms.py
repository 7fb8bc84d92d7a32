"""Other systems, as far as they can be met here: odd folders, Windows, Pythons that are too old."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import tempfile
import unittest
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from support import OPS, QuickClock, SandboxTest, call_on, run


class Pasting(SandboxTest):
    """The `Next:` line starts the program again, wherever it lies."""

    balance_usd = "0"

    @unittest.skipIf(os.name == "nt", "a POSIX shell")
    def test_a_next_line_from_an_odd_folder_runs_in_a_shell(self) -> None:
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        python = f"{shlex.quote(sys.executable)} "
        for folder in ("it's my $HOME", "a;b&c caf\xe9"):
            path = Path(place.name, folder, "ops.py")
            path.parent.mkdir()
            path.write_bytes(OPS.read_bytes())
            shown = run(sys.executable, str(path), "balance", **self.box.env)
            self.assertEqual(shown.exit, 0, shown)
            line = shown.out.splitlines()[-1].partition("Next: python3 ")[2]
            pasted = run("sh", "-c", python + line, **self.box.env)
            self.assertEqual((pasted.exit, len(self.box.books.links)), (0, 1), pasted)
            self.box.books.links.clear()

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
    """They are told in one line which Python is needed."""

    def check(self, *command: str) -> None:
        result = run(*command, CACHEFORGE_BASE_URL="http://127.0.0.1:1")
        self.assertEqual((result.exit, result.out), (2, ""), result)
        self.assertEqual(len(result.err.splitlines()), 1, result)
        self.assertIn("3.9", result.err)

    def test_one_that_says_it_is_3_8(self) -> None:
        old = "import runpy, sys; sys.version_info = (3, 8, 20, 'final', 0); sys.argv.pop(0);"
        old += "runpy.run_path(sys.argv[0], run_name='__main__')"
        self.check(sys.executable, "-c", old, str(OPS), "balance")

    def test_a_real_one(self) -> None:
        old = next(filter(runs, found_in_path_or_pyenv()), None)
        if not old:  # those before it do not get so far: they cannot read the file
            self.skipTest("no Python 3.8 here")
        for argv in (("balance",), ("--help",), ("topup", "--json")):
            self.check(old, str(OPS), *argv)


def found_in_path_or_pyenv() -> Iterator[str]:
    """Programs that may be a Python 3.8."""
    yield shutil.which("python3.8") or ""
    root = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    with contextlib.suppress(OSError):  # it may be a folder that we may not read
        yield from map(str, root.glob("3.8.*/bin/python"))


def runs(program: str) -> bool:
    """Whether a program can be started, and says its version."""
    try:
        return run(program, "-V").exit == 0
    except OSError:
        return False
