"""The house: what lies at the top of the repository, and what may not stand in it."""

from __future__ import annotations

import re
import unittest

from support import OPS, ROOT, git


def tracked() -> list[str]:
    """The files of the repository."""
    return git("ls-files").splitlines()


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
        listed = git("ls-files", "-s", str(OPS))
        self.assertTrue(listed.startswith("100755 "), listed)
        head = OPS.read_text("utf-8").splitlines()
        self.assertEqual(head[0], "#!/usr/bin/env python3")
        self.assertEqual(head[1], "# /// script")
        self.assertIn('# requires-python = ">=3.9"', head[:6])
