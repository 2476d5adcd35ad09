-- Unique, realistic callbacks in a closed loop: how many can a server take, at what CPU?
--
--   URL=http://127.0.0.1:8000/ingest/adjust
--   SECRET=demo-secret APP_TOKEN=abc123token EVENT_TOKEN=g3mz3t \
--     wrk --threads 1 --connections 64 --duration 10s --script bench/wrk/callbacks.lua "$URL"
--
-- In the environment:
--   SECRET       the vendor's secret                              (demo-secret)
--   APP_TOKEN    an app of the workspaces file                    (abc123token)
--   EVENT_TOKEN  one of its events                                (g3mz3t)
--   DUPLICATES   share of callbacks that were sent before, 0 to 1 (0)
--   UNMAPPED     share with a token that nobody has mapped        (0); these fill quarantine
--   RUN          names the users, so that no two runs share any   (the time)
--   MESSAGE      a file of bench/messages: its vendor's POST in place of Adjust's GET ()
--   JSON         if set: print one line of JSON instead of the summary of wrk alone
--
-- More connections than 1,000 need `ulimit -n`. Rate and percentiles at a fixed rate: bench/k6.

local function setting(name, default) return os.getenv(name) or default end

local secret = setting("SECRET", "demo-secret")
local app_token = setting("APP_TOKEN", "abc123token")
local event_token = setting("EVENT_TOKEN", "g3mz3t")
local duplicates = tonumber(setting("DUPLICATES", "0"))
local unmapped = tonumber(setting("UNMAPPED", "0"))
local run = setting("RUN", tostring(os.time()))
local message_file = os.getenv("MESSAGE")

-- Repeats come this many callbacks after the first at the earliest: that one is answered by then,
-- or is still being written, and both happen to a real vendor.
local LAG = 500
local COUNTRIES = {"us", "de", "br", "jp", "in"}
local CURRENCIES = {"USD", "EUR", "JPY"}

local threads = {}
local place = 0

function setup(thread)
  place = place + 1
  thread:set("place", place)
  table.insert(threads, thread)
end

function init()
  math.randomseed(os.time() + 7919 * place)
  -- Of one thread each; `done` reads them.
  generated, fresh, dropped = 0, 0, 0
  started = os.time()
  head = wrk.path .. "?secret=" .. secret .. "&app_token=" .. app_token .. "&event_token="
  target = wrk.path .. "?secret=" .. secret .. "&app_token=" .. app_token
  user = "&user_id=" .. run .. "-" .. place .. "-"
end

-- A message with its blanks filled in, as a POST.
local message, is_branch
if message_file then
  local file = assert(io.open(message_file))
  message = file:read("a"):gsub("%s+$", "")
  file:close()
  is_branch = message_file:find("branch") ~= nil
end

local function post(number, token)
  local moment = started - number % 300
  local cents = (number * 7919) % 100000 + 1
  local values = {
    event = token, os = "android", country = COUNTRIES[number % 5 + 1]:upper(),
    time = is_branch and string.format("%d000", moment) or os.date("!%Y-%m-%d %H:%M:%S.000", moment),
    device = string.format("%08x-%d-%d", (number * 40503) % 4294967296, place, number),
    revenue = string.format("%d.%02d", cents / 100, cents % 100),
    currency = CURRENCIES[number % 3 + 1], campaign = "Campaign " .. number % 90,
    user = run .. "-" .. place .. "-" .. number, id = run .. place .. number,
  }
  return wrk.format("POST", target, {["Content-Type"] = "application/json"},
    (message:gsub("@(%w+)@", values)))
end

-- Everything of callback `number` follows from the number: sent again, it is the same.
local function path(number, token)
  local cents = (number * 7919) % 100000 + 1
  return string.format(
    "%s%s&activity_kind=event&created_at=%d&os_name=android&country=%s"
      .. "&adid=%08x%08x%08x%08x&gps_adid=%%7Bgps_adid%%7D&revenue=%d&revenue_float=%d.%02d"
      .. "&currency=%s&environment=production"
      .. "&tracker_name=Network%d%%3A%%3ACampaign+%d%%3A%%3AGr%%C3%%B6%%C3%%9Fe%s%d",
    head, token, started - number % 300, COUNTRIES[number % 5 + 1],
    (number * 40503) % 4294967296, (number * 65599) % 4294967296, place, number,
    cents, cents / 100, cents % 100, CURRENCIES[number % 3 + 1],
    number % 7, number % 90, user, number)
end

local function callback(number, token)
  if message then return post(number, token) end
  return wrk.format("GET", path(number, token))
end

function request()
  generated = generated + 1
  local dice = math.random()
  if dice < unmapped then
    dropped = dropped + 1
    return callback(generated, "zzzzzz")
  end
  if dice < unmapped + duplicates and fresh > LAG then
    local earlier = math.random(math.max(1, fresh - 20 * LAG), fresh - LAG)
    return callback(earlier, event_token)
  end
  fresh = fresh + 1
  return callback(fresh, event_token)
end

function done(summary, latency, requests)
  if not os.getenv("JSON") then return end
  local sums = {generated = 0, fresh = 0, dropped = 0}
  for _, thread in ipairs(threads) do
    for name, sum in pairs(sums) do sums[name] = sum + thread:get(name) end
  end
  local errors = summary.errors
  io.write(string.format(
    '{"requests":%d,"duration_s":%.6f,"generated":%d,"fresh":%d,"dropped":%d,"not_200":%d,'
      .. '"broken":%d,"timed_out":%d,"p50_ms":%.3f,"p95_ms":%.3f,"p99_ms":%.3f}\n',
    summary.requests, summary.duration / 1e6, sums.generated, sums.fresh, sums.dropped,
    errors.status, errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
