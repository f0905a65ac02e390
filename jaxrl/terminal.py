"""Text for a terminal or a page: what others named is shown as it is written, and does nothing."""

from __future__ import annotations

import re

# Control characters, marks that turn the direction of writing, halves of characters; not tab and line end.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with its control characters written out.

    Example:
        >>> printable("\x1b[31mred")
        '\\x1b[31mred'
    """
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable_name(text: str, width: int = 80) -> str:
    r"""A name in one line of at most `width` characters.

    Example:
        >>> printable_name("two\nlines"), printable_name("a" * 50 + "b" * 50, 11)
        ('two\\nlines', 'aaaaa…bbbbb')
    """
    line = printable(text).replace("\t", "\\t").replace("\n", "\\n")
    if len(line) <= width:
        return line
    half = (width - 1) // 2
    return f"{line[: width - 1 - half]}…{line[-half:]}"
