// A push notification to everyone: RATE (200) callbacks a second, ten times as many at once, and
// RATE again, a third of DURATION (90s) each. 503 is allowed in the spike, since a vendor tries
// again; what is answered otherwise is answered with 200, and p99 stays below P99_MS (5000).
// The other settings, and how to run it: callbacks.js, beside this file.

import http from "k6/http";
import { RATE, options as common, send, setup, third } from "./callbacks.js";

http.setResponseCallback(http.expectedStatuses(200, 503));

export const options = common(
  {
    executor: "ramping-arrival-rate",
    startRate: RATE,
    timeUnit: "1s",
    stages: [
      { target: RATE, duration: third("90s") },
      { target: 10 * RATE, duration: "0s" },
      { target: 10 * RATE, duration: third("90s") },
      { target: RATE, duration: "0s" },
      { target: RATE, duration: third("90s") },
    ],
  },
  5000,
);
export { setup };
export default send;
