"""The house: what holds for every file, how the program starts, and its floor plan."""

from __future__ import annotations

import ast
import re
import symtable
import sys
import unittest
from collections.abc import Iterator

from support import OPS, ROOT, SECTIONS, git, run, section_of

SOURCE = OPS.read_text("utf-8")
PLAN = ["Errors", "Money", "Settings", "Text", "HTTP", "Account", "Reports", "Commands", "Parser"]
PLAN += ["main"]


class House(unittest.TestCase):
    def test_the_visible_top_level_is_four_things(self) -> None:
        top = {path.split("/")[0] for path in git("ls-files").splitlines()}
        visible = {name for name in top if not name.startswith(".")}
        self.assertEqual(visible, {"skills", "tests", "LICENSE", "README.md"})

    def test_no_text_names_a_place_on_somebodys_machine(self) -> None:
        pattern = re.compile(r"/(?:home|Users|root|work)/[a-z]")
        for path in git("ls-files").splitlines():
            with self.subTest(path=path):
                self.assertNotRegex((ROOT / path).read_text("utf-8"), pattern)

    def test_the_program_can_be_run_as_it_lies_there(self) -> None:
        listed = git("ls-files", "-s", str(OPS))
        self.assertTrue(listed.startswith("100755 "), listed)
        head = OPS.read_text("utf-8").splitlines()
        self.assertEqual(head[0], "#!/usr/bin/env python3")
        self.assertEqual(head[1], "# /// script")
        self.assertIn('# requires-python = ">=3.9"', head[:6])

    def test_a_python_that_says_it_is_3_8_is_told_in_one_line_what_is_needed(self) -> None:
        old = "import runpy, sys; sys.version_info = (3, 8, 20, 'final', 0); sys.argv.pop(0);"
        old += "runpy.run_path(sys.argv[0], run_name='__main__')"
        result = run(sys.executable, "-c", old, str(OPS), "balance")
        self.assertEqual((result.exit, result.out, result.err.count("\n")), (2, "", 1), result)
        self.assertIn("3.9", result.err)


def used_by(table: symtable.SymbolTable) -> Iterator[tuple[int, str]]:
    """What functions and classes use of the module: the line where they begin, and the name."""
    for inner in table.get_children():
        for symbol in inner.get_symbols():
            if symbol.is_global() and symbol.is_referenced():
                yield inner.get_lineno(), symbol.get_name()
        yield from used_by(inner)


class FloorPlan(unittest.TestCase):
    def test_the_sections_are_those_of_the_docstring(self) -> None:
        self.assertEqual(list(SECTIONS.values()), PLAN)
        (_, head, *_) = SOURCE.split('"""')
        self.assertEqual(re.findall(r"^    (\w+) {3,}\S", head, re.MULTILINE), PLAN)

    @unittest.skipIf(sys.version_info < (3, 10), "symtable of 3.9 counts annotations as uses")
    def test_a_section_uses_only_the_sections_above_it(self) -> None:
        home = dict[str, str]()
        for node in ast.parse(SOURCE).body:
            for each in node.targets if isinstance(node, ast.Assign) else [node]:
                name = getattr(each, "name", getattr(getattr(each, "target", each), "id", ""))
                home[name] = section_of(node.lineno)
        order = ["preface", *PLAN]
        found = 0
        for line, name in used_by(symtable.symtable(SOURCE, "ops.py", "exec")):
            if name in home:
                found += 1
                below = order.index(home[name]) > order.index(section_of(line))
                self.assertFalse(below, f"{section_of(line)} uses {name} of {home[name]}")
        self.assertGreater(found, 200)
