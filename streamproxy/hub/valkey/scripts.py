"""The Lua scripts of the Valkey store: each changes one stream atomically.

The keys of a stream `id`, all in one slot of a cluster because of the braces:

    sp:{id}:meta      hash: owner, created, n, replica, epoch, last (seq), finished, p:<image> (seq of its last preview)
    sp:{id}:log       stream: a descriptor of each retained entry, with the id `<seq>-0`; `<last>-1` marks the end
    sp:{id}:lease     exists while the producer's process lives
    sp:{id}:gone      outlives the others, so that a purged stream differs from one that never existed
    sp:{id}:data:<n>  the bytes of the entry with seq n
    sp:{id}:viewed    exists while a process has viewers
    sp:{id}:shown     exists while the producer's process writes previews, because another one has asked for them

The keys of a mark (see `hub.store.Marks`):

    sp:{mark}:asked   sorted set: ids of its generations, by their scores (`hub.store.SPAN`)
    sp:{mark}:failed  data of the error event that every request of this mark gets while the key exists

The key of an owner, which is the hash of a caller's key:

    sp:{owner}:owned  sorted set: ids of its streams, by the time of their creation in microseconds

A script gets the first four as KEYS. It builds the names of `data` keys from a prefix, since they depend on the log;
they are in the same slot. Each script may run twice for one request, when a reply was lost.
"""

from __future__ import annotations

from typing import Final

from streamproxy.hub.valkey.client import Script

_SHARED: Final = """
local meta, log, lease, gone = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local data, lease_ms, live_ms, linger_ms, gone_ms = unpack(ARGV, 1, 5)

-- Store an entry, and remove the preview that it supersedes, as Log.add does in a process.
local function keep(epoch, seq, type, image, final, bytes)
  local preview = 'p:' .. image
  local older = redis.call('HGET', meta, preview)
  if older then
    redis.call('UNLINK', data .. older)
    redis.call('XDEL', log, older .. '-0')
  end
  redis.call('SET', data .. seq, bytes, 'PX', live_ms)
  redis.call('XADD', log, seq .. '-0', 'epoch', epoch, 'type', type, 'image', image, 'final', final, 'size', #bytes)
  if final ~= '1' then redis.call('HSET', meta, preview, seq) end
  redis.call('HSET', meta, 'epoch', epoch, 'last', seq)
  redis.call('PEXPIRE', meta, live_ms)
  redis.call('PEXPIRE', log, live_ms)
  redis.call('PEXPIRE', gone, live_ms + gone_ms)
end

-- End the stream: previews are removed, and the rest lingers.
local function finish(last)
  local fields = redis.call('HGETALL', meta)
  for at = 1, #fields, 2 do
    if string.sub(fields[at], 1, 2) == 'p:' then
      redis.call('UNLINK', data .. fields[at + 1])
      redis.call('XDEL', log, fields[at + 1] .. '-0')
      redis.call('HDEL', meta, fields[at])
    end
  end
  for _, row in ipairs(redis.call('XRANGE', log, '-', '+')) do
    redis.call('PEXPIRE', data .. string.match(row[1], '^%d+'), linger_ms)
  end
  redis.call('XADD', log, last .. '-1', 'end', '1')
  redis.call('HSET', meta, 'finished', '1')
  redis.call('PEXPIRE', meta, linger_ms)
  redis.call('PEXPIRE', log, linger_ms)
  redis.call('SET', gone, '1', 'PX', linger_ms + gone_ms)
  redis.call('UNLINK', lease)
end
"""

CREATE: Final = Script(
    _SHARED
    + """
local created, n, replica, epoch, owner = unpack(ARGV, 6)
if redis.call('EXISTS', meta) == 0 then
  redis.call('HSET', meta, 'created', created, 'n', n, 'replica', replica, 'epoch', epoch, 'last', '0')
  if owner then redis.call('HSET', meta, 'owner', owner) end
  redis.call('PEXPIRE', meta, live_ms)
  redis.call('SET', gone, '1', 'PX', live_ms + gone_ms)
  redis.call('SET', lease, replica, 'PX', lease_ms)
end
return 'kept'
"""
)
"""Begin a stream. Arguments: created, n, replica, epoch, and the owner if there is one."""

APPEND: Final = Script(
    _SHARED
    + """
local epoch, seq, type, image, final, bytes = unpack(ARGV, 6)
local state = redis.call('HMGET', meta, 'epoch', 'last', 'finished')
if not state[1] then return 'unknown' end
if state[1] ~= epoch or state[3] then return 'fenced' end
if tonumber(seq) > tonumber(state[2]) then keep(epoch, seq, type, image, final, bytes) end
return 'kept'
"""
)
"""Append an entry. Arguments: epoch, seq, type, image, final (0 or 1), bytes."""

FINISH: Final = Script(
    _SHARED
    + """
local state = redis.call('HMGET', meta, 'last', 'finished')
if not state[1] then return 'unknown' end
if not state[2] then finish(state[1]) end
return 'kept'
"""
)
"""End a stream. No arguments. Another process may have ended it before: a stream has one end."""

BURY: Final = Script(
    _SHARED
    + """
-- Whether every image has its outcome, and the producer died just before it could end the stream.
local function complete()
  local images = 0
  for _, row in ipairs(redis.call('XRANGE', log, '-', '+')) do
    local entry = {}
    for at = 1, #row[2], 2 do entry[row[2][at]] = row[2][at + 1] end
    if entry.type == ARGV[6] or entry.type == ARGV[8] then return true end
    if entry.final == '1' then images = images + 1 end
  end
  return images >= tonumber(redis.call('HGET', meta, 'n'))
end

local state = redis.call('HMGET', meta, 'epoch', 'last', 'finished')
if not state[1] then return 'unknown' end
if state[3] then return 'ended' end
if redis.call('EXISTS', lease) == 1 then return 'live' end
if complete() then
  finish(state[2])
  return 'ended'
end
local seq = string.format('%d', state[2] + 1)
keep(string.format('%d', state[1] + 1), seq, ARGV[6], '0', '1', ARGV[7])
finish(seq)
return 'ended'
"""
)
"""End a stream whose producer is dead. Arguments: type and bytes of the error event to append where an image is
missing, and the type of a frame that holds all images.
"""

LOOK: Final = Script(
    _SHARED
    + """
local state = redis.call('HMGET', meta, 'created', 'n', 'finished', 'owner')
if not state[1] then return redis.call('EXISTS', gone) end
return {state[1], state[2], state[3], state[4], redis.call('EXISTS', lease), redis.call('XRANGE', log, '-', '+')}
"""
)
"""Returns created, n, finished, owner, whether the lease exists, the log; without a stream, whether there was one."""

TELL: Final = Script(
    """
redis.call('XADD', KEYS[1], 'MAXLEN', '~', '1000', '*', 'id', ARGV[1], 'what', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 'kept'
"""
)
"""Send a message to a process. Key: its control stream. Arguments: a stream's id, the request, milliseconds to keep it.
"""

FORGET: Final = Script(
    _SHARED
    + """
local owner = redis.call('HGET', meta, 'owner')
if redis.call('HGET', meta, 'finished') then
  for _, row in ipairs(redis.call('XRANGE', log, '-', '+')) do
    redis.call('UNLINK', data .. string.match(row[1], '^%d+'))
  end
  redis.call('UNLINK', meta, log)
  redis.call('SET', gone, '1', 'PX', gone_ms)
  return owner or ''
end
return ''
"""
)
"""Purge a finished stream. No arguments. Returns its owner, or an empty string."""

ASK: Final = Script(
    """
local asked, failed = KEYS[1], KEYS[2]
local id, time, asking, own, span, same, ms = unpack(ARGV)

local function adopted(found)
  redis.call('ZINCRBY', asked, span, found)
  redis.call('PEXPIRE', asked, ms)
  return {'adopted', found}
end

local nearest = {}
if asking ~= 'first' then nearest = redis.call('ZRANGE', asked, 0, 0, 'WITHSCORES') end
local followers = nearest[2] and math.ceil(tonumber(nearest[2]) / span)
if followers == 0 then return adopted(nearest[1]) end
local failure = redis.call('GET', failed)
if failure then return {'failed', failure} end
if followers then
  local most = redis.call('ZRANGE', asked, -1, -1, 'WITHSCORES')[2]
  if asking == 'retry' and tonumber(most) > (own - 1) * span then return {'followed', ''} end
  if followers < tonumber(own) then return adopted(nearest[1]) end
end
redis.call('ZADD', asked, own * span - time, id)
redis.call('ZREMRANGEBYRANK', asked, same, -1)
redis.call('PEXPIRE', asked, ms)
return {'new', ''}
"""
)
"""Decide on a request: `hub.store.Marks.ask`. Keys: `asked` and `failed` of its mark. Arguments: a new generation's id,
the request's time, its `Asking`, the constants OWN, SPAN and SAME, and milliseconds for which the mark is known.
"""
