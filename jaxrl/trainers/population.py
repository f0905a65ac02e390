"""fit(seeds=..., coeffs=...): a population trains as one compiled program; its results, and its best member."""

from __future__ import annotations

import dataclasses
import html
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxrl.execution.compiled_rounds import adopt_world
from jaxrl.execution.device_memory import check_memory
from jaxrl.execution.population import Population
from jaxrl.rollout.compiled_workers import EpisodeReturns
from jaxrl.trainers.display import Display, waiting
from jaxrl.trainers.evolution import PopulationBasedTraining
from jaxrl.trainers.history import History, image_tag, value_at
from jaxrl.trainers.stopping import check_keys, criterion_met, env_label, iterations
from jaxrl.types import ConfigError, NonFiniteError

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

# Curves of more settings than this would hide one another: the best are drawn.
_MAX_CURVES = 8


class Member(NamedTuple):
    """One run of a population.

    Attributes:
        seed: its seed.
        coeffs: the coeffs that it began with, of those that members differ in; evolution changes them (`cur_lr` in
            its results).
        history: its results, one for each iteration; `timesteps_total` counts its own env steps.
    """

    seed: int
    coeffs: Mapping[str, float]
    history: History

    @property
    def reward(self) -> float:
        """Its last mean episode reward; NaN before an episode has ended."""
        return value_at(self.history[-1], "episode_reward_mean") if self.history else math.nan


class PopulationHistory:
    """What `fit(seeds=..., coeffs=...)` returns: every member's results, a table, curves with bands.

    Args:
        name: of the run.
        members: see `Member`.

    Attributes:
        members: in the order of seeds within settings.
        note: how it ended.
        programs: what compiling cost, and the memory in use, by program.
        results: the population's results, one for each iteration: statistics over members, `timesteps_total` of all
            of them together, `member_rewards`, and `parents` where the iteration began with a new generation.
        checkpoint: the best member's, once it is saved.

    Example:
        >>> population = trainer.fit(20, seeds=8, coeffs={"lr": [1e-3, 3e-4]})   # doctest: +SKIP
        >>> population.plot(), population.best.coeffs, population.checkpoint     # doctest: +SKIP
    """

    def __init__(self, name: str, members: Sequence[Member]):
        self.name, self.members, self.note = name, list(members), ""
        self.programs: dict[str, Any] = {}
        self.results = History(name=name)
        self.checkpoint: str | None = None

    @property
    def best(self) -> Member:
        """The member with the highest last mean episode reward."""
        return self.members[self.best_index]

    @property
    def best_index(self) -> int:
        """The number of the best member."""
        rewards = [member.reward for member in self.members]
        return int(np.nanargmax(rewards)) if not all(map(math.isnan, rewards)) else 0

    def settings(self) -> dict[str, list[Member]]:
        """The members by what they were set to, each with all of its seeds."""
        groups: dict[str, list[Member]] = {}
        for member in self.members:
            groups.setdefault(_label(member.coeffs), []).append(member)
        return groups

    def plot(self, key: str = "episode_reward_mean", x: str = "timesteps_total", smooth: int = 1) -> Figure:
        """Draws the mean and range over seeds of each setting; of more than eight, those that ended best."""
        from jaxrl.trainers.curves import draw, new_figure

        groups = sorted(self.settings().items(), key=lambda item: -_mean(item[1]))[:_MAX_CURVES]
        joined = {
            label: members[0].history.join(*(m.history for m in members[1:]), name=label) for label, members in groups
        }
        figure, axes = new_figure()
        draw(axes, joined, key=key, x=x, smooth=smooth)
        return figure

    def rows(self) -> list[dict[str, Any]]:
        """One row a setting, the best first: its coeffs, seeds, and the last mean rewards over them."""
        rows = []
        for members in self.settings().values():
            rewards = np.array([member.reward for member in members])
            finite = rewards[np.isfinite(rewards)]
            stats = (
                {"mean": finite.mean(), "std": finite.std(), "min": finite.min(), "max": finite.max()}
                if len(finite)
                else dict.fromkeys(("mean", "std", "min", "max"), math.nan)
            )
            rows.append({**members[0].coeffs, "seeds": len(members), **{k: float(v) for k, v in stats.items()}})
        return sorted(rows, key=lambda row: -row["mean"] if math.isfinite(row["mean"]) else math.inf)

    def to_pandas(self) -> DataFrame:
        """A DataFrame of every member's results: its number, seed and coeffs, and the numbers of each iteration.

        Raises:
            JaxrlError: pandas is not installed.
        """
        return History(
            {"member": i, "seed": member.seed, **member.coeffs, **result}
            for i, member in enumerate(self.members)
            for result in member.history
        ).to_pandas()

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Member:
        return self.members[index]

    def __repr__(self) -> str:
        rows = self.rows()
        lines = [f"Population of {self.name}: {len(self)} members, {len(self.results)} iterations"]
        if rows and self.results:
            names = list(rows[0])
            cells = [names, *([_number(row[name]) for name in names] for row in rows[:20])]
            widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
            lines += [
                "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells
            ]
        if len(rows) > 20:
            lines.append(f"  ... and {len(rows) - 20} settings more")
        lines += [f"  {self.note}"] if self.note else []
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        image = ""
        if any(math.isfinite(member.reward) for member in self.members):
            image = image_tag(self.plot(), "learning curves")
        rows = self.rows()[:20]
        head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
        body = "".join("<tr>" + "".join(f"<td>{_number(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
        title = html.escape(f"{self.name}: {len(self)} members")
        note = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return (
            f"<div><b>{title}</b><br>{image}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"{note}</div>"
        )


def fit_population(
    trainer: Any,
    count: int,
    *,
    seeds: int | Sequence[int] = 1,
    coeffs: Mapping[str, Sequence[float]] | None = None,
    evolve: PopulationBasedTraining | None = None,
    stop: Mapping[str, float],
    display: Display,
    interrupted: Callable[[], int | None],
) -> PopulationHistory:
    """See `fit`; a fresh trainer's plan for many members at once. Afterwards the trainer is the best member.

    Args:
        trainer: a fresh Trainer with a compiled plan.
        count: iterations, at most.
        seeds: how many, from the trainer's on, or which.
        coeffs: values to try by coeff; every combination is tried with every seed.
        evolve: population-based training over the members; None: they stay apart.
        stop: ends once the mean over members is there, as of `fit`.
        display: shows the population's results.
        interrupted: asked after each iteration; not None: end.

    Raises:
        ConfigError: the plan is not compiled, the trainer has trained already, or arguments make no sense.
    """
    seeds, grid = _checked(trainer, seeds, coeffs)
    settings = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    members = [Member(seed, setting, History(name=_label(setting))) for setting in settings for seed in seeds]
    history = PopulationHistory(f"{trainer.name} on {env_label(trainer)}", members)
    columns = {name: [member.coeffs[name] for member in members] for name in grid}
    population = Population(trainer.compiled, [member.seed for member in members], columns)
    record = _Record(trainer, population, history)
    if evolve is not None:
        evolve = dataclasses.replace(evolve)  # its draws begin anew with every fit
    steps = population.engine.rounds * population.engine.steps_per_round
    display.note(
        f"A population of {len(members)} members, {count} iterations of {steps:,} env steps each: "
        f"{len(members) * count * steps:,} env steps in all. Its program is compiled first."
    )
    try:
        for iteration in range(1, count + 1):
            due = evolve is not None and iteration > 1 and (iteration - 1) % evolve.interval == 0
            parents = record.evolve(evolve) if evolve is not None and due else None
            with waiting(display, iteration):
                result = record.iteration(iteration, parents)
            if iteration == 1:
                check_keys(stop, result)
                _tell_time(display, result, population, count - 1)
            display.update(history.results)
            met = criterion_met(stop, result)
            if met is not None:
                history.note = f"Stopped: {met} is {value_at(result, met):g}, at least {stop[met]:g}."
                break
            if interrupted() is not None:
                history.note = f"Interrupted after {iterations(iteration)}."
                break
    except KeyboardInterrupt:
        history.note = f"Interrupted within an iteration, after {iterations(len(history.results))} in full."
    finally:
        display.close(history.results)
    if not history.results or not population.is_whole:
        history.note += " No member could be saved."
        display.note(history.note)
        return history
    record.keep_best()
    best = history.best
    now = {
        name: value_at(best.history[-1], f"cur_{name}") for name in {**best.coeffs, **(evolve.bounds if evolve else {})}
    }
    told = _label(now)
    history.note = (
        f"{history.note} Best: member {history.best_index} (seed {best.seed}{', ' * bool(told)}{told}), ".lstrip()
    )
    history.note += f"saved as {history.checkpoint}."
    display.note(history.note)
    return history


def _tell_time(display: Display, result: Mapping[str, Any], population: Population, left: int) -> None:
    """After the first iteration: what the others will take."""
    seconds = result["timesteps_total"] / result["env_steps_per_s"]
    compiling = sum(cost.compile_s for cost in population.costs.values())
    each = max(0.0, seconds - compiling)
    display.note(
        f"The first iteration took {seconds:,.0f} s, {compiling:,.0f} s of it compiling; the other {left} about "
        f"{each * left:,.0f} s."
    )


def _checked(trainer: Any, seeds: Any, coeffs: Any) -> tuple[list[int], dict[str, list[float]]]:
    if trainer.compiled is None:
        raise ConfigError(
            f"fit(seeds=...): a population is one compiled program, and env {trainer.options.env!r} is run by workers; "
            "give a JAX-native environment and engine='compiled', or train the seeds one by one."
        )
    if trainer.options.keep_best is not None:
        raise ConfigError("keep_best: a population keeps its best member by itself; leave it out.")
    if trainer.iteration:
        raise ConfigError(
            "fit(seeds=...): this trainer has trained already, and a population begins anew; make another."
        )
    count = seeds if isinstance(seeds, int) else len(seeds)
    if isinstance(seeds, bool) or count < 1:
        raise ConfigError(f"fit: seeds should be a number of at least 1 or a list of seeds, got {seeds!r}.")
    count *= math.prod(len(values) for values in (coeffs or {}).values())
    # Before anything is made of them: a number may be a slip of the hand.
    check_memory(trainer.compiled.world_bytes * count, f"a population of {count} members")
    chosen = [trainer.options.seed + i for i in range(seeds)] if isinstance(seeds, int) else [int(s) for s in seeds]
    if not chosen or len(set(chosen)) < len(chosen):
        raise ConfigError(f"fit: expected seeds that differ, got {seeds!r}.")
    grid = {}
    for name, values in (coeffs or {}).items():
        if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not len(values):
            raise ConfigError(f"fit: coeffs[{name!r}] should be a list of numbers, got {values!r}.")
        grid[name] = [float(value) for value in values]
    return chosen, grid


class _Record:
    """Runs a population and writes down what becomes of its members."""

    def __init__(self, trainer: Any, population: Population, history: PopulationHistory):
        self.trainer, self.population, self.history = trainer, population, history
        self.width = population.engine.rollouts.width
        self.returns = EpisodeReturns(population.size * self.width)
        keep = trainer.options.metrics_smoothing_episodes
        self.recent: list[deque[tuple[int, float]]] = [deque(maxlen=keep) for _ in range(population.size)]
        self.began = time.perf_counter()

    def iteration(self, number: int, parents: list[int] | None = None) -> dict[str, Any]:
        population = self.population
        started = time.perf_counter()
        out, turns = population.run()
        rewards, ended = (
            np.moveaxis(np.asarray(x).reshape(population.size, -1, self.width), 0, 1).reshape(-1, self.returns.width)
            for x in out.played
        )
        seconds = time.perf_counter() - started
        episodes = self.returns.add(rewards, ended)
        for i, column in enumerate(episodes.column // self.width):
            self.recent[column].append((int(episodes.length[i]), float(episodes.reward[i])))
        learned = np.flatnonzero(turns.pulls)
        metrics = {name: np.asarray(values) for name, values in out.metrics.unpack().items()} if len(learned) else {}
        last = {name: values[:, learned[-1]] for name, values in metrics.items()}
        self._check(metrics, learned)
        last |= {f"cur_{name}": values for name, values in population.coeffs().items()}
        means, lengths = [], []
        for i, member in enumerate(self.history.members):
            played = np.array(self.recent[i]) if self.recent[i] else np.full((1, 2), math.nan)
            means.append(float(played[:, 1].mean()))
            lengths.append(float(played[:, 0].mean()))
            member.history.results.append(
                {
                    "training_iteration": number,
                    "timesteps_total": population.sampled,
                    "episode_reward_mean": means[-1],
                    "episode_reward_min": float(played[:, 1].min()),
                    "episode_reward_max": float(played[:, 1].max()),
                    "episode_len_mean": lengths[-1],
                    **{name: float(values[i]) for name, values in last.items()},
                }
            )
        finite, lengths = ([x for x in values if math.isfinite(x)] or [math.nan] for values in (means, lengths))
        result = {
            "training_iteration": number,
            "timesteps_total": population.sampled * population.size,
            "timesteps_per_member": population.sampled,
            "members": population.size,
            "episode_reward_mean": float(np.mean(finite)),
            "episode_reward_min": float(np.min(finite)),
            "episode_reward_max": float(np.max(finite)),
            "episode_len_mean": float(np.mean(lengths)),
            "env_steps_per_s": rewards.size / seconds,
            "time_total_s": time.perf_counter() - self.began,
            "engine": "compiled",
            "programs": {name: cost._asdict() for name, cost in population.costs.items()},
            "member_rewards": means,
        }
        if parents is not None:
            result["parents"] = parents
        self.history.programs = result["programs"]
        self.history.results.results.append(result)
        self.trainer.log_result(result)
        return result

    def _check(self, metrics: Mapping[str, np.ndarray], learned: np.ndarray) -> None:
        for name, values in metrics.items():
            bad = np.flatnonzero(~np.isfinite(values[:, learned]).all(axis=1))
            if len(bad):
                member = self.history.members[int(bad[0])]
                raise NonFiniteError(
                    f"member {bad[0]} (seed {member.seed}, {dict(member.coeffs)}): {name} is not finite, as of "
                    f"{len(bad)} of {len(values)} members. Leave such coeffs out, lower lr, or set grad_clip."
                )

    def evolve(self, evolve: PopulationBasedTraining) -> list[int]:
        """Exploits and explores; gives the member that each goes on from."""
        rewards = np.array([member.reward for member in self.history.members])
        parents, coeffs = evolve.next_generation(rewards, self.population.coeffs())
        self.population.evolve(parents.tolist(), coeffs)
        # Who takes over what another has learned takes over what it has shown, or the next generation ranks the past.
        self.recent = [self.recent[parent].copy() for parent in parents]
        return parents.tolist()

    def keep_best(self) -> None:
        """The trainer goes on as the best member, and saves it as an ordinary checkpoint."""
        population, trainer, best = self.population, self.trainer, self.history.best_index
        adopt_world(trainer.context, trainer.plan, population.engine, population.member(best), population.progress)
        returns = EpisodeReturns(self.width)
        columns = slice(best * self.width, (best + 1) * self.width)
        returns.reward, returns.length = self.returns.reward[columns], self.returns.length[columns]
        trainer.workers.set_returns(returns)
        progress = {**trainer.progress(), "iteration": len(self.history.results)}
        trainer.set_progress({**progress, "time_total": time.perf_counter() - self.began})
        self.history.checkpoint = None if trainer.results_dir is None else trainer.save()


def _label(coeffs: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={value:g}" for name, value in coeffs.items())


def _mean(members: Sequence[Member]) -> float:
    rewards = [member.reward for member in members if math.isfinite(member.reward)]
    return sum(rewards) / len(rewards) if rewards else -math.inf


def _number(value: Any) -> str:
    return f"{value:,.4g}" if isinstance(value, float) else str(value)
