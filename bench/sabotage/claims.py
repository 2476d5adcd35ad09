"""Sabotages of the claims in Redis: each costs speed alone."""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from types import SimpleNamespace

from app import commit, gateway
from app.claims import Claim, Claims, redis, scripts
from app.claims.redis import RedisClaims
from app.event import Event, Outcome
from bench.sabotage.sabotage import Found, Sabotage, Scenario, patch
from sinks import Sink
from sinks.timescale.sink import TimescaleSink

NEVER_S = 3_600.0

claim, settle = RedisClaims.claim, RedisClaims.settle
sink_write = TimescaleSink.write
commit_contested: Callable[..., Awaitable[Outcome]] = commit.commit_contested


def _changed(name: str, old: str, new: str) -> str:
    """Return one of the scripts of the claims, changed."""
    script: str = vars(scripts)[name]
    assert old in script, f"{name} has no {old}"
    return script.replace(old, new)


def _script(name: str, old: str, new: str) -> Callable[[], None]:
    """Return a patch of one of the scripts of the claims."""
    return partial(patch, scripts, name, _changed(name, old, new))


RELEASE_OF_ANY = _changed("_RELEASE", "if redis.call('GET', key) == ARGV[1] then", "if true then")


def _forget_events(name: str) -> Callable[[], None]:
    """Return a patch of `settle` or `release` that does nothing."""

    async def forget(_: RedisClaims, __: Sequence[bytes]) -> None:
        """Forget the events."""

    return partial(patch, RedisClaims, name, forget)


def _claims_nothing() -> None:
    async def hold(claims: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        await claim(claims, [])  # takes the settlements along
        return [Claim.HELD] * len(event_ids)

    patch(RedisClaims, "claim", hold)


def _one_token() -> None:
    patch(redis, "secrets", SimpleNamespace(token_bytes=bytes))


def _settles_some() -> None:
    async def settle_first(claims: RedisClaims, event_ids: Sequence[bytes]) -> None:
        await settle(claims, event_ids[:1])

    patch(RedisClaims, "settle", settle_first)


def _settles_no_duplicates() -> None:
    duplicates: set[bytes] = set()  # of the last batch

    async def write(sink: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
        duplicates.clear()
        outcomes = await sink_write(sink, events)
        for event, outcome in zip(events, outcomes, strict=True):
            if outcome is Outcome.DUPLICATE:
                duplicates.add(event.event_id)
        return outcomes

    async def settle_written(claims: RedisClaims, event_ids: Sequence[bytes]) -> None:
        await settle(claims, [id_ for id_ in event_ids if id_ not in duplicates])

    patch(TimescaleSink, "write", write)
    patch(RedisClaims, "settle", settle_written)


def _refused_is_settled() -> None:
    async def settled(event: Event, claims: Claims, sink: Sink, **more: object) -> Outcome:
        outcome = await commit_contested(event, claims, sink, **more)
        if outcome is Outcome.REFUSED:
            await claims.settle([event.event_id])
        return outcome

    patch(gateway, "commit_contested", settled)


def _claims(name: str, sentence: str, apply: Callable[[], None]) -> Sabotage:
    return Sabotage(name, sentence, Found.CLAIMS, apply, scenario=Scenario.OTHERS_CLAIMS)


_CLAIM, _LEASE = "_SETTLE_AND_CLAIM", "Claim: one short lease per event"
_SETTLE = "Settle: after the commit the claim becomes *seen*."
SABOTAGES = (
    _claims("claims-nothing", _LEASE, _claims_nothing),
    _claims("claim-without-lease", _LEASE, _script(
        _CLAIM, "ARGV[1], 'PX', ARGV[2]", "ARGV[1]",
    )),
    _claims("lease-too-short", "The lease lasts `CLAIM_LEASE_S`.", _script(
        _CLAIM, "ARGV[1], 'PX', ARGV[2]", "ARGV[1], 'PX', ARGV[2] / 2",
    )),
    _claims("one-token", "A claim has the token of its process.", _one_token),
    _claims("never-settles", _SETTLE, _forget_events("settle")),
    _claims("settles-some", _SETTLE, _settles_some),
    _claims("settles-no-duplicates", _SETTLE, _settles_no_duplicates),
    _claims("refused-is-settled", _SETTLE, _refused_is_settled),
    _claims(
        "settles-when-busy", "A settlement follows within a second, also when idle.",
        partial(patch, redis, "SETTLE_IDLE_S", NEVER_S),
    ),
    _claims("seen-for-ever", "*Seen* for `SEEN_WINDOW_D`", _script(
        _CLAIM, "'seen', 'PX', ARGV[3]", "'seen'",
    )),
    _claims(
        "never-releases", "Release: on failure the claim is given back.",
        _forget_events("release"),
    ),
    _claims(
        "releases-claims-of-others", "Release: by its owner only",
        partial(patch, scripts, "_RELEASE", RELEASE_OF_ANY),
    ),
)  # fmt: skip
