// RATE callbacks a second (200) for DURATION (30s), p99 below P99_MS (100).
// The other settings, and how to run it: callbacks.js, beside this file.

import { RATE, duration, options as common, send, setup } from "./callbacks.js";

export const options = common(
  { executor: "constant-arrival-rate", rate: RATE, timeUnit: "1s", duration: duration("30s") },
  100,
);
export { setup };
export default send;
