"""What a plan looks like as text, and the steps that its items take: printing and tracing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from html import escape
from typing import Any, NamedTuple

from jaxrl.execution.nodes import Node, walk
from jaxrl.execution.waiting import NOT_READY

_SUMMARY_WIDTH = 64


def draw_text(root: Node) -> str:
    """The plan as a tree, its last step first: name, settings, kind, marks, items given, rate and time.

    Example:
        >>> print(draw_text(plan.node))
        RunningSum          for_each     3 items
        └─ from_items       source       3 items
    """
    rows: list[tuple[str, str, str]] = []
    seen: set[int] = set()

    def visit(node: Node, stem: str, branch: str) -> None:
        detail = node.detail()
        again = id(node) in seen
        label = f"{stem}{branch}{node.name}" + (f" [{detail}]" if detail and not again else "")
        rows.append((label, node.kind, "(shared, shown above)" if again else counts_text(node)))
        if again:
            return
        seen.add(id(node))
        below = stem + {"": "", "├─ ": "│  ", "└─ ": "   "}[branch]
        for index, child in enumerate(node.inputs):
            visit(child, below, "└─ " if index == len(node.inputs) - 1 else "├─ ")

    visit(root, "", "")
    label_width = min(72, max(len(label) for label, _, _ in rows))
    kind_width = max(len(kind) for _, kind, _ in rows)
    lines = [f"{label:<{label_width}}  {kind:<{kind_width}}  {counts}".rstrip() for label, kind, counts in rows]
    hosts = sum(node.host_only for node in walk(root))
    if hosts:
        lines.append(f"(host: touches workers, queues or clocks; {hosts} of {len(walk(root))} nodes)")
    return "\n".join(lines)


def counts_text(node: Node) -> str:
    """`host, not saved, 12 items, 3.4/s, 0.12 s`: what is worth knowing about the node's run so far."""
    parts = ["host"] if node.host_only else []
    if not node.saveable:
        parts.append("not saved")
    parts.append(f"{node.items_out} item" + ("" if node.items_out == 1 else "s"))
    if node.items_out:
        parts += [f"{format_rate(rate(node))}/s", f"{format_seconds(node.seconds)}"]
    return ", ".join(parts)


def rate(node: Node) -> float:
    """Items a second, from the node's first pull to its last item; 0 before there is any."""
    if node.first_pull is None or node.last_out is None or node.last_out <= node.first_pull:
        return 0.0
    return node.items_out / (node.last_out - node.first_pull)


def format_rate(value: float) -> str:
    """Three significant digits with k, M or G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def format_seconds(value: float) -> str:
    """Seconds with the unit that suits: us, ms, s."""
    for limit, unit in ((1.0, "s"), (1e-3, "ms")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value * 1e6:.3g} us"


def summarise(item: Any, depth: int = 0) -> str:
    """An item in a few words: arrays and batches by shape, containers by their first entries, the rest by its repr."""
    shape, dtype = getattr(item, "shape", None), getattr(item, "dtype", None)
    if shape is not None and dtype is not None:
        text = f"{dtype}[{', '.join(map(str, shape))}]"
    elif isinstance(item, Mapping) and isinstance(shape, tuple):
        columns = f"{len(item)} column{'s' * (len(item) != 1)}"
        text = f"{type(item).__name__}[{', '.join(map(str, shape))}] of {columns}"
    elif isinstance(item, Mapping):
        text = _container(type(item).__name__, item, lambda key: f"{key}: {summarise(item[key], depth + 1)}", depth)
    elif isinstance(item, list | tuple):
        text = _container(type(item).__name__, item, lambda value: summarise(value, depth + 1), depth)
    else:
        text = " ".join(repr(item).split())
    return text if len(text) <= _SUMMARY_WIDTH else text[: _SUMMARY_WIDTH - 3] + "..."


def _container(name: str, items: Any, show: Callable[[Any], str], depth: int) -> str:
    if depth >= 2:
        return f"{name}({len(items)})"
    shown = [show(item) for item, _ in zip(items, range(4), strict=False)]
    return f"{name}({len(items)}: {', '.join(shown)}{', ...' if len(items) > 4 else ''})" if shown else f"{name}(0)"


class TraceStep(NamedTuple):
    """One step of one item: the node, what went in and came out in a few words, and the node's own seconds.

    `output` is "(kept)" where the node took the item in without giving one yet, "(nothing)" where it had nothing to
    give.
    """

    number: int
    node: str
    kind: str
    input: str
    output: str
    seconds: float

    def __repr__(self) -> str:
        given = f"{self.input} -> " if self.input else ""
        return f"{self.number:>3}  {self.node} ({self.kind}): {given}{self.output}  [{format_seconds(self.seconds)}]"

    def _repr_html_(self) -> str:
        return steps_table([self])


def steps_table(steps: list[TraceStep]) -> str:
    """HTML table of the steps, one a row."""
    # What went in and out may be long: those columns wrap, so that the table stays on the page.
    cell = "padding:2px 10px;text-align:left;font-family:monospace"
    narrow = f"{cell};white-space:nowrap"
    head = "".join(f'<th style="{cell}">{name}</th>' for name in ("", "node", "kind", "in", "out", "time"))
    rows = []
    for step in steps:
        values = (step.number, step.node, step.kind, step.input, step.output, format_seconds(step.seconds))
        faint = ";color:#888" if step.output.startswith("(") else ""
        styles = (narrow, narrow, narrow, cell, cell, narrow)
        cells = "".join(
            f'<td style="{style}{faint}">{escape(str(value))}</td>' for style, value in zip(styles, values, strict=True)
        )
        rows.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


class Trace:
    """Iterator over the steps that lead to the next `n` items of a plan; in a notebook it shows itself as a table.

    The items are consumed, as by `take`. Steps are gathered while one item is pulled, so those of an item come
    together; if an operator raises, the steps up to it come first, then its error.
    """

    def __init__(self, root: Node, next_item: Callable[[], Any], n: int):
        self._steps = self._run(root, next_item, n)
        self._shown: list[TraceStep] = []

    def _run(self, root: Node, next_item: Callable[[], Any], n: int) -> Iterator[TraceStep]:
        steps: list[TraceStep] = []
        number = 0

        def observe(node: Node, item_in: Any, item_out: Any, seconds: float) -> None:
            nonlocal number
            if item_out is not NOT_READY:
                output = summarise(item_out)
            else:
                output = "(nothing)" if item_in is NOT_READY else "(kept)"
            number += 1
            given = "" if item_in is NOT_READY else summarise(item_in)
            steps.append(TraceStep(number, node.name, node.kind, given, output, seconds))

        for _ in range(n):
            failure: BaseException | None = None
            # The observer is on only while a plan runs, so that a trace left half-way costs the plan nothing.
            for node in walk(root):
                node.observer = observe
            try:
                next_item()
            except StopIteration:
                n = 0
            except Exception as error:
                failure = error
            finally:
                for node in walk(root):
                    node.observer = None
            yield from steps
            steps.clear()
            if failure is not None:
                raise failure
            if not n:
                return

    def __iter__(self) -> Iterator[TraceStep]:
        return self

    def __next__(self) -> TraceStep:
        step = next(self._steps)
        self._shown.append(step)
        return step

    def __repr__(self) -> str:
        steps = f"{len(self._shown)} step{'s' * (len(self._shown) != 1)}"
        return f"<Trace, {steps} so far; loop over it to see them>"

    def _repr_html_(self) -> str:
        for _ in self:
            pass
        return steps_table(self._shown)
