"""The output of `check`: a line for each finding, and one exit code."""


class Report:
    """Prints findings, and keeps the worst exit code."""

    exit_code = 0

    def ok(self, subject: str, text: str) -> None:
        """Report a passed check."""
        print(f"ok       {subject}: {text}", flush=True)

    def warn(self, subject: str, text: str) -> None:
        """Report a risk with which the gateway works."""
        print(f"warning  {subject}: {text}", flush=True)

    def fail(self, subject: str, text: str, exit_code: int = 1) -> None:
        """Report a failed check."""
        print(f"FAILED   {subject}: {text}", flush=True)
        self.exit_code = max(self.exit_code, exit_code)
