"""The Lua scripts of the claims, encoded with their keys and arguments.

They are sent in full each time: EVALSHA would need one more right in the ACL of each user, and a
second round trip whenever a server has lost them.
"""

from collections.abc import Sequence

from app.claims import Claim
from app.claims.connection import encode

# One round trip for both: the first `ARGV[4]` keys become seen, then the rest are claimed. Our own
# token is contested too, since an earlier write of ours may still be under way.
_SETTLE_AND_CLAIM = """
for i = 1, tonumber(ARGV[4]) do
  redis.call('SET', KEYS[i], 'seen', 'PX', ARGV[3])
end
local answers = {}
for i = ARGV[4] + 1, #KEYS do
  local owner = redis.call('GET', KEYS[i])
  if not owner then
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
    answers[#answers + 1] = 'h'
  elseif owner == 'seen' then
    answers[#answers + 1] = 's'
  else
    answers[#answers + 1] = 'b'
  end
end
return table.concat(answers)
"""
_RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
return ''
"""
# The answer to `settle_and_claim` has a letter for each key that was claimed.
HELD = b"h"
CLAIMS = {ord("h"): Claim.HELD, ord("s"): Claim.SEEN, ord("b"): Claim.CONTESTED}


def settle_and_claim(
    settled: Sequence[bytes], claimed: Sequence[bytes], token: bytes, lease_ms: int, seen_ms: int
) -> bytes:
    """Return a command that remembers committed events, then claims others."""
    number = len(settled) + len(claimed)
    arguments = (token, lease_ms, seen_ms, len(settled))
    return encode(("EVAL", _SETTLE_AND_CLAIM, number, *settled, *claimed, *arguments))


def release(keys: Sequence[bytes], token: bytes) -> bytes:
    """Return a command that gives back the claims of this token."""
    return encode(("EVAL", _RELEASE, len(keys), *keys, token))
