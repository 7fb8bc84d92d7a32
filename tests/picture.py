#!/usr/bin/env python3
"""Draw the README's picture from real output of the sandbox, so that it can be drawn again.

python3 tests/picture.py > .github/ops.svg
"""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys

from sandbox import OPS, Sandbox

SCENES = (
    ("0", None, "balance"),
    ("0", 1.0, "topup --amount 25 --wait 5"),
    ("12.34", None, "topup --amount 1000"),
)
LINE_PX, CHAR_PX, MARGIN_PX, BAR_PX = 21, 8.4, 20, 36
INK = {"$": "#7ee787", "Next:": "#79c0ff", "usage:": "#ff7b72", "https:": "#a5d6ff"}


def play(balance_usd: str, pay_after_s: float | None, line: str) -> list[str]:
    """A command line, and all that it prints; what differs from run to run is evened out."""
    with Sandbox(balance_usd, pay_after_s=pay_after_s) as box:
        done = subprocess.run(
            [sys.executable, str(OPS), *shlex.split(line)],
            env={**box.env, "PATH": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        shown = done.stdout.replace(box.url, "https://pay.example").replace(
            box.url.partition("://")[2], "pay.example"
        )
    shown = re.sub(r"/pay/\w+", "/pay/8886674d", shown)
    shown = re.sub(r"python3 \S*ops\.py", "python3 ops.py", shown)
    return [f"$ python3 ops.py {line}", *shown.splitlines(), ""]


def draw(lines: list[str]) -> str:
    """The lines as a terminal window."""
    width_px = round(max(map(len, lines)) * CHAR_PX + 2 * MARGIN_PX)
    height_px = BAR_PX + len(lines) * LINE_PX + MARGIN_PX
    dots = "".join(
        f'<circle cx="{20 + 18 * n}" cy="18" r="6" fill="{ink}"/>'
        for n, ink in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    rows = []
    for number, line in enumerate(lines):
        ink = next((color for start, color in INK.items() if line.startswith(start)), "#e6edf3")
        y_px = BAR_PX + (number + 1) * LINE_PX
        text = html.escape(line).replace(" ", "\u00a0")  # viewers fold plain spaces
        rows.append(f'<text x="{MARGIN_PX}" y="{y_px}" fill="{ink}">{text}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {height_px}"'
        f' width="{width_px}" height="{height_px}" role="img" aria-label="ops.py in a terminal">\n'
        f'<rect width="100%" height="100%" rx="10" fill="#0d1117"/>{dots}\n'
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14">'
        f"\n{chr(10).join(rows)}\n</g>\n</svg>\n"
    )


if __name__ == "__main__":
    sys.stdout.write(draw([line for scene in SCENES for line in play(*scene)]))
