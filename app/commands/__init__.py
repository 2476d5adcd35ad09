"""The commands of `python -m app`, a module each; `run` returns the exit code."""
