// Unique, realistic callbacks for the scripts beside this one. Each of them runs against
// any URL:
//
//   k6 run --no-usage-report -e URL=http://127.0.0.1:8000/ingest/adjust -e RATE=200 bench/k6/steady.js
//
// In the environment, or as -e NAME=value:
//   URL          where callbacks go                     (http://127.0.0.1:8000/ingest/adjust)
//   SECRET       the vendor's secret                    (demo-secret)
//   APP_TOKEN    an app of the workspaces file          (abc123token)
//   EVENT_TOKEN  one of its events                      (g3mz3t)
//   MESSAGE      a file of bench/messages: its vendor's POST in place of Adjust's GET ();
//                its path is absolute, and URL that of the vendor
//   RATE         callbacks a second; each script says of what (200)
//   DURATION     how long, as in 30s or 5m; each script has its own default
//   DUPLICATES   share that was sent before, 0 to 1     (0)
//   UNMAPPED     share with a token that nobody has mapped (0); these fill quarantine
//   P99_MS       the threshold of the 99th percentile   (each script has its own default)
//   CALLERS      connections that are opened ahead      (64); at most 4 times as many
//   WARM_UP      so long RATE callbacks a second go ahead, which no threshold counts (0s)
//   RUN          names the users, so that no two runs share any (the time)
//
// Without --no-usage-report k6 tells its makers, over the internet, that it was run.
//
// Thresholds that do not hold make k6 exit with 99. The load is an open loop: callbacks begin when
// they are due, whatever becomes of the others; `dropped_iterations` counts those for which there
// was no caller left.

import exec from "k6/execution";
import http from "k6/http";
import { Counter } from "k6/metrics";

const setting = (name, otherwise) => __ENV[name] || otherwise;

const TARGET = setting("URL", "http://127.0.0.1:8000/ingest/adjust");
const EVENT_TOKEN = setting("EVENT_TOKEN", "g3mz3t");
const DUPLICATES = Number(setting("DUPLICATES", "0"));
const UNMAPPED = Number(setting("UNMAPPED", "0"));
const APP =
  `${TARGET}?secret=${encodeURIComponent(setting("SECRET", "demo-secret"))}` +
  `&app_token=${setting("APP_TOKEN", "abc123token")}`;
const MESSAGE = setting("MESSAGE", "") && open(__ENV.MESSAGE).trim();
const IS_BRANCH = setting("MESSAGE", "").includes("branch");
// Repeats come this many callbacks after the first at the earliest.
const LAG = 100;
const COUNTRIES = ["us", "de", "br", "jp", "in"];
const CURRENCIES = ["USD", "EUR", "JPY"];

export const RATE = Number(setting("RATE", "200"));
export const duration = (otherwise) => setting("DURATION", otherwise);

function seconds(text) {
  const units = { h: 3600, m: 60, s: 1 };
  const parts = [...text.matchAll(/([0-9.]+)([hms])/g)];
  return parts.reduce((sum, [, number, unit]) => sum + number * units[unit], 0);
}

// A third of the duration, as k6 takes it in stages.
export function third(otherwise) {
  return `${Math.max(1, Math.round(seconds(duration(otherwise)) / 3))}s`;
}

const written = new Counter("callbacks_written");
const duplicate = new Counter("callbacks_duplicate");
const dropped = new Counter("callbacks_dropped");
const lost = new Counter("callbacks_unanswered");

// The options of a script: its scenario, and what must hold.
export function options(scenario, p99Ms) {
  const callers = Number(setting("CALLERS", "64"));
  const vus = { preAllocatedVUs: callers, maxVUs: 4 * callers };
  const scenarios = { load: { ...vus, ...scenario } };
  const warmUp = seconds(setting("WARM_UP", "0s"));
  if (warmUp > 0) {
    // Only one that is over for certain leaves its callers, and their connections, to the next.
    scenarios.load.startTime = `${warmUp + 1}s`;
    const steady = { executor: "constant-arrival-rate", rate: RATE, timeUnit: "1s" };
    scenarios.warm_up = { ...vus, ...steady, duration: `${warmUp}s`, gracefulStop: "1s" };
  }
  return {
    scenarios,
    thresholds: {
      "http_req_failed{scenario:load}": ["rate<0.001"],
      "http_req_duration{scenario:load}": [`p(99)<${setting("P99_MS", String(p99Ms))}`],
      "dropped_iterations{scenario:load}": ["count<1"],
    },
    summaryTrendStats: ["min", "med", "avg", "p(90)", "p(95)", "p(99)", "p(99.9)", "max"],
    discardResponseBodies: false,
    // A redirect would be final for a vendor: it must be seen.
    maxRedirects: 0,
  };
}

// What every caller must agree on: the names of the users, and the time that events count from.
export function setup() {
  const now = Math.floor(Date.now() / 1000);
  return { run: setting("RUN", String(now)), now };
}

// Everything of a callback follows from its number: sent again, it is the same.
function query(number, token, data) {
  const cents = ((number * 7919) % 100000) + 1;
  const hex = ((number * 40503) >>> 0).toString(16).padStart(8, "0");
  return (
    `${token}&activity_kind=event&created_at=${data.now - (number % 300)}&os_name=android` +
    `&country=${COUNTRIES[number % 5]}&adid=${hex}${hex}${hex}${hex}&gps_adid=%7Bgps_adid%7D` +
    `&revenue=${cents}&revenue_float=${(cents / 100).toFixed(2)}` +
    `&currency=${CURRENCIES[number % 3]}&environment=production` +
    `&tracker_name=Network${number % 7}%3A%3ACampaign+${number % 90}%3A%3AGr%C3%B6%C3%9Fe` +
    `&user_id=${data.run}-${exec.scenario.name}-${number}`
  );
}

// The message of a vendor that sends JSON: likewise.
function message(number, token, data) {
  const moment = data.now - (number % 300);
  const iso = new Date(moment * 1000).toISOString();
  const cents = ((number * 7919) % 100000) + 1;
  const user = `${data.run}-${exec.scenario.name}-${number}`;
  const values = {
    event: token, os: "android", country: COUNTRIES[number % 5].toUpperCase(),
    time: IS_BRANCH ? `${moment}000` : iso.replace("T", " ").replace("Z", ""),
    device: `${number}-${number * 40503}`, revenue: (cents / 100).toFixed(2),
    currency: CURRENCIES[number % 3], campaign: `Campaign ${number % 90}`, user, id: user,
  };
  return MESSAGE.replace(/@(\w+)@/g, (_, name) => values[name]);
}

// The same for every caller, who does not know what the others have sent.
function dice(number) {
  return (Math.imul(number, 2654435761) >>> 0) / 4294967296;
}

const isFresh = (number) => number <= LAG || dice(number) >= UNMAPPED + DUPLICATES;

export function send(data) {
  let number = exec.scenario.iterationInTest;
  let token = EVENT_TOKEN;
  if (dice(number) < UNMAPPED) {
    token = "zzzzzz";
  } else if (!isFresh(number)) {
    // One of those that were sent as a first, at any time before.
    number = Math.floor(Math.random() * Math.max(1, number - LAG));
    while (number > 0 && !isFresh(number)) number -= 1;
  }
  // One name for all, or k6 keeps figures for every URL apart.
  const tags = { name: "callback" };
  const answer = MESSAGE
    ? http.post(APP, message(number, token, data), {
        tags, headers: { "Content-Type": "application/json" },
      })
    : http.get(`${APP}&event_token=${query(number, token, data)}`, { tags });
  const body = answer.body || "";
  if (answer.status !== 200) lost.add(1);
  else if (body.includes('"written":1')) written.add(1);
  else if (body.includes('"duplicate":1')) duplicate.add(1);
  else dropped.add(1);
}
