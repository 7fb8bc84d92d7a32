"""Change words, defaults and arguments of ops.py one by one, and see which test notices.

    python3 .ci/words.py            with Python 3.12 or newer; SAMPLE, MINUTES and SEED
                                    come from the environment

A word of a string becomes another word, a number or a flag of a signature or a call
another value, a named argument is left out. Each mutant is put into a clone of what is
committed, the transcripts are typed in page by page, then the suite runs, both up to the
first failure. What nobody can see, docstrings and annotations, is left alone.
"""

from __future__ import annotations

import ast
import collections
import difflib
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

OPS = Path("skills/cacheforge-ops/ops.py")
PATIENCE_S = 300
# the pages that see most come first
PAGES = ("help", "typing", "balance", "keys-create", "auto-topup", "upstream", "settings")


class Finder(ast.NodeVisitor):
    """Walks over what runs, and notes where which mutant can be made."""

    def __init__(self, source: str) -> None:
        self.lines = source.encode().splitlines(keepends=True)
        self.found: list[tuple[int, int, bytes]] = []  # from, to, instead
        self.visit(ast.parse(source))

    def span(self, node: ast.expr | ast.keyword) -> tuple[int, int]:
        """Where a node begins and ends, in bytes."""
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = sum(len(line) for line in self.lines[: node.lineno - 1])
        end = sum(len(line) for line in self.lines[: node.end_lineno - 1])
        return start + node.col_offset, end + node.end_col_offset

    def put(self, node: ast.expr | ast.keyword, instead: str) -> None:
        """Note that a node can be replaced."""
        self.found.append((*self.span(node), instead.encode()))

    def visit_Constant(self, node: ast.Constant) -> None:
        """A string gets another word, or is another one altogether."""
        if not isinstance(node.value, str):
            return
        start, end = self.span(node)
        text = b"".join(self.lines)[start:end]
        words = list(re.finditer(rb"(?<![\\{])\b[A-Za-z]{2,}", text))
        if words:
            word = random.choice(words)
            self.found.append((start + word.start(), start + word.end(), b"other"))
        elif text[:1] in (b'"', b"'"):
            self.put(node, '"@"' if node.value else '"other"')
        else:
            self.put(node, "@")  # a piece of an f-string

    def visit_Call(self, node: ast.Call) -> None:
        """A named argument is left out, or is another value."""
        for keyword in node.keywords:
            self.visit_default(keyword.value)
            if keyword.arg:
                start, end = self.span(keyword)
                rest = b"".join(self.lines)[end:]
                comma = re.match(rb"\s*,", rest)
                self.found.append((start, end + (comma.end() if comma else 0), b""))
        self.generic_visit(node)

    def visit_default(self, node: ast.expr | None) -> None:
        """A number or a flag is another one."""
        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            flag = isinstance(node.value, bool)
            self.put(node, str(not node.value if flag else node.value + 1))

    def visit_Assign(self, node: ast.Assign) -> None:
        """A constant of the module is a default."""
        if node.col_offset == 0:
            self.visit_default(node.value)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        """Defaults and body; no docstring, no annotation."""
        for default in (*node.args.defaults, *node.args.kw_defaults):
            self.visit_default(default)
            if default:
                self.visit(default)
        self.visit_body(node.body)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        """The body, unless the class is there for the type checker."""
        if not any(
            "TypedDict" in ast.unparse(b) or "Protocol" in ast.unparse(b) for b in node.bases
        ):
            self.visit_body(node.body)

    def visit_Module(self, node: ast.Module) -> None:
        """The body."""
        self.visit_body(node.body)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        """The value; no annotation."""
        if node.value:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        """What the type checker alone reads is left out."""
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_body(self, body: list[ast.stmt]) -> None:
        """All but a docstring."""
        for statement in body:
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                self.visit(statement)


def mutants(source: str) -> Iterator[str]:
    """The mutants of a program that are programs, in a random order."""
    raw = source.encode()
    found = sorted(set(Finder(source).found))
    random.shuffle(found)
    for start, end, instead in found:
        mutant = (raw[:start] + instead + raw[end:]).decode()
        try:
            ast.parse(mutant)
        except SyntaxError:
            continue
        if mutant != source:
            yield mutant


def fails(command: list[str], folder: Path) -> bool:
    """Whether a command fails, or does not end."""
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(
        command, cwd=folder, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    try:
        return child.wait(PATIENCE_S) != 0
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        return True


def seen_by(folder: Path) -> str:
    """What notices that the program in the folder is another one: `no test`, perhaps."""
    pages = sorted(
        folder.glob("tests/transcripts/*.md"),
        key=lambda path: PAGES.index(path.stem) if path.stem in PAGES else len(PAGES),
    )
    for page in pages:
        if fails([sys.executable, "tests/test_transcripts.py", str(page)], folder):
            return "transcripts"
    suite = [sys.executable, "-m", "unittest", "discover", "-f", "-s", "tests"]
    return "other tests" if fails(suite, folder) else "no test"


def main() -> int:
    """Try a sample; the exit code says whether a mutant lives."""
    seed = os.environ.get("SEED") or str(random.randrange(1_000_000))
    random.seed(seed)
    end = time.monotonic() + float(os.environ.get("MINUTES") or 60) * 60
    tally: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "clone")
        subprocess.run(["git", "clone", "--quiet", ".", str(folder)], check=True)
        source = (folder / OPS).read_text("utf-8")
        everything = list(mutants(source))
        sample = everything[: int(os.environ.get("SAMPLE") or 100)]
        print(f"{len(sample)} of {len(everything)} mutants (SEED={seed})", flush=True)
        if (noticed := seen_by(folder)) != "no test":
            print(f"Nothing is changed yet, and the {noticed} fail", file=sys.stderr)
            return 2
        for mutant in sample:
            if time.monotonic() > end:
                break
            (folder / OPS).write_text(mutant, "utf-8")
            noticed = seen_by(folder)
            tally[noticed] += 1
            if noticed != "transcripts":
                lines = source.splitlines(), mutant.splitlines()
                change = list(difflib.unified_diff(*lines, n=0, lineterm=""))
                print(f"-- seen by {noticed}", *change[2:], sep="\n", flush=True)
    print(f"{sum(tally.values())} tried:", *(f"{n} seen by {what};" for what, n in tally.items()))
    return 1 if tally["no test"] else 0


if __name__ == "__main__":
    sys.exit(main())
