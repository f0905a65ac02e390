"""The algebra of loss terms: a term is a loss function with named coeffs, and a weighted sum of terms is a term."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxrl.types import Array, LearnOutput, LossContext, LossError, LossFn, Params

TOTAL_LOSS = "total_loss"


def _never(config: Any) -> bool:
    del config
    return False


def _always(config: Any) -> bool:
    del config
    return True


@dataclasses.dataclass(frozen=True, eq=False)
class Term:
    """A loss function with named default coeffs; made by `term`, `weighted_sum` and the factories of `jaxrl.losses`.

    Attributes:
        fn: `(params, batch, ctx) -> scalar or (scalar, LearnOutput)`.
        coeffs: default of each number that `fn` reads from `ctx.coeffs`. A policy copies these into its train state,
            where training, schedules and Tune change them without a recompile.
        name: what messages call it.
        sequences: `(config) -> bool`, whether `fn` looks along time (`ctx.next_values`, recursions over axis 0) under
            these options of the policy. Then every batch that it gets is time-major `[T, B]`, and minibatches are made
            of whole columns, for feed-forward policies too; else it may get rows in any order.
    """

    fn: LossFn
    coeffs: Mapping[str, float]
    name: str
    sequences: Callable[[Any], bool] = _never

    def __repr__(self) -> str:
        """Shows the name and the coeffs, as one would write the call."""
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.coeffs.items())})"

    def __call__(self, params: Params, batch: Any, ctx: LossContext) -> Any:
        """Returns the loss, a scalar or `(scalar, LearnOutput)`."""
        return self.fn(params, batch, ctx)


def term(fn: LossFn, /, **coeffs: float) -> Term:
    """Gives a loss function named coeffs, which makes it a term.

    Args:
        fn: `(params, batch, ctx) -> scalar or (scalar, LearnOutput(metrics, rows))`. It reads its numbers with
            `coeff(ctx, name)` (or `ctx.coeffs[name]`), where they are traced. In a `weighted_sum` its value becomes a
            metric named after it, unless its own metrics have that name.
        **coeffs: default of each number.

    Returns:
        The term.

    Example:
        ```python
        def l2(max_norm=10.0):
            def loss_fn(params, batch, ctx):
                return jnp.minimum(optax.tree.norm(params), losses.coeff(ctx, "max_norm"))
            return losses.term(loss_fn, max_norm=max_norm)

        loss_fn = losses.weighted_sum(surrogate=(1.0, losses.clipped_surrogate()), l2=(1e-4, l2()))
        ```
    """
    looks_along_time = fn.sequences if isinstance(fn, Term) else _never
    return Term(fn, {**coeffs_of(fn), **coeffs}, getattr(fn, "__name__", type(fn).__name__), looks_along_time)


def sequence_term(fn: LossFn, /, **coeffs: float) -> Term:
    """As `term`, for a loss function that looks along time: it gets whole columns of time-major batches `[T, B]`.

    Args:
        fn, **coeffs: as of `term`.

    Returns:
        The term, whose `sequences` is always true.

    Example:
        ```python
        def one_step(params, batch, ctx):
            target = batch["rewards"] + 0.99 * ~batch["terminateds"] * ctx.next_values(params, batch)
            return batch.mean(jnp.square(ctx.forward(params, batch).value - target))

        loss_fn = losses.sequence_term(one_step)
        ```
    """
    return dataclasses.replace(term(fn, **coeffs), sequences=_always)


def coeffs_of(loss_fn: Any) -> dict[str, float]:
    """Default coeffs of a loss function: those of a term, none for a plain function."""
    return dict(loss_fn.coeffs) if isinstance(loss_fn, Term) else {}


def needs_sequences(loss_fn: Any, config: Any) -> bool:
    """Whether a loss function needs time-major batches in whole columns under these options; see `Term.sequences`."""
    return isinstance(loss_fn, Term) and loss_fn.sequences(config)


def coeff(ctx: LossContext, name: str) -> Array:
    """Reads a number from `ctx.coeffs`.

    Args:
        ctx: the loss context.
        name: name of the coeff.

    Returns:
        Its current value, a traced scalar.

    Raises:
        LossError: if there is none of that name.
    """
    try:
        return ctx.coeffs[name]
    except KeyError:
        raise LossError(
            f"ctx.coeffs has no {name!r}; it has {sorted(ctx.coeffs)}. "
            f"Give it a default with losses.term(fn, {name}=...), or name it in the policy's coeffs"
        ) from None


def split_output(output: Any, where: str) -> tuple[Array, LearnOutput]:
    """Takes apart what a loss function returned.

    Args:
        output: a scalar or `(scalar, LearnOutput)`.
        where: the loss function, for the message.

    Returns:
        The scalar and its LearnOutput, an empty one if there was none.

    Raises:
        LossError: if it is neither.
    """
    value, extra = output if isinstance(output, tuple) and len(output) == 2 else (output, LearnOutput())
    if not isinstance(extra, LearnOutput):
        raise LossError(f"{where}: expected a scalar or (scalar, LearnOutput), got (..., {type(extra).__name__})")
    try:
        value = jnp.asarray(value)
    except TypeError:
        raise LossError(f"{where}: expected a scalar or (scalar, LearnOutput), got {type(value).__name__}") from None
    if value.shape != ():
        raise LossError(f"{where}: expected a scalar, got shape {value.shape}; reduce rows with batch.mean(...)")
    return value, extra


def weighted_sum(**terms: tuple[float, LossFn]) -> Term:
    """Adds up loss terms.

    Each weight is the coeff `{name}_coeff`, so that it can change while training, like the terms' own coeffs. Metrics
    are each term's (unweighted) value by its name, the terms' own metrics, which take precedence over that, and
    `total_loss`. Rows of the terms are merged.

    Args:
        **terms: `name=(weight, loss_fn)`; a weight may be 0, a term may be any loss function, another weighted sum too.

    Returns:
        The sum as a term, whose coeffs are the weights and the terms' coeffs.

    Raises:
        LossError: if two coeffs have one name or an entry is no `(weight, loss_fn)`; when called, if two metrics or
            rows have one name, a term's value is no scalar, or `ctx.coeffs` lacks a coeff.

    Example:
        ```python
        loss_fn = weighted_sum(
            surrogate=(1.0, clipped_surrogate(clip_param=0.2)),
            vf_loss=(0.5, value_error()),
            entropy=(0.01, entropy_bonus()),
        )
        loss_fn.coeffs  # {"surrogate_coeff": 1.0, "clip_param": 0.2, "vf_loss_coeff": 0.5, "entropy_coeff": 0.01}
        ```
    """
    if not terms:
        raise LossError("weighted_sum: expected at least one name=(weight, loss_fn)")
    coeffs = _union_of_coeffs(terms)

    def loss_fn(params: Params, batch: Any, ctx: LossContext) -> tuple[Array, LearnOutput]:
        total: Any = 0.0
        metrics, rows = _Named("metric"), _Named("row")
        for name, (_, fn) in terms.items():
            value, extra = split_output(fn(params, batch, ctx), f"weighted_sum: term {name!r}")
            total = total + coeff(ctx, f"{name}_coeff") * value
            # An inner sum's total is its value, which is the metric `name` here.
            own = {key: metric for key, metric in extra.metrics.items() if key != TOTAL_LOSS}
            metrics.add(f"term {name!r}", {name: value, **own})
            rows.add(f"term {name!r}", extra.rows)
        return total, LearnOutput({**metrics.values, TOTAL_LOSS: total}, rows.values)

    def sequences(config: Any) -> bool:
        return any(needs_sequences(fn, config) for _, fn in terms.values())

    return Term(loss_fn, coeffs, "weighted_sum", sequences)


def choose(option: str, terms: Mapping[Any, LossFn]) -> Term:
    """One of several terms, by a static option of the policy's config.

    Args:
        option: name of the option.
        terms: the term for each of its values. Coeffs of one name in several of them must have one default.

    Returns:
        A term with the coeffs of all of them, of which those of the chosen one are read.

    Raises:
        LossError: two defaults of one coeff; when called, if the option has a value without a term.

    Example:
        ```python
        vf_loss = choose("vtrace", {True: vtrace_value_error(), False: value_error()})
        ```
    """
    coeffs: dict[str, float] = {}
    for value, fn in terms.items():
        for name, default in coeffs_of(fn).items():
            if coeffs.setdefault(name, default) != default:
                raise LossError(
                    f"choose({option!r}): coeff {name!r} has two defaults, {coeffs[name]} and, for {value!r}, "
                    f"{default}; give both terms the same."
                )

    def chosen(config: Any) -> LossFn:
        value = getattr(config, option)
        if value not in terms:
            raise LossError(f"choose({option!r}): no term for {value!r}; there are {list(terms)}")
        return terms[value]

    def loss_fn(params: Params, batch: Any, ctx: LossContext) -> Any:
        return chosen(ctx.config)(params, batch, ctx)

    return Term(loss_fn, coeffs, f"choose_{option}", lambda config: needs_sequences(chosen(config), config))


def _union_of_coeffs(terms: Mapping[str, Any]) -> dict[str, float]:
    union = _Named("coeff")
    for name, entry in terms.items():
        if not (isinstance(entry, tuple) and len(entry) == 2 and callable(entry[1])):
            raise LossError(f"weighted_sum: {name}: expected (weight, loss_fn), got {entry!r}")
        if not isinstance(entry[0], numbers.Real):
            raise LossError(f"weighted_sum: {name}: expected a number as weight, got {entry[0]!r}")
        if name == TOTAL_LOSS:
            raise LossError(f"weighted_sum: the name {TOTAL_LOSS!r} is taken by the sum itself; rename the term")
        union.add(f"the weight of {name!r}", {f"{name}_coeff": entry[0]})
        union.add(f"term {name!r}", coeffs_of(entry[1]))
    return union.values


class _Named:
    """Values by name that remembers where each came from, to name both in a clash."""

    def __init__(self, kind: str):
        self.kind, self.values, self._origin = kind, {}, {}

    def add(self, origin: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if key in self.values:
                raise LossError(
                    f"weighted_sum: the {self.kind} {key!r} comes from {self._origin[key]} and from {origin}; "
                    "rename one of them"
                )
            self.values[key], self._origin[key] = value, origin
