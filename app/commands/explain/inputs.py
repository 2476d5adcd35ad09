"""The inputs of `explain`: its arguments, or the lines of standard input."""

from collections.abc import Iterator
from typing import BinaryIO

# The longest body that is served has 2 MB, and a shell's escapes may make it longer.
INPUT_MAX_BYTES = 8 * 1024 * 1024
TOO_LONG = "longer than 8 MB"


def lines_of(stream: BinaryIO) -> Iterator[str | None]:
    """Yield the lines that are not blank; None in the place of one that is too long.

    A line of a curl command that ends with a backslash goes on in the next one.
    """
    command = ""
    while line := stream.readline(INPUT_MAX_BYTES):
        if not line.endswith(b"\n") and len(line) == INPUT_MAX_BYTES:
            _skip_line(stream)
            command = ""
            yield None
            continue
        text = command + line.decode("utf-8", "surrogateescape").rstrip("\r\n")
        if _goes_on(text):
            command = text + "\n"
            continue
        command = ""
        if text.strip():
            yield text
    if command.strip():
        yield command


def _goes_on(text: str) -> bool:
    is_command = text.lstrip().removeprefix("$ ").startswith("curl")
    return is_command and text.endswith("\\") and len(text) < INPUT_MAX_BYTES


def _skip_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(INPUT_MAX_BYTES)) and not rest.endswith(b"\n"):
        pass
