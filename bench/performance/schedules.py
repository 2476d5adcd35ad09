"""The schedules of `compare` and `curves`: their points, durations and rounds."""

import msgspec


class CompareSchedule(msgspec.Struct, frozen=True):
    """The number and the durations of the rounds of `compare`."""

    rounds: int = 3
    warm_up_s: float = 3
    peak_s: float = 6
    latency_s: float = 10
    latency_warm_up_s: float = 2
    filled_rows: int = 10_000_000
    remembered: int = 200_000
    pool_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    tuning_rounds: int = 3
    tuning_s: float = 1
    is_judged: bool = True


# Each step once; its figures are too inexact for a verdict.
QUICK_COMPARE = CompareSchedule(
    rounds=1,
    warm_up_s=1,
    peak_s=1,
    latency_s=1,
    latency_warm_up_s=0,
    filled_rows=20_000,
    remembered=3_000,
    pool_sizes=(4,),
    tuning_rounds=1,
    is_judged=False,
)


class CurvesSchedule(msgspec.Struct, frozen=True):
    """The points of each curve, and the number and the durations of their rounds."""

    rounds: int = 3
    warm_up_s: float = 3
    peak_s: float = 4
    latency_s: float = 8
    latency_warm_up_s: float = 2
    rates: tuple[int, ...] = (
        250, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 10_000,
    )  # fmt: skip
    connections: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
    duplicates: tuple[int, ...] = (0, 25, 50, 75, 95)
    workers: tuple[int, ...] = (1, 2)
    rows: tuple[int, ...] = (0, 300_000, 1_000_000, 3_000_000, 10_000_000)
    days: int = 30
    remembered: tuple[int, ...] = (10_000, 50_000, 200_000, 500_000)
    is_quick: bool = False


QUICK_CURVES = CurvesSchedule(
    rounds=1,
    warm_up_s=1,
    peak_s=1,
    latency_s=1,
    latency_warm_up_s=0,
    rates=(200, 400),
    connections=(1, 32),
    duplicates=(50,),
    rows=(0, 60_000),
    days=3,
    remembered=(3_000,),
    is_quick=True,
)
