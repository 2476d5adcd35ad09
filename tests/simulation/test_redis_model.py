"""The model of Redis beside a real one: the scripts of the claims give the same answers."""

import os
from collections.abc import Sequence
from random import Random

from app.claims import scripts
from app.claims.connection import make_connection
from app.claims.discovery import read_address
from tests.gateways import Services
from tests.simulation.loop import Process
from tests.simulation.redis_server import Redis
from tests.simulation.world import World

COMMANDS = 200
LEASE_MS, SEEN_MS = 60_000, 120_000


def commands(prefix: bytes) -> Sequence[bytes]:
    """Random claims, settlements and releases of two owners, on few events."""
    random = Random(1)  # noqa: S311 - repeatable on purpose
    keys = [prefix + bytes([number]) * 16 for number in range(12)]
    found = []
    for _ in range(COMMANDS):
        token = random.choice((b"owner one", b"owner two"))
        some = random.sample(keys, random.randint(0, 4))
        if random.random() < 0.4:
            found.append(scripts.release(some, token))
        else:
            settled = random.sample(keys, random.choice((0, 0, 0, 1)))
            packed = scripts.settle_and_claim(settled, some, token, LEASE_MS, SEEN_MS)
            found.append(packed)
    return found


async def test_model_gives_the_answers_of_redis(services: Services) -> None:
    """Each script has the answer of the model, in any order of claims and releases."""
    world = World(1)
    model = Redis(world)
    sent = commands(os.urandom(8))
    modelled = [model.run(packed, Process("test")) for packed in sent]
    connection = make_connection(read_address(services.redis_url).endpoints[0])
    await connection.connect()
    await connection.send_packed_command(sent)
    answers = [await connection.read_response() for _ in sent]
    await connection.disconnect()
    world.loop.end([])
    assert answers == modelled
    assert {letter for answer in modelled for letter in answer.decode()} == set("hsb")
