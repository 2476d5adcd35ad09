"""All tests, in two runs side by side: those of the bench and its load, and all others.

Both spend most of their time waiting. Arguments of the command line go to both runs.
"""

import subprocess
import sys
import tempfile

# Each of these starts servers of its own, and keeps them busy.
OF_THE_BENCH = [
    f"tests/{name}.py"
    for name in (
        "services/test_bench", "services/test_capacity", "services/test_curves",
        "adversity/test_faults", "adversity/test_neighbours", "adversity/test_overload",
        "adversity/test_rolling", "papers/test_monitoring",
    )
]  # fmt: skip


def main(options: list[str]) -> int:
    """Run both, show the one as it goes and the other when it has ended; returns 0 if both pass."""
    pytest = [sys.executable, "-m", "pytest", *options]
    others = [f"--ignore={path}" for path in OF_THE_BENCH]
    with tempfile.TemporaryFile() as said:
        beside = subprocess.Popen([*pytest, *OF_THE_BENCH], stdout=said, stderr=said)
        try:
            exit_code = subprocess.call([*pytest, *others])
            sys.stdout.write("\nThe tests of the bench, beside these:\n")
            sys.stdout.flush()
            exit_code = beside.wait() or exit_code
        except KeyboardInterrupt:
            exit_code = 130  # the other run has the signal too
            beside.wait()
        said.seek(0)
        sys.stdout.write(said.read().decode(errors="replace"))
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
