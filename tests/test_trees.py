"""Trees: paths, checks on restoring, and the way to files and back."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl import storage, trees
from jaxrl.storage.arrays import Source, read
from jaxrl.types import CheckpointError


def read_arrays(path):
    with open(path, "rb") as file:
        return read(Source(file.fileno(), path.stat().st_size, f"{path}", lambda piece: None))


class State(NamedTuple):
    params: dict
    step: int
    key: jax.Array


def state(seed=0):
    params = {"policy": {"kernel": jnp.full((2, 3), float(seed))}, "half": jnp.ones(2, jnp.bfloat16) * seed}
    return State(params, 7 + seed, jax.random.key(seed))


# ---------------------------------------------------------------- leaves


def test_stack_concat_and_sizes_keep_numpy():
    parts = [{"a": np.ones(2, np.float32) * i} for i in range(3)]
    assert isinstance(trees.stack(parts)["a"], np.ndarray) and trees.stack(parts)["a"].shape == (3, 2)
    assert trees.concat(parts)["a"].shape == (6,)
    assert isinstance(trees.stack([parts[0], {"a": jnp.ones(2)}])["a"], jax.Array)
    assert trees.size_bytes([*parts, jax.ShapeDtypeStruct((4,), jnp.bfloat16), None, 3]) == 32


def test_to_numpy_leaves_keys():
    tree = trees.to_numpy({"a": jnp.ones(2), "k": jax.random.key(0), "n": 3})
    assert isinstance(tree["a"], np.ndarray) and trees.is_key(tree["k"]) and tree["n"] == 3


def test_first_nonfinite_names_the_path():
    tree = {"a": np.ones(2), "b": [np.arange(3), {"c/d": jnp.asarray([1, jnp.nan])}], "k": jax.random.key(0), "s": "x"}
    assert trees.first_nonfinite(tree) == "b/1/c~1d"
    assert trees.first_nonfinite({"x": float("inf")}) == "x"
    assert trees.first_nonfinite({"x": jnp.asarray([jnp.inf], jnp.bfloat16)}) == "x"
    assert trees.first_nonfinite({"x": 1.0, "k": jax.random.key(0), "s": "x"}) is None


# ---------------------------------------------------------------- restoring


def test_paths():
    assert set(trees.flatten_with_paths(state())) == {"params/policy/kernel", "params/half", "step", "key"}


def test_paths_that_read_the_same_are_refused():
    @jax.tree_util.register_pytree_with_keys_class
    class Clash:
        def tree_flatten_with_keys(self):
            return [(jax.tree_util.DictKey(1), 1), (jax.tree_util.DictKey("1"), 2)], None

        @classmethod
        def tree_unflatten(cls, aux, children):
            del aux, children
            return cls()

    with pytest.raises(ValueError, match="'1'"):
        trees.flatten_with_paths(Clash())


def test_slashes_in_keys_do_not_clash():
    assert set(trees.flatten_with_paths({"a/b": 1, "a": {"b": 2}, "~1": 3})) == {"a~1b", "a/b", "~01"}


def test_restore_like_round_trip_through_a_file(tmp_path):
    saved, template = state(3), state(0)
    storage.Writer(tmp_path).arrays("s.safetensors", trees.flatten_with_paths(saved))
    back = trees.restore_like(template, read_arrays(tmp_path / "s.safetensors"), "s")
    assert back.step == 10 and type(back.step) is int
    assert isinstance(back.params["half"], jax.Array) and back.params["half"].dtype == jnp.bfloat16
    for a, b in zip(jax.tree.leaves(back.params), jax.tree.leaves(saved.params), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(jax.random.uniform(back.key), jax.random.uniform(saved.key))
    abstract = jax.eval_shape(lambda: state(0).params)
    again = trees.restore_like(abstract, trees.flatten_with_paths(saved.params), "s")
    assert isinstance(again["half"], jax.Array)


def test_restored_arrays_do_not_alias_their_source():
    source = np.ones(1024, np.float32)
    back = trees.restore_like({"a": jnp.zeros(1024)}, {"a": source}, "here")
    source[:] = 5
    assert float(back["a"].max()) == 1.0


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ({"a": np.zeros(3, np.float32)}, [r"a: expected float32\[2\], got float32\[3\]"]),
        ({"a": np.zeros(2, np.float16)}, [r"a: expected float32\[2\], got float16\[2\]"]),
        ({"c": np.zeros(2)}, [r"c: not expected, got float64\[2\]"]),
        ({"k": np.zeros(2, np.uint32)}, [r"k: expected key<fry>\[\], got uint32\[2\]"]),
        ({"k": jax.random.key(0, impl="rbg")}, [r"k: expected key<fry>\[\], got key<rbg>\[\]"]),
        ({"a": None}, [r"a: missing, expected float32\[2\]", "here", "1 of the stored"]),
    ],
)
def test_restore_like_names_each_mismatch(change, texts):
    template = {"a": np.zeros(2, np.float32), "k": jax.random.key(0)}
    flat = {name: value for name, value in {**template, **change}.items() if value is not None}
    with pytest.raises(CheckpointError) as error:
        trees.restore_like(template, flat, "here")
    for text in texts:
        assert error.match(text)


# ---------------------------------------------------------------- encode and decode


KEYS = st.text(max_size=4) | st.integers() | st.booleans() | st.none() | st.sampled_from(["$array", "$x", "a/b", "~"])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
TREES = st.recursive(
    LEAVES | st.tuples(LEAVES, LEAVES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3) | st.tuples(inner),
    max_leaves=12,
)


@settings(max_examples=80, deadline=None)
@given(TREES)
def test_encode_round_trips_python_values_through_strict_json(tree):
    structure, arrays = trees.encode(tree)
    text = json.dumps(structure, allow_nan=False)
    assert trees.decode(json.loads(text), arrays) == tree


def test_encode_arrays_scalars_keys_and_clashing_names(tmp_path):
    tree = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": [jnp.ones(2, jnp.bfloat16), np.float32(2.5), float("nan"), -float("inf")],
        ("agent", 0): {0: np.zeros(1), "0": np.ones(1)},
        "key": jax.random.split(jax.random.key(1), 2),
        "rng": {"state": 2**127 + 1},
    }
    structure, arrays = trees.encode(tree)
    storage.Writer(tmp_path).arrays("x.safetensors", arrays)
    back = trees.decode(json.loads(json.dumps(structure, allow_nan=False)), read_arrays(tmp_path / "x.safetensors"))
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"][0].dtype == jnp.bfloat16 and type(back["b"][1]) is np.float32 and np.isnan(back["b"][2])
    assert back["b"][3] == -float("inf") and back["rng"] == tree["rng"]
    assert back[("agent", 0)][0] == 0 and back[("agent", 0)]["0"] == 1
    np.testing.assert_array_equal(jax.random.key_data(back["key"]), jax.random.key_data(tree["key"]))


def test_encode_refuses_what_json_cannot_mean():
    with pytest.raises(TypeError, match=r"a/0 is a builtins\.set"):
        trees.encode({"a": [{1}]})
    with pytest.raises(TypeError, match=r"the value is a .*State"):
        trees.encode(state())
    with pytest.raises(TypeError, match="object"):
        trees.encode({"a": np.asarray([{}], object)})


@pytest.mark.parametrize(
    "structure",
    [
        {"$array": "gone"},
        {"$array": ["a"]},
        {"$array": "a", "x": 1},
        {"$type": "Popen", "value": []},
        {"$ref": "os:system"},
        {"$float": "1e3"},
        {"$tuple": 3},
        {"$dict": [[1]]},
        {"$dict": [[[1], 2]]},
        {"$type": {}, "value": 1},
        {"$scalar": "a", "$array": "a"},
    ],
)
def test_decode_refuses_damage(structure):
    with pytest.raises(CheckpointError):
        trees.decode(structure, {"a": np.zeros(2)})


def test_decode_refuses_bottomless_nesting():
    node: list = []
    for _ in range(10**5):
        node = [node]
    with pytest.raises(CheckpointError, match="deeply"):
        trees.decode(node, {})


def test_codec_names_are_taken_once():
    class SampleBatch:
        pass

    from jaxrl import data

    assert data.SampleBatch
    with pytest.raises(ValueError, match="taken"):
        trees.register_codec(SampleBatch, lambda x: x, lambda x: x)
