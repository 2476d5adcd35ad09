"""What `check` says: a line for each thing, and an exit code for all of them."""


class Report:
    """Prints a line for each thing, and keeps the worst exit code."""

    exit_code = 0

    def ok(self, subject: str, text: str) -> None:
        """Say that a thing is well."""
        print(f"ok       {subject}: {text}", flush=True)

    def warn(self, subject: str, text: str) -> None:
        """Say what an operator should know; the gateway works all the same."""
        print(f"warning  {subject}: {text}", flush=True)

    def fail(self, subject: str, text: str, exit_code: int = 1) -> None:
        """Say that a thing is not well."""
        print(f"FAILED   {subject}: {text}", flush=True)
        self.exit_code = max(self.exit_code, exit_code)
