"""ConfigTable: the options of an algorithm, as text and in a notebook."""

from __future__ import annotations

import html
import json
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from jaxrl import config as config_lib
from jaxrl.config import OptionDoc

_MAX_TYPE, _MAX_DEFAULT, _LINE = 36, 32, 160


class ConfigTable:
    """Every option with its type, default and meaning; printed as aligned text, shown as a table in a notebook.

    Args:
        name: the algorithm's name.
        docs: the options, as `jaxrl.config.describe` gives them.

    Example:
        >>> from jaxrl.config import OptionDoc
        >>> print(ConfigTable("PG", [OptionDoc("gamma", "float", 0.99, "Discount.", None, False)]))
        PG: 1 option (* may change while training)
        <BLANKLINE>
        option  type   default  meaning
        gamma   float  0.99     Discount.
    """

    def __init__(self, name: str, docs: Sequence[OptionDoc]) -> None:
        self.name = name
        self.docs = tuple(docs)

    def __iter__(self) -> Iterator[OptionDoc]:
        return iter(self.docs)

    def __len__(self) -> int:
        return len(self.docs)

    def search(self, text: str) -> ConfigTable:
        """The options whose key or meaning holds `text`."""
        found = [doc for doc in self.docs if text.casefold() in f"{doc.key} {doc.help}".casefold()]
        return ConfigTable(self.name, found)

    def to_json(self) -> str:
        """The defaults as JSON text, sections nested: what a configuration file starts from."""
        defaults: dict[str, Any] = {}
        for doc in self.docs:
            *sections, key = doc.key.split(".")
            node = defaults
            for section in sections:
                node = node.setdefault(section, {})
            node[key] = doc.default
        return json.dumps(config_lib.to_json(defaults), indent=1)

    def __repr__(self) -> str:
        rows = [("option", "type", "default", "meaning"), *self._rows()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        indent = sum(widths) + 6
        width = max(40, min(_LINE, shutil.get_terminal_size((_LINE, 24)).columns) - indent)
        lines = []
        for row in rows:
            meaning = textwrap.wrap(row[3], width, break_long_words=False) or [""]
            lines.append("  ".join([*(cell.ljust(widths[i]) for i, cell in enumerate(row[:3])), meaning[0]]).rstrip())
            lines += [" " * indent + more for more in meaning[1:]]
        return "\n".join([self._title(), "", *lines])

    def _repr_html_(self) -> str:
        head = "".join(f"<th style='text-align:left'>{name}</th>" for name in ("option", "type", "default", "meaning"))
        body = "".join(
            f"<tr><td style='text-align:left'><code>{html.escape(key)}</code></td>"
            + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in rest)
            + "</tr>"
            for key, *rest in self._rows()
        )
        return f"<p>{html.escape(self._title())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _title(self) -> str:
        return f"{self.name}: {len(self)} option{'s' * (len(self) != 1)} (* may change while training)"

    def _rows(self) -> Iterator[tuple[str, str, str, str]]:
        for doc in self.docs:
            meaning = doc.help
            if doc.choices and not all(str(choice) in doc.help for choice in doc.choices):
                meaning += f" One of {', '.join(map(repr, doc.choices))}."
            type_text = doc.type if doc.type and len(doc.type) <= _MAX_TYPE else f"{doc.type[: _MAX_TYPE - 3]}..."
            default = (
                str(doc.default) if isinstance(doc.default, str) and doc.default == "required" else repr(doc.default)
            )
            if callable(doc.default):
                default = getattr(doc.default, "__name__", default)
            if len(default) > _MAX_DEFAULT:
                default = f"{default[: _MAX_DEFAULT - 3]}..."
            yield doc.key + "*" * doc.traced, type_text, default, meaning
