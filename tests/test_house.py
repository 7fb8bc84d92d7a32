"""The house: what lies at the top of the repository, and what may not stand in it."""

from __future__ import annotations

import re
import subprocess
import unittest

from support import OPS, ROOT


def tracked() -> list[str]:
    """The files of the repository; none where this is no checkout."""
    done = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.splitlines()


@unittest.skipUnless((ROOT / ".git").exists(), "needs a git checkout")
class House(unittest.TestCase):
    def test_the_visible_top_level_is_four_things(self) -> None:
        top = {path.split("/")[0] for path in tracked()}
        visible = {name for name in top if not name.startswith(".")}
        self.assertEqual(visible, {"skills", "tests", "LICENSE", "README.md"})

    def test_no_text_names_a_place_on_somebodys_machine(self) -> None:
        pattern = re.compile(r"/(?:home|Users|root|work)/[a-z]")
        for path in tracked():
            with self.subTest(path=path):
                self.assertNotRegex((ROOT / path).read_text("utf-8"), pattern)

    def test_the_program_can_be_run_as_it_lies_there(self) -> None:
        listed = subprocess.run(
            ["git", "ls-files", "-s", str(OPS)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        self.assertTrue(listed.stdout.startswith("100755 "), listed.stdout)
        head = OPS.read_text("utf-8").splitlines()
        self.assertEqual(head[0], "#!/usr/bin/env python3")
        self.assertEqual(head[1], "# /// script")
        self.assertIn('# requires-python = ">=3.9"', head[:6])
