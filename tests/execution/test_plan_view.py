"""A plan printed, traced and drawn."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxrl.data import SampleBatch
from jaxrl.execution.iterators import LocalIterator, Operator
from jaxrl.execution.parallel import from_range
from jaxrl.execution.plan_view import format_rate, format_seconds, summarise


def build() -> LocalIterator:
    left, right = from_range(8, 2).for_each(lambda x: x + 1).gather_sync().duplicate(2)
    send = Operator("Send <now>", lambda state, x: (state, x), host_only=True)
    return left.batch(2).union(right.for_each(send), deterministic=True).for_each(lambda x: x)


def test_printed_plan_shows_structure_counts_and_marks():
    plan = build()
    assert plan.node.items_out == 0
    lines = str(plan).splitlines()
    assert lines[0].startswith("lambda") and "for_each" in lines[0] and lines[0].endswith("0 items")
    assert "├─ batch [2]" in lines[2] and "└─ Send <now>" in str(plan)
    assert "[2 shards: for_each lambda]" in str(plan)
    assert str(plan).count("(shared, shown above)") == 1
    assert plan.node.items_out == 0  # printing consumes nothing
    plan.take(4)
    assert "host, 3 items" in next(line for line in str(plan).splitlines() if "Send" in line)
    assert "touches workers" in str(plan).splitlines()[-1]
    assert "print it" in repr(plan)


def test_trace_shows_each_step_in_order_and_consumes_as_take_does():
    double = Operator("Double", lambda state, x: (state, 2 * x))
    plan = LocalIterator.from_items([1, 2, 3, 4]).for_each(double).batch(2)
    steps = list(plan.trace())
    assert [(s.node, s.input, s.output) for s in steps] == [
        ("from_items", "", "1"),
        ("Double", "1", "2"),
        ("batch", "2", "(kept)"),
        ("from_items", "", "2"),
        ("Double", "2", "4"),
        ("batch", "4", "list(2: 2, 4)"),
    ]
    assert [s.number for s in steps] == [1, 2, 3, 4, 5, 6] and all(s.seconds >= 0 for s in steps)
    assert "Double (for_each): 1 -> 2" in repr(steps[1])
    assert plan.take(5) == [[6, 8]]
    assert all(node.observer is None for node in plan.nodes())
    assert list(plan.trace(3))[-1].output == "(nothing)"  # at the end


def test_trace_gives_the_steps_up_to_an_error_and_then_the_error():
    plan = LocalIterator.from_items([1]).for_each(lambda x: x).for_each(lambda x: 1 // 0)
    trace = plan.trace()
    assert [next(trace).node for _ in range(3)] == ["from_items", "lambda", "lambda"]
    with pytest.raises(ZeroDivisionError):
        next(trace)


def test_trace_shows_itself_as_a_table_with_text_escaped():
    plan = LocalIterator.from_items(["<b>"]).for_each(lambda x: x)
    html = plan.trace(2)._repr_html_()
    assert html.count("<tr>") == 5 and "&lt;b&gt;" in html and "<b>" not in html
    assert "<tr>" in next(LocalIterator.from_items([1]).trace())._repr_html_()


def texts_of(svg: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_drawing_is_well_formed_and_holds_every_node():
    plan = build()
    names = {"from_range[8, 2]", "duplicate(2)", "copy[0]", "copy[1]", "Send <now>", "union", "batch"}
    assert names < set(texts_of(plan.draw()))
    plan.take(6)
    svg = plan._repr_html_()
    texts = texts_of(svg)
    assert names < set(texts)
    assert any("items ·" in text and "/s" in text for text in texts)
    assert svg.count("marker-end") == len([1 for node in plan.nodes() for _ in node.inputs])


def test_boxes_do_not_overlap():
    root = ElementTree.fromstring(build().union(build(), LocalIterator.from_items([1])).draw())
    boxes = [e for e in root.iter() if e.tag.endswith("rect") and e.get("rx") == "8" and e.get("width") == "256"]
    corners = {(float(e.get("x", 0)), float(e.get("y", 0))) for e in boxes}
    for x, y in corners:
        for u, v in corners - {(x, y)}:
            stacked = abs(x - u) <= 8 and abs(y - v) <= 8
            assert stacked or abs(x - u) >= 256 or abs(y - v) >= 62


def test_items_in_a_few_words():
    assert summarise(np.zeros((2, 3), np.float32)) == "float32[2, 3]"
    assert summarise({"obs": np.zeros(4), "n": 1}) == "dict(2: obs: float64[4], n: 1)"
    batch = SampleBatch({"obs": np.zeros((3, 2, 4), np.float32), "rewards": np.zeros((3, 2), np.float32)})
    assert summarise([batch]) == "list(1: SampleBatch[3, 2] of 2 columns)"
    assert summarise([]) == "list(0)" and summarise([[[1]]]) == "list(1: list(1: list(1)))"
    assert len(summarise("x" * 1000)) <= 64
    assert [format_rate(x) for x in (0.123, 12.34, 1234, 2.5e6)] == ["0.123", "12.3", "1.23k", "2.5M"]
    assert [format_seconds(x) for x in (2.5, 0.0123, 4.2e-6)] == ["2.5 s", "12.3 ms", "4.2 us"]


def test_a_trace_says_what_it_is_without_running():
    plan = LocalIterator.from_items([1, 2])
    trace = plan.trace()
    assert repr(trace) == "<Trace, 0 steps so far; loop over it to see them>"
    assert len(list(trace)) == 1 and "1 step so far" in repr(trace)
