"""SampleBatch as a value: validation, mapping, reductions, pytree, pickling."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from jaxrl import trees
from jaxrl.data import SampleBatch, UnknownColumnError
from jaxrl.types import FINAL_PAD, CheckpointError, JaxrlError, LossError


def make(steps=4, width=2, **more):
    obs = np.arange(steps * width * 3, dtype=np.float32).reshape(steps, width, 3)
    columns = {
        "obs": obs,
        "rewards": np.arange(steps * width, dtype=np.float32).reshape(steps, width),
        "terminateds": np.zeros((steps, width), bool),
        "truncateds": np.zeros((steps, width), bool),
        "last_obs": -np.ones((width, 3), np.float32),
        "final_obs": np.full((2, 3), 99, np.float32),
        "final_index": np.asarray([[1, 0], [FINAL_PAD, 0]], np.int32),
    }
    return SampleBatch({**columns, **more})


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint64, np.complex64, object, "U3", "M8[s]"])
def test_wide_and_object_columns_are_refused_by_name(dtype):
    with pytest.raises(TypeError, match="'rewards'"):
        SampleBatch({"rewards": np.zeros((3, 2), dtype)})


@pytest.mark.parametrize("value", [[1.0, 2.0], [1, 2], 3.0, ["a"]])
def test_python_values_are_refused_with_the_way_out(value):
    with pytest.raises(TypeError, match=r"'rewards'.*np\.asarray"):
        SampleBatch({"rewards": value}, time_major=False)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({}, "no columns"),
        ({"state_in": np.zeros((2, 1), np.float32)}, "no columns with rows"),
        ({"rewards": np.zeros((0, 2), np.float32)}, "holds no rows"),
        ({"rewards": np.zeros((3,), np.float32)}, r"shape \(3,\)"),
        ({"obs": np.zeros((3, 2), np.float32), "rewards": np.zeros((2, 3), np.float32)}, "'rewards' has shape"),
        ({"obs": None}, "holds no array"),
        ({"rewards": np.zeros((3, 2), np.float32), "state_in": np.zeros((3, 4), np.float32)}, "B = 2"),
        ({"obs": np.zeros((3, 2), np.float32), "final_obs": np.zeros(1, np.float32)}, "come together"),
        ({"rewards": np.zeros((3, 2), np.float32), "last_obs": np.zeros(2, np.float32)}, "need the column obs"),
        ({"obs": {"a": np.zeros((3, 2), np.float32)}, "last_obs": np.zeros(2, np.float32)}, "structure of obs"),
        ({"obs": np.zeros((3, 2), np.float32), "final_obs": np.zeros(2, np.float32),
          "final_index": np.zeros((1, 2), np.int32)}, "K = 1"),
    ],
)  # fmt: skip
def test_shapes_are_checked(columns, text):
    with pytest.raises(ValueError, match=text):
        SampleBatch(columns)


def test_mask_must_be_bool_and_flat_batches_have_no_structure():
    with pytest.raises(TypeError, match="mask must be bool"):
        SampleBatch({"rewards": np.zeros((3, 2), np.float32), "mask": np.ones((3, 2), np.float32)})
    with pytest.raises(ValueError, match="time-major"):
        SampleBatch({"obs": np.zeros(3, np.float32), "last_obs": np.zeros(1, np.float32)}, time_major=False)


def test_feed_forward_state_may_be_empty():
    batch = make(state_in=())
    assert batch["state_in"] == ()
    assert batch.cut(3).T == 3


# ---------------------------------------------------------------- mapping


def test_mapping_is_sorted_immutable_and_identity_equal():
    batch = make()
    assert list(batch) == sorted(batch) and len(batch) == 7
    assert "new_obs" in batch and "dones" in batch and "new_obs" not in list(batch)
    assert batch == batch and batch != make() and len({batch, make()}) == 2
    with pytest.raises(AttributeError, match="with_columns"):
        batch._count = 1
    assert batch.get("advantages") is None and batch.get("rewards") is batch["rewards"]
    assert copy.copy(batch) is batch


def test_derived_columns_by_hand():
    batch = make()
    obs, new_obs = batch["obs"], batch["new_obs"]
    np.testing.assert_array_equal(new_obs[:, 1], np.concatenate([obs[1:, 1], -np.ones((1, 3))]))
    np.testing.assert_array_equal(new_obs[:, 0], np.stack([obs[1, 0], np.full(3, 99), obs[3, 0], -np.ones(3)]))
    assert obs[2, 0, 0] == 12, "the stored observations are untouched"
    cut = np.eye(4, 2, dtype=bool)
    np.testing.assert_array_equal(batch.with_columns(truncateds=cut)["dones"], cut)


def test_unknown_column_names_the_nearest_and_lists_all():
    with pytest.raises(KeyError, match=r"'reward'.*'rewards'.*obs, rewards"):
        make()["reward"]
    with pytest.raises(UnknownColumnError, match="nothing has filled it"):
        make()["vf_preds"]
    with pytest.raises(LossError, match=r"flatten\(columns"):
        make().flatten()["new_obs"]
    with pytest.raises(KeyError, match="terminateds and truncateds"):
        make().drop("truncateds")["dones"]


def test_recording_follows_the_batch():
    reads: set[str] = set()
    batch = make().recording(reads)
    batch.with_columns(advantages=batch["rewards"]).flatten()["advantages"]
    batch.take(np.asarray([1]))["new_obs"]
    batch.get("vf_preds")
    assert reads == {"rewards", "advantages", "new_obs"}
    with pytest.raises(UnknownColumnError):
        batch["advantage"]
    inside: set[str] = set()
    jax.eval_shape(lambda b: b.recording(inside).mean(b.recording(inside)["rewards"]), make())
    assert inside == {"rewards"}


def test_column_methods():
    batch = make()
    assert set(batch.select(["obs", "dones"])) == {"obs", "dones"}
    assert set(batch.drop("obs")) == {"rewards", "terminateds", "truncateds"}
    with pytest.raises(KeyError):
        batch.drop(["nothing"])
    with pytest.raises(KeyError, match="'advantages'"):
        batch.replace(advantages=batch["rewards"])
    with pytest.raises(ValueError, match="'advantages'"):
        batch.with_columns(advantages=np.zeros((2, 4), np.float32))
    with pytest.raises(TypeError, match="float64"):
        batch.with_columns(advantages=np.zeros((4, 2)))
    with pytest.raises(ValueError, match="last_obs"):
        batch.with_columns(last_obs=np.zeros((3, 3), np.float32))
    bare = batch.select(["obs", "rewards"]).with_columns(last_obs=np.zeros((2, 3), np.float32))
    assert "new_obs" in bare
    rewards, obs = batch.columns(["rewards", "obs"])
    assert rewards.shape == (4, 2) and obs.shape == (4, 2, 3)
    assert set(batch.scan_columns()) == {"obs", "rewards", "terminateds", "truncateds"}
    with pytest.raises(AttributeError, match="flat"):
        assert batch.flatten().T


def test_rows_are_the_valid_ones_in_order():
    mask = np.ones((4, 2), bool)
    mask[0, 1] = False
    rows = list(make(mask=mask).rows())
    assert [float(row["rewards"]) for row in rows] == [0, 2, 3, 4, 5, 6, 7]
    assert set(rows[0]) == {"obs", "rewards", "terminateds", "truncateds"}


# ---------------------------------------------------------------- numbers


def test_count_and_sizes():
    batch = make()
    assert (batch.T, batch.B, batch.num_rows, batch.count, batch.shape) == (4, 2, 8, 8, (4, 2))
    assert batch.size_bytes == 4 * (24 + 8 + 6 + 6 + 4) + 16
    padded = batch.pad_to(6)
    assert (padded.num_rows, padded.count) == (12, 8) and type(padded.count) is int
    assert jax.jit(lambda b: jnp.zeros(b.count))(batch).shape == (8,)
    with pytest.raises(JaxrlError, match="traced"):
        jax.jit(lambda b: b.count)(padded)


def test_mean_and_sum_are_mask_aware():
    batch = make()
    mask = np.zeros((4, 2), bool)
    mask[0, 0] = mask[3, 1] = True
    masked = batch.with_columns(mask=mask)
    x = np.where(mask, batch["rewards"], np.nan).astype(np.float32)
    assert masked.mean(x) == 3.5 and masked.sum(x) == 7.0
    assert masked.mean(np.stack([x, x + 1], axis=-1)) == 4.0
    assert jax.jit(lambda b, x: b.mean(x))(masked, x) == 3.5
    assert batch.mean(batch["rewards"]) == 3.5 and masked.mean(x).dtype == np.float32
    assert masked.mean(jnp.ones((4, 2), jnp.bfloat16)).dtype == jnp.float32
    nothing = batch.with_columns(mask=np.zeros((4, 2), bool))
    assert nothing.mean(x) == 0.0 and jax.jit(lambda b: b.mean(b["rewards"]))(nothing) == 0.0
    grad = jax.grad(lambda x: masked.mean(x * x))(jnp.asarray(batch["rewards"]))
    np.testing.assert_allclose(grad, np.where(mask, batch["rewards"], 0))
    with pytest.raises(ValueError, match=r"leading axes \[4, 2\]"):
        batch.mean(np.zeros(8, np.float32))


# ---------------------------------------------------------------- pytree and pickling


def test_pytree_round_trip_takes_any_leaf():
    batch = make(obs={"a": np.zeros((4, 2), np.float32)}, last_obs={"a": np.zeros(2, np.float32)},
                 final_obs={"a": np.zeros(2, np.float32)})  # fmt: skip
    leaves, structure = jax.tree.flatten(batch)
    assert len(leaves) == 7
    for leaf in (None, object(), jax.ShapeDtypeStruct((), jnp.float32)):
        odd = jax.tree.unflatten(structure, [leaf] * 7)
        assert isinstance(odd, SampleBatch) and repr(odd) and odd._repr_html_()
    assert structure == jax.tree.structure(jax.tree.map(lambda x: x, batch))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(batch)[0]]
    assert "['obs']['a']" in paths
    seen = []
    jax.jit(lambda b: seen.append(isinstance(b["rewards"], Tracer)) or b)(batch)
    assert seen == [True]


def test_vmap_sees_each_member():
    stacked = trees.stack([make(), make()])
    np.testing.assert_array_equal(jax.vmap(lambda b: b.mean(b["rewards"]))(stacked), [3.5, 3.5])


def test_jit_does_not_retrace_for_equal_shapes():
    traced = []
    fn = jax.jit(lambda b: traced.append(1) or b.flatten(["obs", "new_obs"]))
    fn(make())
    fn(make().with_columns(rewards=np.zeros((4, 2), np.float32)))
    assert len(traced) == 1


def test_pickle_carries_numpy():
    batch = jax.tree.map(jnp.asarray, make())
    back = pickle.loads(pickle.dumps(batch))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(back)) and back.time_major
    np.testing.assert_array_equal(back["new_obs"], make()["new_obs"])


def test_checkpoint_codec():
    batch = make(obs={"a": np.zeros((4, 2), np.float32)}, last_obs={"a": np.zeros(2, np.float32)},
                 final_obs={"a": np.zeros(2, np.float32)})  # fmt: skip
    structure, arrays = trees.encode([batch])
    (back,) = trees.decode(structure, arrays)
    assert isinstance(back, SampleBatch) and jax.tree.structure(back) == jax.tree.structure(batch)
    arrays["0/columns/rewards"] = np.zeros(3, np.float32)
    with pytest.raises(CheckpointError, match="damaged SampleBatch"):
        trees.decode(structure, arrays)
