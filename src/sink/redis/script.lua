-- Appends events to streams, in order, and stops at the first one that cannot be appended.
--
-- KEYS are the streams. ARGV: the limit of a stream's length (0: none); how many of the newest
-- entries to search for a repeat (0: none); then for each event the number of its stream in KEYS, its
-- entry id, and the values of the seven fields.
--
-- Answers {accepted, duplicates, error}: the first `accepted` events stand in their streams,
-- `duplicates` of them stood there before, and `error` is what met the one after them ('' if nothing).

local FIELDS = 7
local search = tonumber(ARGV[2])
local newest = {}

local function append(key, entry, at)
    if ARGV[1] ~= '0' then
        return redis.pcall('XADD', key, 'MAXLEN', '~', ARGV[1], entry,
            'id', ARGV[at], 'topic', ARGV[at + 1], 'room', ARGV[at + 2], 'channel', ARGV[at + 3],
            'ts', ARGV[at + 4], 'origin', ARGV[at + 5], 'payload', ARGV[at + 6])
    end
    return redis.pcall('XADD', key, entry,
        'id', ARGV[at], 'topic', ARGV[at + 1], 'room', ARGV[at + 2], 'channel', ARGV[at + 3],
        'ts', ARGV[at + 4], 'origin', ARGV[at + 5], 'payload', ARGV[at + 6])
end

local function event_id(entry)
    local fields = entry[2]
    for i = 1, #fields, 2 do
        if fields[i] == 'id' then return fields[i + 1] end
    end
end

-- Whether the event stands in the stream: under its own entry id, or near the top under another.
local function stands(key, entry, id)
    local found = redis.call('XRANGE', key, entry, entry)
    if found[1] and event_id(found[1]) == id then return true end
    if search == 0 then return false end
    if not newest[key] then
        newest[key] = {}
        for _, other in ipairs(redis.call('XREVRANGE', key, '+', '-', 'COUNT', search)) do
            newest[key][event_id(other) or ''] = true
        end
    end
    return newest[key][id] or false
end

local accepted, duplicates = 0, 0
for at = 3, #ARGV, 2 + FIELDS do
    local key, entry = KEYS[tonumber(ARGV[at])], ARGV[at + 1]
    local answer = append(key, entry, at + 2)
    if type(answer) == 'table' and answer.err and string.find(answer.err, 'equal or smaller', 1, true) then
        if stands(key, entry, ARGV[at + 2]) then
            duplicates = duplicates + 1
            answer = entry
        else
            -- Somebody else writes here, or a clock was set back: after the top rather than lost.
            answer = append(key, '*', at + 2)
        end
    end
    if type(answer) == 'table' and answer.err then
        return { accepted, duplicates, answer.err }
    end
    accepted = accepted + 1
end
return { accepted, duplicates, '' }
