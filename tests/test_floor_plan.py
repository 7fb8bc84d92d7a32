"""The floor plan of ops.py holds: what each room may touch, and what it never does."""

from __future__ import annotations

import ast
import re
import unittest
from collections.abc import Iterator

from support import OPS, ops

SOURCE = OPS.read_text("utf-8")


class WithoutAnnotations(ast.NodeTransformer):
    """A type may be named in any room: it is not used there."""

    def visit_arg(self, node: ast.arg) -> ast.arg:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = node.returns and ast.Constant(ast.dump(node.returns))
        self.generic_visit(node)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AnnAssign:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node


TREE = WithoutAnnotations().visit(ast.parse(SOURCE))
ROOMS = {
    int(SOURCE[: match.start()].count("\n")) + 1: match[1]
    for match in re.finditer(r"^# ── (\w+):", SOURCE, re.MULTILINE)
}


def room_of(line: int) -> str:
    """The room in which a line stands."""
    return (
        ROOMS[max(start for start in ROOMS if start <= line)] if line >= min(ROOMS) else "preface"
    )


def definitions() -> Iterator[tuple[str, int]]:
    """Every name that is defined at the top, with its line."""
    for node in TREE.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.lineno


def uses() -> Iterator[tuple[str, int]]:
    """Every plain or dotted name that is used, with its line."""
    for node in ast.walk(TREE):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}", node.lineno
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module), node.lineno


class FloorPlan(unittest.TestCase):
    def rooms_using(self, *names: str) -> set[str]:
        return {room_of(line) for name, line in uses() if name in names} - {"preface"}

    def test_the_rooms_stand_in_the_order_of_the_docstring(self) -> None:
        promised = re.findall(r"^    (\w+)  +\S", str(ops.__doc__), re.MULTILINE)
        self.assertEqual(list(ROOMS.values()), promised)
        self.assertGreaterEqual(len(promised), 9)

    def test_a_room_uses_only_the_rooms_above_it(self) -> None:
        order = ["preface", *ROOMS.values()]
        home = {name: room_of(line) for name, line in definitions()}
        for name, line in uses():
            if name in home:
                up = order.index(home[name]) <= order.index(room_of(line))
                self.assertTrue(up, f"line {line} ({room_of(line)}) uses {name} of {home[name]}")

    def test_only_main_prints_reads_the_environment_or_exits(self) -> None:
        outside = ("print", "sys.stdout", "sys.stderr", "sys.stdin", "sys.argv", "os.environ")
        self.assertEqual(self.rooms_using(*outside, "os._exit", "sys.exit", "os.open"), {"main"})

    def test_only_wire_touches_the_network(self) -> None:
        network = {name for name, _ in uses() if re.match(r"(urllib|http|socket|ssl)\b", name)}
        self.assertTrue(network)
        self.assertEqual(self.rooms_using(*network), {"Wire"})

    def test_money_knows_no_floats(self) -> None:
        for node in ast.walk(TREE):
            if room_of(getattr(node, "lineno", 1)) == "Money":
                self.assertFalse(isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
                self.assertFalse(isinstance(node, ast.Constant) and isinstance(node.value, float))
        self.assertNotIn("Money", self.rooms_using("float", "round"))

    def test_every_command_can_be_reached_from_the_parser(self) -> None:
        commands = {
            node.name
            for node in TREE.body
            if isinstance(node, ast.FunctionDef)
            and [arg.arg for arg in node.args.args] == ["account", "args", "console"]
            and isinstance(node.returns, ast.Constant)
            and "Report" in str(node.returns.value)
        }
        self.assertGreaterEqual(len(commands), 6)
        named = {name for name, line in uses() if room_of(line) == "Parser"}
        self.assertLessEqual(commands, named)

    def test_the_file_is_no_longer_than_it_was(self) -> None:
        """These numbers only ever fall: people read the file before they trust it with a key."""
        self.assertLessEqual(len(SOURCE.splitlines()), 1_881)
        self.assertLessEqual(len(SOURCE.encode()), 87_110)

    def test_functions_are_short(self) -> None:
        for node in ast.walk(TREE):
            if isinstance(node, ast.FunctionDef):
                length = (node.end_lineno or 0) - node.lineno
                self.assertLess(length, 60, f"{node.name} has {length} lines")
