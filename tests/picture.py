#!/usr/bin/env python3
"""Draw the README's picture from what ops.py prints, so that it can be drawn again.

python3 tests/picture.py > .github/ops.svg
"""

from __future__ import annotations

import html
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator

from sandbox import OPS, Sandbox

SCENES = (  # balance in dollars, seconds until a link is paid, command
    ("0", None, "balance"),
    ("0", 1.0, "topup --amount 25 --wait 20"),
    ("12.34", None, "topup --amount 1000"),
)
LINE_PX, CHAR_PX, MARGIN_PX, BAR_PX, COLUMNS = 21, 8.4, 20, 36, 96


def play(balance_usd: str, pay_after_s: float | None, line: str) -> Iterator[str]:
    """A command line and all that it prints, without what differs from run to run."""
    with Sandbox(balance_usd, pay_after_s=pay_after_s) as box:
        command = [sys.executable, str(OPS), *shlex.split(line)]
        done = subprocess.run(
            command, env=box.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        text = done.stdout.decode().replace(box.url, "https://pay.example")
        text = text.replace(box.url.partition("://")[2], "pay.example")
    text = re.sub(r"/pay/\w+", "/pay/8886674d", text)
    text = re.sub(r"python3 \S*ops\.py", "python3 ops.py", text)
    yield f"$ python3 ops.py {line}"
    for printed in text.splitlines():
        yield from textwrap.wrap(printed, COLUMNS, drop_whitespace=False) or [""]


def draw(lines: list[str]) -> str:
    """The lines as a terminal window."""
    width_px = round(COLUMNS * CHAR_PX + 2 * MARGIN_PX)
    height_px = BAR_PX + len(lines) * LINE_PX + MARGIN_PX
    dots = "".join(
        f'<circle cx="{20 + 18 * n}" cy="18" r="6" fill="{ink}"/>'
        for n, ink in enumerate(("#ff5f57", "#febc2e", "#28c840"))
    )
    rows = "\n".join(
        # viewers fold plain spaces
        f'<text x="{MARGIN_PX}" y="{BAR_PX + number * LINE_PX}"{STYLES[line[:2] == "$ "]}>'
        f"{html.escape(line).replace(' ', chr(160))}</text>"
        for number, line in enumerate(lines, 1)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width_px} {height_px}"'
        f' width="{width_px}" height="{height_px}" role="img" aria-label="ops.py in a terminal">\n'
        f'<rect width="100%" height="100%" rx="10" fill="#0d1117"/>{dots}\n'
        '<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="14" fill="#e6edf3">'
        f"\n{rows}\n</g>\n</svg>\n"
    )


STYLES = {True: ' fill="#7ee787"', False: ""}  # of a command line, and of what it prints

if __name__ == "__main__":
    sys.stdout.write(draw([line for scene in SCENES for line in play(*scene)]))
