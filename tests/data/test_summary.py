"""Text and HTML of a batch."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl.data import SampleBatch


def test_text_has_the_lessons_form():
    batch = SampleBatch(
        {
            "action_logp": np.full(200, -0.694, np.float32),
            "actions": np.arange(200, dtype=np.int32) % 2,
            "obs": {"b": np.zeros((200, 4), np.float32), "a": (np.ones(200, bool),)},
        },
        time_major=False,
    )
    assert repr(batch).splitlines() == [
        "{ 'action_logp': np.ndarray((200,), dtype=float32, min=-0.694, max=-0.694, mean=-0.694),",
        "  'actions': np.ndarray((200,), dtype=int32, min=0.0, max=1.0, mean=0.5),",
        "  'obs'['a'][0]: np.ndarray((200,), dtype=bool, min=1.0, max=1.0, mean=1.0),",
        "  'obs'['b']: np.ndarray((200, 4), dtype=float32, min=0.0, max=0.0, mean=0.0)}",
    ]


def test_statistics_are_of_valid_rows_and_used_slots():
    batch = SampleBatch(
        {
            "obs": np.ones((2, 1), np.float32),
            "last_obs": np.ones(1, np.float32),
            "final_obs": np.asarray([5, 0], np.float32),
            "final_index": np.asarray([[1, 0], [2**30, 0]], np.int32),
        }
    ).pad_to(4)
    text = repr(batch)
    assert "'obs': np.ndarray((4, 1), dtype=float32, min=1.0, max=1.0, mean=1.0)" in text
    assert "'final_obs': np.ndarray((2,), dtype=float32, min=5.0, max=5.0, mean=5.0)" in text


def test_odd_leaves_never_raise():
    donated = jnp.ones(3)
    donated.delete()
    leaves = {
        "nan": np.asarray([np.nan, np.inf, 1], np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "objects": np.asarray([{}, None], object),
        "text": np.asarray(["a"]),
        "bf16": np.ones(2, jnp.bfloat16),
        "abstract": jax.ShapeDtypeStruct((2,), jnp.float32),
        "keys": jax.random.split(jax.random.key(0), 2),
        "deleted": donated,
        "none": None,
        "thing": object(),
        "number": 3,
        "complex": np.ones(2, np.complex64),
        "<b>": np.zeros(2, np.float32),
    }
    for time_major in (True, False):
        odd = SampleBatch._make(leaves, time_major)
        assert all(repr(name) in repr(odd) for name in leaves)
        page = odd._repr_html_()
        assert "<b>&#" not in page and "&lt;b&gt;" in page and "'<b>'" not in page
    assert "'nan': np.ndarray((3,), dtype=float32, min=nan, max=nan, mean=nan)" in repr(
        SampleBatch._make(leaves, False)
    )
    seen = []
    jax.jit(lambda b: seen.append((repr(b), b._repr_html_())) or 0)(
        SampleBatch({"rewards": np.zeros((2, 2), np.float32), "mask": np.ones((2, 2), bool)})
    )
    assert re.search(r"'rewards': Tracer\(\(2, 2\), dtype=float32\)", seen[0][0]) and "? valid rows" in seen[0][1]
    assert repr(SampleBatch._make({})) == "{}"


def test_html_header_counts():
    page = SampleBatch({"rewards": np.zeros((3, 2), np.float32)}).pad_to(4)._repr_html_()
    assert "T=4 \u00d7 B=2, 6 valid rows" in page and "40 B" in page
    assert "N=6, 6 valid rows" in SampleBatch({"r": np.zeros(6, np.int32)}, time_major=False)._repr_html_()
