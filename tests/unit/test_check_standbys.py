"""`check` reports on standbys and slots, one line for each finding."""

import pytest

from app.commands.check_standbys import check_standbys
from app.commands.report import Report
from sinks.timescale.standbys import Replication, Slot, Standby

WELL = Replication(
    standbys=[
        Standby("three", "streaming", "async", 0.0),
        Standby("two", "streaming", "sync", 0.1),
    ],
    slots=[],
    is_readable=True,
    is_synchronous=True,
    is_bounded=True,
    wal_level="replica",
    hot_standby="on",
    role="flokit",
)
AWAY = Slot("two", "reserved", 3e6)


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (WELL, ["ok       database standbys: three streaming async, two streaming sync"]),
        (
            WELL._replace(standbys=WELL.standbys[1:]),
            [
                (
                    "warning  database standbys: two streaming sync: the only one, without it "
                    "every callback is answered 500"
                )
            ],
        ),
        (
            WELL._replace(is_synchronous=False, standbys=WELL.standbys[:1]),
            [
                (
                    "warning  database standbys: three streaming async: no commit waits for "
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
                    "ok       database standbys: two streaming sync, three streaming async, "
                    "two streaming sync"
                ),
                "warning  database standbys: two is 45 s behind",
            ],
        ),
        (
            WELL._replace(standbys=[], is_synchronous=False),
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
            WELL._replace(standbys=[], slots=[Slot("two", "lost", 0.0)]),
            ["warning  database slot two: lost: its standby must be copied anew"],
        ),
        (
            WELL._replace(standbys=[], slots=[Slot("two", None, 0.0)], is_bounded=False),
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
