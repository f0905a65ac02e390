"""SampleBatch: the immutable set of named columns in which all experience travels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl import trees
from jaxrl.data import columns as cols
from jaxrl.data import layout, summary
from jaxrl.types import JaxrlError, PyTree

_set = object.__setattr__


class SampleBatch(Mapping[str, PyTree]):
    """One or more trajectory fragments as named columns: an immutable `Mapping` and a pytree.

    A time-major batch is a rectangle: each column is `[T, B, ...]`, one column of the rectangle per environment (or
    agent slot), and rows that hold nothing are False in the bool column `mask`, never dropped. `flatten()` gives a flat
    batch, `[N, ...]`. A column may be a pytree of arrays (Dict and Tuple observations). Outside `jax.jit` columns are
    usually NumPy arrays, inside they are tracers; every method but those marked *host* works on both.

    Some entries describe the rectangle and are not rows: `state_in` (model state before row 0, `[B, ...]`), `last_obs`
    (observation after the last row, `[B, ...]`), and the final observations of ended episodes, `final_obs [K, ...]` at
    `final_index [K, 2]` = (t, b), unused slots having t = `jaxrl.types.FINAL_PAD`.

    `dones` and `new_obs` are derived when read, unless stored: `new_obs` is the true successor of each row, built from
    `obs`, `last_obs` and `final_obs`, so that observations travel once. Reading it copies; read it once.

    Args:
        columns: arrays (or pytrees of arrays) by name; NumPy or JAX, bool or at most 32 bits.
        time_major: True for columns `[T, B, ...]`, False for `[N, ...]`.

    Raises:
        TypeError: a column that is no array, or of a 64-bit or object dtype.
        ValueError: no rows, or columns whose leading shapes disagree.

    Examples:
        >>> import numpy as np
        >>> batch = SampleBatch({"obs": np.zeros((3, 2, 4), np.float32), "rewards": np.ones((3, 2), np.float32)})
        >>> batch.T, batch.B, batch.count
        (3, 2, 6)
        >>> float(batch.mean(batch["rewards"]))
        1.0
    """

    __slots__ = ("__weakref__", "_columns", "_count", "_reads", "_time_major")

    _columns: dict[str, PyTree]
    _time_major: bool
    _count: int | None
    _reads: set[str] | None

    def __init__(self, columns: Mapping[str, PyTree], *, time_major: bool = True) -> None:
        cols.validate(columns, time_major)
        _fill(self, dict(sorted(columns.items())), time_major, None)

    @staticmethod
    def _make(columns: Mapping[str, PyTree], time_major: bool = True, reads: set[str] | None = None) -> SampleBatch:
        """Builds a batch without validating: for the sampler's hot path, and for columns of a valid batch."""
        self = object.__new__(SampleBatch)
        _fill(self, dict(sorted(columns.items())), time_major, reads)
        return self

    def _like(self, columns: Mapping[str, PyTree], time_major: bool | None = None) -> SampleBatch:
        return SampleBatch._make(columns, self._time_major if time_major is None else time_major, self._reads)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a SampleBatch is immutable; use batch.with_columns({name}=...) to get a changed one")

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleBatch._make, (trees.to_numpy(self._columns), self._time_major)

    def __copy__(self) -> SampleBatch:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    # ------------------------------------------------------------ mapping

    def __getitem__(self, name: str) -> PyTree:
        value = cols.read(self._columns, name)
        if self._reads is not None:
            self._reads.add(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns or (isinstance(name, str) and cols.derivable(self._columns, name))

    def get(self, name: str, default: Any = None) -> Any:
        """The column `name`, or `default` if there is none."""
        present = name in self  # asked first: building the error's suggestions costs 0.1 ms
        return self[name] if present else default

    def __repr__(self) -> str:
        return summary.text(self._columns, self._time_major)

    def _repr_html_(self) -> str:
        return summary.html(self._columns, self._time_major)

    # ------------------------------------------------------------ size

    @property
    def time_major(self) -> bool:
        """True if row columns are `[T, B, ...]`, False if they are `[N, ...]`."""
        return self._time_major

    @property
    def T(self) -> int:
        """Steps of a time-major batch."""
        return self._rectangle("T")[0]

    @property
    def B(self) -> int:
        """Columns (environments, agent slots or sequences) of a time-major batch."""
        return self._rectangle("B")[1]

    @property
    def shape(self) -> tuple[int, ...]:
        """`(T, B)` if time-major, else `(N,)`: the leading axes of every row column."""
        return cols.leading_shape(self._columns, self._time_major)

    @property
    def num_rows(self) -> int:
        """Number of row slots, masked ones included."""
        return int(np.prod(self.shape))

    @property
    def count(self) -> int:
        """Number of valid rows, a host int (*host* where there is a mask; JaxrlError if that is traced)."""
        count = self._count
        if count is None:
            mask = self._columns.get(cols.MASK)
            if cols.is_tracer(mask):
                raise JaxrlError(
                    "SampleBatch.count is a host number, and the mask is traced here (inside jit, grad, vmap or scan); "
                    "use batch.valid().sum() there"
                )
            count = self.num_rows if mask is None else int(np.asarray(mask).sum())
            _set(self, "_count", count)
        return count

    @property
    def size_bytes(self) -> int:
        """Bytes of all stored arrays."""
        return trees.size_bytes(self._columns)

    def _rectangle(self, what: str) -> tuple[int, ...]:
        if not self._time_major:
            raise AttributeError(f"a flat SampleBatch has no {what}; use num_rows, or keep the time-major batch")
        return self.shape

    def valid(self) -> Any:
        """The bool mask of valid rows, `[T, B]` or `[N]`; all True if the batch has none."""
        mask = self._columns.get(cols.MASK)
        return cols.backend(*self._columns.values()).ones(self.shape, bool) if mask is None else mask

    # ------------------------------------------------------------ reductions

    def sum(self, x: Any) -> Any:
        """Sum of `x [T, B, ...]` (or `[N, ...]`) over valid rows and trailing axes: a float32 scalar."""
        return cols.masked_sum(x, self._columns.get(cols.MASK), self.shape)[0]

    def mean(self, x: Any) -> Any:
        """Mean of `x [T, B, ...]` (or `[N, ...]`) over valid rows and trailing axes: a float32 scalar, 0 without rows.

        Masked entries may be anything in the forward pass, NaN too; in the backward pass they must be finite.
        """
        total, size = cols.masked_sum(x, self._columns.get(cols.MASK), self.shape)
        return total / cols.backend(total).maximum(size, 1).astype(np.float32)

    # ------------------------------------------------------------ columns

    def with_columns(self, columns: Mapping[str, PyTree] | None = None, /, **more: PyTree) -> SampleBatch:
        """A batch with the given columns added or replaced; they must have this batch's leading shape."""
        new = {**(columns or {}), **more}
        merged = {**self._columns, **new}
        checked = new if cols.STRUCTURAL.isdisjoint(new) else {**new, **_with_structure(merged)}
        cols.validate(checked, self._time_major, self.shape)
        return self._like(merged)

    def replace(self, columns: Mapping[str, PyTree] | None = None, /, **more: PyTree) -> SampleBatch:
        """`with_columns` for columns that exist already; KeyError for others."""
        new = {**(columns or {}), **more}
        for name in new:
            if name not in self:
                raise cols.unknown_column(name, self._columns)
        return self.with_columns(new)

    def select(self, names: Iterable[str]) -> SampleBatch:
        """The columns `names`, and the mask if there is one; derived ones become stored ones."""
        picked = {name: cols.read(self._columns, name) for name in ([names] if isinstance(names, str) else names)}
        if cols.MASK in self._columns:
            picked[cols.MASK] = self._columns[cols.MASK]
        return self._like(picked)

    def drop(self, names: Iterable[str]) -> SampleBatch:
        """All columns but `names`; without `obs` go `last_obs` and `final_obs` too."""
        dropped = {names} if isinstance(names, str) else set(names)
        for name in dropped:
            if name not in self._columns:
                raise cols.unknown_column(name, self._columns)
        if "obs" in dropped or cols.LAST_OBS in dropped:
            dropped |= {cols.LAST_OBS, cols.FINAL_OBS, cols.FINAL_INDEX}
        return self._like({name: column for name, column in self._columns.items() if name not in dropped})

    def columns(self, names: Iterable[str]) -> list[PyTree]:
        """The columns `names`, in that order."""
        return [self[name] for name in names]

    def scan_columns(self) -> dict[str, PyTree]:
        """The row columns `[T, B, ...]` as a dict: what `jax.lax.scan` may run over (structural columns have no T)."""
        self._rectangle("T")
        return dict(cols.row_items(self._columns))

    def recording(self, reads: set[str]) -> SampleBatch:
        """A view that adds the name of every column read by `[]` to `reads`, as do the batches made from it."""
        return SampleBatch._make(self._columns, self._time_major, reads)

    def to_numpy(self) -> SampleBatch:
        """The same batch with NumPy arrays (*host*); waits for and copies what is on a device."""
        return self._like(trees.to_numpy(self._columns))

    # ------------------------------------------------------------ layout

    def flatten(self, columns: Iterable[str] | None = None) -> SampleBatch:
        """A flat batch `[T * B, ...]`, row `t * B + b`; `self` if flat already.

        Args:
            columns: names to keep (the mask is always kept); `new_obs` and `dones` are derived where named. None keeps
                all row columns. Structural columns are left out.
        """
        if columns is not None:
            return self.select(columns).flatten()
        return self._like(layout.flat_rows(self._columns), time_major=False) if self._time_major else self

    def slice(self, start: int, stop: int, state_in: PyTree | None = None) -> SampleBatch:
        """Rows `start:stop` along T (time-major) or N (flat), with `new_obs` of each row as it was.

        Args:
            start, stop: Python ints, `0 <= start < stop`; a `stop` past the end is the end.
            state_in: model state before row `start`, `[B, ...]`; needed if the batch has `state_in` and `start > 0`.
        """
        size = self.shape[0]
        stop = min(stop, size)
        if not 0 <= start < stop:
            raise ValueError(f"slice({start}, {stop}) of {size} rows is empty; expected 0 <= start < stop")
        if not self._time_major:
            return self._like(layout.slice_rows(self._columns, start, stop))
        if start == 0 and stop == size and state_in is None:
            return self
        return self._like(layout.slice_time(self._columns, start, stop, state_in))

    def timeslices(self, k: int, states: PyTree | None = None) -> list[SampleBatch]:
        """Consecutive slices of `k` steps (time-major) or rows (flat), the last maybe shorter.

        Args:
            k: steps per slice.
            states: model state before each row, `[T, B, ...]`; needed if the batch has `state_in`.
        """
        _check_positive("timeslices", k)
        return [
            self.slice(i, i + k, None if states is None else jax.tree.map(lambda x, row=i: x[row], states))
            for i in range(0, self.shape[0], k)
        ]

    def cut(self, length: int, states: PyTree | None = None) -> SampleBatch:
        """Cuts `[T, B]` into sequences `[length, ceil(T / length) * B]`, the tail padded with masked rows.

        Sequence `c` of column `b` becomes column `c * B + b`, and keeps the true `new_obs` of each of its rows.

        Args:
            length: steps per sequence (`max_seq_len`).
            states: model state before each row, `[T, B, ...]`; the states at the cuts become `state_in`.
        """
        _check_positive("cut", length)
        self._rectangle("T")
        return self._like(layout.cut_sequences(self._columns, length, states))

    def pad_to(self, size: int) -> SampleBatch:
        """Pads T (time-major) or N (flat) to `size` with masked rows of zeros; `self` if it has that size."""
        extra = size - self.shape[0]
        if extra < 0:
            raise ValueError(
                f"pad_to({size}): the batch has {self.shape[0]} rows on that axis already; slice it instead"
            )
        return self._like(layout.pad_rows(self._columns, extra, self._time_major)) if extra else self

    @staticmethod
    def concat(batches: Iterable[SampleBatch], length: int | None = None) -> SampleBatch:
        """Joins batches along B (time-major) or N (flat); one batch comes back unchanged.

        Batches of different T are padded with masked rows to `length` if that is enough, else to the next power of two,
        so that few shapes are compiled. A mask is added where one is needed.

        Args:
            batches: batches of one layout with the same columns (only the mask may be missing in some).
            length: T to pad to, usually the fragment length.

        Raises:
            ValueError: no batches, layouts that differ, or columns that differ, by name.
        """
        batches = list(batches)
        if not batches:
            raise ValueError("concat: no batches to join; give at least one")
        first = batches[0]
        if any(batch._time_major != first._time_major for batch in batches):
            raise ValueError("concat: some batches are time-major and some flat; flatten() the time-major ones first")
        if len(batches) == 1:
            return first.pad_to(length) if first._time_major and length is not None and length > first.T else first
        return first._like(layout.concat_columns([batch._columns for batch in batches], first._time_major, length))

    def take(self, index: Any, valid: Any | None = None) -> SampleBatch:
        """Rows (flat) or columns of the rectangle (time-major) by number, jit-friendly.

        Args:
            index: int `[S]`. A time-major column with final observations may be taken validly once only.
            valid: bool `[S]`; entries where it is False are masked (padding of a short minibatch).
        """
        taken = layout.take_columns if self._time_major else layout.take_rows
        return self._like(taken(self._columns, index, valid))

    def shuffle(self, key: Any) -> SampleBatch:
        """Permutes rows (flat) or columns of the rectangle (time-major) by a PRNG key."""
        return self.take(self._permutation(key))

    def _permutation(self, key: Any) -> Any:
        order = jax.random.permutation(key, self.shape[-1])
        if cols.is_tracer(order) or cols.backend(*self._columns.values()) is jnp:
            return order
        return np.asarray(order)

    def minibatches(self, size: int, key: Any | None = None) -> Iterator[SampleBatch]:
        """Yields batches of `size` rows (flat) or columns (time-major), shuffled if `key` is given (*host*).

        If `size` does not divide the batch, the last one repeats a row as masked padding, and all have a mask: one
        shape, one compilation.
        """
        _check_positive("minibatches", size)
        total = self.shape[-1]
        order = np.arange(total) if key is None else np.asarray(self._permutation(key))
        for index, valid in layout.minibatch_indices(order, size):
            yield self.take(index, valid)

    def split_by_episode(self) -> list[SampleBatch]:
        """One batch of valid rows per episode (*host*): `[T_i, 1]` per (column, `eps_id`), or flat rows per `eps_id`.

        `new_obs` stays right. `state_in` is that of the column for its first episode, and zeros for later ones, where
        the model resets. A flat batch is split by `eps_id` and `agent_index`, in order of first appearance.
        """
        cols.read(self._columns, "eps_id")
        pieces = layout.split_episodes(trees.to_numpy(self._columns), self._time_major)
        return [self._like(piece) for piece in pieces]

    def rows(self) -> Iterator[dict[str, PyTree]]:
        """Yields each valid row as a dict of its row columns, in order of t, then b (*host*)."""
        return layout.iterate_rows(trees.to_numpy(self.flatten()._columns))


def _fill(batch: SampleBatch, columns: dict[str, PyTree], time_major: bool, reads: set[str] | None) -> None:
    _set(batch, "_columns", columns)
    _set(batch, "_time_major", time_major)
    _set(batch, "_count", None)
    _set(batch, "_reads", reads)


def _with_structure(columns: Mapping[str, PyTree]) -> dict[str, PyTree]:
    return {name: column for name, column in columns.items() if name in cols.STRUCTURAL or name == "obs"}


def _check_positive(where: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{where}: expected at least 1, got {value}")


def _flatten_with_keys(batch: SampleBatch) -> tuple[list[tuple[Any, PyTree]], tuple[tuple[str, ...], bool]]:
    columns = batch._columns
    return [(jax.tree_util.DictKey(name), column) for name, column in columns.items()], (
        tuple(columns),
        batch._time_major,
    )


def _flatten(batch: SampleBatch) -> tuple[tuple[PyTree, ...], tuple[tuple[str, ...], bool]]:
    return tuple(batch._columns.values()), (tuple(batch._columns), batch._time_major)


def _unflatten(aux: tuple[tuple[str, ...], bool], children: Iterable[PyTree]) -> SampleBatch:
    # No validation: JAX unflattens with tracers, None, ShapeDtypeStructs and plain objects.
    batch = object.__new__(SampleBatch)
    _fill(batch, dict(zip(aux[0], children, strict=True)), aux[1], None)
    return batch


jax.tree_util.register_pytree_with_keys(SampleBatch, _flatten_with_keys, _unflatten, _flatten)

trees.register_codec(
    SampleBatch,
    to_tree=lambda batch: {"columns": dict(batch._columns), "time_major": batch._time_major},
    from_tree=lambda tree: SampleBatch(tree["columns"], time_major=tree["time_major"]),
)
