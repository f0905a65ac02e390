"""The command line: `jaxrl train`, `rollout`, `plot`, `list` and `config`.

Modules here that `main` imports load nothing but typer, so that `--help` answers at once; the rest is imported by the
commands as they run.
"""
