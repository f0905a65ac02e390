"""Text for a terminal or a page: what others named is shown as it is written, and does nothing."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Returns `text` with control characters, and others that cannot be seen, as escapes; line ends and tabs stay.

    Example:
        >>> printable("\x1b[31mred")
        '\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


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
