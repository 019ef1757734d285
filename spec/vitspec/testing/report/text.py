"""Text of others, made harmless: it may hold anything, and reports quote it."""

from __future__ import annotations

import html
import re

SAFE_IN_BACKTICKS = re.compile(r"[^`|\\\n]+")
"""What a Markdown code span shows as it is, in a table too."""


def printable(text: str, keep: str = "") -> str:
    r"""`text` with every character that does not print written as Python would, but for `keep`.

    Escape sequences of terminals, what XML forbids, lone surrogates, and marks that reverse the
    direction of writing are all of that kind.

    >>> printable("a\x1b[31m\n\ud800")
    'a\\x1b[31m\\n\\ud800'
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def in_html(text: str) -> str:
    """`text` as HTML or XML shows it, in an attribute too.

    >>> in_html('<b a="x">')
    '&lt;b a=&quot;x&quot;&gt;'
    """
    return html.escape(printable(text, keep="\n"), quote=True)


def in_markdown(text: str) -> str:
    """`text` as a code span, where nothing is markup.

    >>> in_markdown("a_b"), in_markdown("a|b")
    ('`a_b`', '<code>a&#124;b</code>')
    """
    text = " ".join(printable(text, keep="\n").split()) or "-"
    if SAFE_IN_BACKTICKS.fullmatch(text):
        return f"`{text}`"
    return f"<code>{re.sub(r'[^0-9A-Za-z ]', lambda c: f'&#{ord(c[0])};', text)}</code>"


def fenced(text: str, language: str = "text") -> str:
    """`text` as a Markdown block whose fence is longer than any in it."""
    text = printable(text, keep="\n")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def first_lines(text: str, count: int = 5, width: int = 200) -> list[str]:
    """The first lines of what may be very long, and how many characters are left."""
    shown = [line[:width] for line in text.splitlines()[:count]]
    # A newline after each line that is shown whole is not left out either.
    ends = sum(len(line) <= width for line in text.splitlines()[:count])
    left = len(text) - sum(map(len, shown)) - ends
    lines = [printable(line) for line in shown]
    return [*lines, f"... and {left} more characters"] if left > 0 else lines


def short(tensor: str) -> str:
    """A parameter's name without what all parameters of layers share."""
    return tensor.replace("encoder.layers.", "layers.")


def figure(x: float) -> str:
    """A number in few characters.

    >>> figure(1.25e-7), figure(0.64), figure(3e5), figure(0.0), figure(float("inf"))
    ('1.2e-7', '0.64', '3.0e5', '0', 'inf')
    """
    if not x or 0.1 <= x < 100:
        return f"{x:.2g}"
    mantissa, e, exponent = f"{x:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if e else mantissa


def ratio(x: float) -> str:
    """A ratio, of which up to 1 is good, in few characters."""
    return f"{x:.2f}" if x < 100 else figure(x)
