"""The reader of the workspaces file: a program that a running gateway starts after a change.

Decoding 50,000 apps takes seconds, and holds the interpreter's lock: hence another process.
"""

import os
import signal
import sys
from pathlib import Path

import adapters
from app.workspaces_file import (
    WorkspacesError,
    decode,
    digest_of,
    read_bytes,
    require_cell,
    rows,
)

# The gateway has precedence where they share a core.
NICE = 10


def main(path: str, cell: str, *names: str) -> int:
    """Write the decoded file to standard output, in lines of tab-separated fields.

    First `digest`; then `callbacks` with vendor and workspace, and `app` with key and JSON; last
    `end`. For a wrong file, only `error` with the message.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with the gateway
    os.nice(NICE)
    write = sys.stdout.buffer.write
    try:
        text = read_bytes(Path(path))
        digest = digest_of(text)
        vendors = {name: vendor for name, vendor in adapters.load().items() if name in names}
        apps = decode(text, vendors)
        require_cell(apps, cell)
    except WorkspacesError as error:
        write(f"error\t{error}\n".encode())
        return 1
    write(f"digest\t{digest.hex()}\n".encode())
    for vendor, workspace in {(app.vendor, app.workspace_id) for app in apps.values()}:
        write(f"callbacks\t{vendor}\t{workspace}\n".encode())
    for key, row in rows(apps):
        write(b"app\t%b\t%b\n" % (key.encode(), row))
    write(b"end\t\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
