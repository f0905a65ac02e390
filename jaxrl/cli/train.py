"""`jaxrl train`: runs experiments from flags or YAML files."""

from __future__ import annotations

import pathlib
from typing import Annotated, Any

import typer

from jaxrl.cli.options import Imports, TrustImports, Verbosity, import_modules, read_mapping
from jaxrl.cli.reporting import quieten, reported

Text = str | None


def train(
    run: Annotated[Text, typer.Option("--run", help="Algorithm, e.g. PPO (see jaxrl list).")] = None,
    env: Annotated[
        Text, typer.Option("--env", help="Environment: Gymnasium id, registered name, or pkg.mod:Env.")
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", help="Options as JSON or as key=value; may be repeated (see jaxrl config PPO)."),
    ] = None,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", help="One option, e.g. model.fcnet_hiddens=[64,64]; may be repeated.")
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="Ends the run, e.g. '{\"training_iteration\": 20}' or episode_reward_mean=450."),
    ] = None,
    checkpoint_freq: Annotated[
        int | None, typer.Option("--checkpoint-freq", help="Checkpoint every so many iterations.", min=0)
    ] = None,
    checkpoint_at_end: Annotated[
        bool | None,
        typer.Option(
            "--checkpoint-at-end/--no-checkpoint-at-end", help="Checkpoint after the last iteration. [default: yes]"
        ),
    ] = None,
    keep_checkpoints_num: Annotated[
        int | None, typer.Option("--keep-checkpoints-num", help="Keep the newest so many checkpoints.", min=1)
    ] = None,
    keep_best: Annotated[
        Text,
        typer.Option("--keep-best", help="Keep the best checkpoint by this number of results: episode_reward_mean."),
    ] = None,
    on_full_disk: Annotated[
        Text,
        typer.Option("--on-full-disk", help="end: an error, the last checkpoint stays; wait: until there is room."),
    ] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", help="Rollout workers on Ray actors; 0: in-process.", min=0)
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option("--num-samples", help="Runs of each configuration, through Ray Tune.", min=1)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Makes the run repeatable.")] = None,
    ray_address: Annotated[
        Text, typer.Option("--ray-address", help="Run on this Ray cluster, through Ray Tune.")
    ] = None,
    config_file: Annotated[
        pathlib.Path | None,
        typer.Option("-f", "--config-file", help="YAML: {name: {run, env, stop, config, ...}}; flags override it."),
    ] = None,
    restore: Annotated[
        pathlib.Path | None, typer.Option("--restore", help="Start a new run from this checkpoint.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the experiment's last interrupted run, in its directory.")
    ] = False,
    storage_path: Annotated[
        pathlib.Path | None, typer.Option("--storage-path", help="Where experiments go. [default: ~/ray_results]")
    ] = None,
    experiment_name: Annotated[
        str, typer.Option("--experiment-name", help="Directory of the run's results below the storage path.")
    ] = "default",
    max_failures: Annotated[
        int | None,
        typer.Option("--max-failures", help="Times that a failed run goes on from its last checkpoint.", min=0),
    ] = None,
    imports: Imports = None,
    trust_imports: TrustImports = False,
    verbosity: Verbosity = 0,
) -> None:
    """Train an algorithm on an environment.

    One run is driven in this process, and Ray starts only where --num-workers asks for it. Several samples, a
    grid_search or a cluster's address go through Ray Tune. Ctrl-C and SIGTERM leave a checkpoint (exit codes 130 and
    143); --resume goes on from it.
    """
    quieten(verbosity)
    with reported(verbosity):
        import_modules(imports or [])
        options = read_mapping(config or [], "--config")
        from jaxrl.config import deep_update

        options = deep_update(options, read_mapping(assignments or [], "--set"))
        given = {"num_workers": num_workers, "seed": seed, "on_full_disk": on_full_disk}
        options |= {key: value for key, value in given.items() if value is not None}
        flags: dict[str, Any] = {
            "run": run,
            "env": env,
            "stop": read_mapping(stop or [], "--stop") or None,
            "checkpoint_freq": checkpoint_freq,
            "checkpoint_at_end": checkpoint_at_end,
            "keep_checkpoints_num": keep_checkpoints_num,
            "keep_best": keep_best,
            "num_samples": num_samples,
            "max_failures": max_failures,
            "restore": None if restore is None else str(restore),
        }
        flags = {key: value for key, value in flags.items() if value is not None} | {"config": options}
        from jaxrl.cli import session

        code = session.run(
            flags,
            file=config_file,
            name=experiment_name,
            storage_path=storage_path,
            address=ray_address,
            resume=resume,
            trust_imports=trust_imports,
            verbosity=verbosity,
        )
    raise typer.Exit(code)
