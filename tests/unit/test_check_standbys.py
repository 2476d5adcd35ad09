"""`check` reports on standbys and slots, one line for each finding."""

import pytest

from app.commands.check_standbys import check_standbys
from app.commands.report import Report
from sinks.timescale.standbys import Replication, Slot, Standby, needed_standbys

WELL = Replication(
    standbys=[
        Standby("three", "streaming", "potential", 0.0),
        Standby("two", "streaming", "sync", 0.1),
    ],
    slots=[],
    is_readable=True,
    needed=1,
    is_bounded=True,
    wal_level="replica",
    hot_standby="on",
    role="flokit",
)
AWAY = Slot("two", True, "reserved", 3e6)
ASYNC = Standby("far", "streaming", "async", 0.0)
QUORUM = [Standby(name, "streaming", "quorum", 0.0) for name in ("one", "two")]


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (WELL, ["ok       database standbys: three streaming potential, two streaming sync"]),
        (
            WELL._replace(standbys=WELL.standbys[1:]),
            [
                (
                    "warning  database standbys: two streaming sync: without two every callback "
                    "is answered 500"
                )
            ],
        ),
        (
            WELL._replace(standbys=[*WELL.standbys[1:], ASYNC]),
            [
                (
                    "warning  database standbys: two streaming sync, far streaming async: without "
                    "two every callback is answered 500"
                )
            ],
        ),
        (
            WELL._replace(needed=2, standbys=QUORUM),
            [
                (
                    "warning  database standbys: one streaming quorum, two streaming quorum: "
                    "without one or two every callback is answered 500"
                )
            ],
        ),
        (
            WELL._replace(standbys=QUORUM),
            ["ok       database standbys: one streaming quorum, two streaming quorum"],
        ),
        (
            WELL._replace(needed=0, standbys=[ASYNC]),
            [
                (
                    "warning  database standbys: far streaming async: no commit waits for "
                    "them, a failover may lose events"
                )
            ],
        ),
        (
            WELL._replace(is_readable=False, standbys=[Standby("two", None, None, 0.0)]),
            [
                (
                    "warning  database standbys: two: the role may not read their states: "
                    "GRANT pg_monitor TO flokit;"
                )
            ],
        ),
        (
            WELL._replace(standbys=[Standby("two", "streaming", "sync", 45.0), *WELL.standbys]),
            [
                (
                    "ok       database standbys: two streaming sync, three streaming potential, "
                    "two streaming sync"
                ),
                "warning  database standbys: two is 45 s behind",
            ],
        ),
        (
            WELL._replace(standbys=[], needed=0),
            ["ok       database standbys: none: a failover is not possible"],
        ),
        (WELL._replace(standbys=[]), []),  # the commit of `check` reports it
        (
            WELL._replace(standbys=[], slots=[AWAY]),
            ["ok       database slot two: its standby is away, 3 MB of WAL are kept"],
        ),
        (
            WELL._replace(standbys=[], slots=[AWAY], is_bounded=False),
            [
                (
                    "warning  database slot two: its standby is away, 3 MB of WAL are kept, "
                    "without a limit: set max_slot_wal_keep_size, or the disk fills"
                )
            ],
        ),
        (
            WELL._replace(standbys=[], slots=[Slot("two", True, "lost", 0.0)]),
            ["warning  database slot two: lost: its standby must begin anew, with a copy"],
        ),
        (
            WELL._replace(
                standbys=[], slots=[Slot("cdc", False, "extended", 7e9)], is_bounded=False
            ),
            [
                (
                    "warning  database slot cdc: its logical reader is away, 7000 MB of WAL are "
                    "kept, without a limit: set max_slot_wal_keep_size, or the disk fills"
                )
            ],
        ),
        (
            WELL._replace(standbys=[], slots=[Slot("two", True, None, 0.0)], is_bounded=False),
            ["ok       database slot two: no standby has used it yet, no WAL is kept"],
        ),
        (
            WELL._replace(standbys=[], wal_level="minimal", hot_standby="off"),
            [
                "warning  database setting wal_level: minimal: no standby can follow",
                (
                    "warning  database setting hot_standby: off: a standby with this setting "
                    "refuses connections, as a server that is down does"
                ),
            ],
        ),
    ],
)
def test_each_finding_has_a_line(
    found: Replication, lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A standby, a slot and a setting each have one line, and none of them fails the check."""
    report = Report()
    check_standbys(report, found, is_direct=False)
    assert capsys.readouterr().out.splitlines() == lines
    assert report.exit_code == 0


def test_server_without_another_address_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    """A single host that is the server itself is reported, once a failover is possible."""
    report = Report()
    check_standbys(report, WELL, is_direct=True)
    assert "warning  DATABASE_URL: one host, the server itself: " in capsys.readouterr().out
    check_standbys(report, WELL._replace(standbys=[]), is_direct=True)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        ("", 0), (" ", 0), ("two", 1), ("two, three", 1), ("*", 1), ("1 (two, three)", 1),
        ("2(two,three)", 2), ("FIRST 2 (two, three)", 2), ('any 3 ("a 1 (", b, c)', 3),
    ],
)  # fmt: skip
def test_number_of_standbys_is_read(names: str, needed: int) -> None:
    """`synchronous_standby_names` says how many standbys confirm a commit, in each spelling."""
    assert needed_standbys(names) == needed
