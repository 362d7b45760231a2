-- Appends events to streams, in order, and stops at the first one that cannot be appended.
--
-- KEYS are the streams. ARGV: the limit of a stream's length (0: none); how many of the newest
-- entries to search for a repeat (0: none); then for each event the number of its stream in KEYS, its
-- entry id, the replay that hands it on once more ('': none), and the values of the fields in NAMES.
--
-- Answers {accepted, duplicates, error}: the first `accepted` events stand in their streams,
-- `duplicates` of them stood there before, and `error` is what met the one after them ('' if nothing).

local NAMES = { 'id', 'topic', 'room', 'channel', 'ts', 'origin', 'payload' }
local unpack = table.unpack or unpack
local search = tonumber(ARGV[2])
local newest = {}

local function append(key, entry, replay, at)
    local words = { 'XADD', key }
    if ARGV[1] ~= '0' then
        words = { 'XADD', key, 'MAXLEN', '~', ARGV[1] }
    end
    table.insert(words, entry)
    for i, name in ipairs(NAMES) do
        table.insert(words, name)
        table.insert(words, ARGV[at + i - 1])
    end
    if replay ~= '' then
        table.insert(words, 'replay')
        table.insert(words, replay)
    end
    return redis.pcall(unpack(words))
end

-- What tells one event from another, in short. What another sink makes of it, or another replay, is another.
local function digest(id, payload, replay)
    return redis.sha1hex(payload) .. ' ' .. replay .. ' ' .. id
end

local function digest_of(entry)
    local fields, found = entry[2], {}
    for i = 1, #fields, 2 do found[fields[i]] = fields[i + 1] end
    return found.id and found.payload and digest(found.id, found.payload, found.replay or '')
end

-- Whether the event stands in the stream: under its own entry id, or near the top under another.
local function stands(key, entry, replay, at)
    local wanted = digest(ARGV[at], ARGV[at + 6], replay)
    if entry ~= '*' then
        local own = redis.call('XRANGE', key, entry, entry)[1]
        if own and digest_of(own) == wanted then return true end
    end
    -- Nothing tells one without an id from another.
    if search == 0 or ARGV[at] == '' then return false end
    if not newest[key] then
        newest[key] = {}
        for _, other in ipairs(redis.call('XREVRANGE', key, '+', '-', 'COUNT', search)) do
            local found = digest_of(other)
            if found then newest[key][found] = true end
        end
    end
    return newest[key][wanted] == true
end

local function is_behind_top(answer)
    return type(answer) == 'table' and answer.err and string.find(answer.err, 'equal or smaller', 1, true)
end

local accepted, duplicates = 0, 0
for first = 3, #ARGV, 3 + #NAMES do
    local key, entry, replay, at = KEYS[tonumber(ARGV[first])], ARGV[first + 1], ARGV[first + 2], first + 3
    -- One whose entry id the server chooses meets no error when it comes again.
    local stood = entry == '*' and stands(key, entry, replay, at)
    local answer = not stood and append(key, entry, replay, at)
    if is_behind_top(answer) then
        stood = stands(key, entry, replay, at)
        -- Somebody else writes here, or a clock was set back: after the top rather than lost.
        answer = not stood and append(key, '*', replay, at)
    end
    if type(answer) == 'table' and answer.err then
        return { accepted, duplicates, answer.err }
    end
    accepted = accepted + 1
    if stood then duplicates = duplicates + 1 end
end
return { accepted, duplicates, '' }
