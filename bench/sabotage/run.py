"""One run against a sabotaged gateway, and its findings."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.dev.embedded import EmbeddedError
from bench.faults.run import run
from bench.faults.schedule import make_schedule
from bench.faults.verdict import Verdict
from bench.sabotage.claims_run import run_with_others_claims
from bench.sabotage.sabotage import Found, Sabotage, Scenario
from bench.sabotage.scenarios import (
    RATE,
    RETRY_AFTER_S,
    SEED,
    run_promoted,
    run_replaced,
    run_with_frozen_redis,
)
from bench.testbed.console import Progress
from bench.testbed.drops import POISON_RULES
from bench.testbed.environment import open_environment
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import SERVE, BenchError


@dataclass
class Findings:
    """The broken promises of a run, by verdict, with a reason of each."""

    machine: Machine
    reasons: dict[Found, str] = field(default_factory=dict)

    def add(self, verdict: Verdict) -> None:
        """Add the findings of the oracle."""
        for name, events in verdict.broken.items():
            if events:
                number, reason = next(iter(events.items()))
                self.reasons[Found(name)] = f"{len(events)}, such as callback {number}: {reason}"

    def add_others(self, found: Found, reasons: Sequence[str]) -> None:
        """Add findings beside the oracle's, if there are any."""
        if reasons:
            self.reasons[found] = f"{len(reasons)}, such as {reasons[0]}"


async def run_sabotage(
    sabotage: Sabotage, progress: Progress, *, folder: Path | None = None, is_real: bool = False
) -> Findings:
    """Run a sabotaged gateway, or the real one in the same way.

    Raises BenchError, with the name of the sabotage.
    """
    try:
        return await _run_scenario(sabotage, progress, folder, is_real=is_real)
    except (BenchError, EmbeddedError) as error:
        raise BenchError(f"{sabotage.name}: {error}") from error
    except (TimeoutError, ExceptionGroup) as error:
        # Concurrent parts of a scenario raise a group.
        if isinstance(error, ExceptionGroup) and error.split(TimeoutError)[1] is not None:
            raise
        raise BenchError(f"{sabotage.name}: a step does not end in time") from error


async def _run_scenario(
    sabotage: Sabotage, progress: Progress, folder: Path | None, *, is_real: bool
) -> Findings:
    arguments = SERVE if is_real else ("-m", "bench.sabotage.serve", sabotage.name)
    if sabotage.scenario is Scenario.FAULTS:
        return await _run_under_faults(sabotage, progress, folder, arguments)
    async with open_environment(
        folder=folder,
        arguments=arguments,
        statements=(*POISON_RULES, *sabotage.statements),
        has_standby=sabotage.scenario is Scenario.LACKING_STANDBY,
    ) as environment:
        findings = Findings(describe_machine(environment.servers.description))
        match sabotage.scenario:
            case Scenario.REPLACED_DATA:
                findings.add(await run_replaced(sabotage, environment))
            case Scenario.LACKING_STANDBY:
                findings.add(await run_promoted(sabotage, environment))
            case Scenario.OTHERS_CLAIMS:
                verdict, broken = await run_with_others_claims(sabotage, environment)
                findings.add(verdict)
                findings.add_others(Found.CLAIMS, broken)
            case Scenario.FROZEN_REDIS:
                verdict, failed = await run_with_frozen_redis(sabotage, environment)
                findings.add(verdict)
                findings.add_others(Found.STUCK, failed)
    return findings


async def _run_under_faults(
    sabotage: Sabotage, progress: Progress, folder: Path | None, arguments: Sequence[str]
) -> Findings:
    schedule = make_schedule(
        seed=SEED,
        callbacks=sabotage.callbacks,
        injections=len(sabotage.faults),
        rate=RATE,
        kinds=sabotage.faults,
        shares=sabotage.all_shares,
    )
    result = await run(
        schedule,
        progress,
        folder=folder,
        arguments=arguments,
        statements=sabotage.statements,
        retry_after_s=RETRY_AFTER_S,
    )
    findings = Findings(result.machine)
    findings.add(result.verdict)
    findings.add_others(Found.STUCK, result.stuck)
    return findings
