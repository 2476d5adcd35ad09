"""The cost of a scrape, and the series of workspaces and workers that are gone."""

import asyncio
import os
import signal
from collections.abc import Callable

import pytest

from tests.gateways import Process, workspaces_toml
from tests.services.test_metrics import folder_of, until, wait_for_workers, workers_of

RUNS = Callable[..., Process]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_series_of_a_workspace_end_with_it(run: RUNS, workers: str) -> None:
    """A workspace that is not in the file any more has no series; that of unknown apps stays."""
    old, new = '{vendor="adjust",workspace="ws_test"}', '{vendor="adjust",workspace="ws_new"}'
    nobody = '{reason="unknown_app",vendor="adjust",workspace=""}'
    with run(WORKERS=workers) as process:
        await asyncio.to_thread(process.wait_until_ready)
        await process.callback()
        await process.callback(app_token="unknown")
        found = await process.metrics()
        assert found[f"flokit_callbacks_written_total{old}"] == 1
        text = workspaces_toml("abc123token").replace("ws_test", "ws_new")
        (process.folder / "workspaces.toml").write_text(text)
        found = await until(
            process, lambda found: not any('workspace="ws_test"' in series for series in found)
        )
        assert found[f"flokit_callbacks_written_total{new}"] == 0
        assert found[f"flokit_callbacks_dropped_total{nobody}"] == 1
    assert not any("ws_test" in series for series in found)


async def test_workers_that_ended_leave_no_files(run: RUNS) -> None:
    """However many workers have ended, there are no more files than places, and no count falls."""
    series = 'flokit_callbacks_received_total{vendor="adjust",workspace="ws_test"}'
    numbers, files = [], []
    with run(WORKERS="2") as process:
        for turn in range(3):
            await asyncio.to_thread(wait_for_workers, process, 2 * (turn + 1))
            for _ in range(5):
                await process.callback()
            numbers.append((await process.metrics())[series])
            pids = workers_of(process)
            files.append({path.name for path in folder_of(pids[-1]).iterdir()})
            for pid in pids[-2:]:
                os.kill(pid, signal.SIGKILL)
    assert numbers == [5, 10, 15]
    assert files[0] == files[1] == files[2]
