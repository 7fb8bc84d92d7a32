#!/usr/bin/env python3
"""Draw the README's picture from what ops.py prints on a terminal, so that it can be drawn again.

python3 tests/picture.py > .github/ops.svg

It needs a pseudo-terminal: Linux, macOS or another POSIX system.
"""

from __future__ import annotations

import html
import os
import pty
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from sandbox import OPS, Sandbox

SCENES = (
    ("0", None, "balance"),
    ("0", 1.0, "topup --amount 25 --wait 20"),
    ("12.34", None, "topup --amount 1000"),
)
LINE_PX, CHAR_PX, MARGIN_PX, BAR_PX = 21, 8.4, 20, 36
PLAIN = "#e6edf3"
INK = {"": PLAIN, "0": PLAIN, "31": "#ff7b72", "32": "#7ee787"}  # by the code that sets it


class Cell(NamedTuple):
    """One character on the screen, and how it looks."""

    character: str
    ink: str = PLAIN
    bold: bool = False


def record(command: list[str], env: dict[str, str]) -> str:
    """All that a command writes to its terminal."""
    screen, terminal = pty.openpty()
    process = subprocess.Popen(command, env=env, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    written = b""
    while True:
        try:
            part = os.read(screen, 4096)
        except OSError:  # Linux says so where others return nothing
            part = b""
        if not part:
            break
        written += part
    os.close(screen)
    process.wait()
    return written.decode()


def show(written: str) -> list[list[Cell]]:
    """The lines on the screen after that was written to it.

    Raises KeyError for a code that no colour is known for.
    """
    lines: list[list[Cell]] = [[]]
    ink, bold, column = PLAIN, False, 0
    for code, kind, character in re.findall(r"\x1b\[([\d;]*)([A-Za-z])|([\s\S])", written):
        if kind == "m":
            for part in code.split(";"):
                bold = part == "1" or (bold and part not in ("", "0"))
                ink = ink if part == "1" else INK[part]
        elif kind == "K":
            del lines[-1][column if code in ("", "0") else 0 :]
        elif character == "\n":
            lines.append([])
        elif character == "\r":
            column = 0
        elif character:
            lines[-1][column : column + 1] = [Cell(character, ink, bold)]
            column += 1
    return lines


def play(balance_usd: str, pay_after_s: float | None, line: str) -> Iterator[list[Cell]]:
    """A command line, and all that it prints; what differs from run to run is evened out."""
    with Sandbox(balance_usd, pay_after_s=pay_after_s) as box:
        env = {**box.env, "PATH": "", "TERM": "xterm"}
        written = record([sys.executable, str(OPS), *shlex.split(line)], env)
        written = written.replace(box.url, "https://pay.example")
        written = written.replace(box.url.partition("://")[2], "pay.example")
    written = re.sub(r"/pay/\w+", "/pay/8886674d", written)
    written = re.sub(r"python3 \S*ops\.py", "python3 ops.py", written)
    yield [Cell(character) for character in f"$ python3 ops.py {line}"]
    yield from show(written)


def draw_line(cells: list[Cell], number: int) -> str:
    """One line of the screen."""
    spans = []
    for (ink, bold), run in groupby(cells, lambda cell: (cell.ink, cell.bold)):
        text = html.escape("".join(cell.character for cell in run))
        text = text.replace(" ", "\u00a0")  # viewers fold plain spaces
        weight = ' font-weight="bold"' if bold else ""
        spans.append(f'<tspan fill="{ink}"{weight}>{text}</tspan>')
    y_px = BAR_PX + number * LINE_PX
    return f'<text x="{MARGIN_PX}" y="{y_px}">{"".join(spans)}</text>'


def draw(lines: list[list[Cell]]) -> str:
    """The lines as a terminal window."""
    width_px = round(max(map(len, lines)) * CHAR_PX + 2 * MARGIN_PX)
    height_px = BAR_PX + len(lines) * LINE_PX + MARGIN_PX
    dots = "".join(
        f'<circle cx="{20 + 18 * n}" cy="18" r="6" fill="{ink}"/>'
        for n, ink in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    rows = "\n".join(draw_line(cells, number) for number, cells in enumerate(lines, 1))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {height_px}"'
        f' width="{width_px}" height="{height_px}" role="img" aria-label="ops.py in a terminal">\n'
        f'<rect width="100%" height="100%" rx="10" fill="#0d1117"/>{dots}\n'
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">'
        f"\n{rows}\n</g>\n</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(draw([cells for scene in SCENES for cells in play(*scene)]))
