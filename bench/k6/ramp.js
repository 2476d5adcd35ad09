// For autoscaling: from a tenth of RATE (200) up to RATE and down again, in DURATION (10m).
// A third of the time goes up, a third stays there, and a third goes down, so that replicas are
// added and taken away under load; nothing may fail meanwhile, and p99 stays below P99_MS (500).
// The other settings, and how to run it: callbacks.js, beside this file.

import { RATE, options as common, send, setup, third } from "./callbacks.js";

const low = Math.max(1, Math.round(RATE / 10));
export const options = common(
  {
    executor: "ramping-arrival-rate",
    startRate: low,
    timeUnit: "1s",
    stages: [
      { target: RATE, duration: third("10m") },
      { target: RATE, duration: third("10m") },
      { target: low, duration: third("10m") },
    ],
  },
  500,
);
export { setup };
export default send;
