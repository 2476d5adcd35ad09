// RATE callbacks a second (200) for DURATION (2h): does memory grow, does anything fail, does p99
// stay below P99_MS (250)? Watch the metrics of the gateway meanwhile, and send some DUPLICATES and
// UNMAPPED ones, as vendors do: these are kept in quarantine up to their share, then skipped.
// The other settings, and how to run it: callbacks.js, beside this file.

import { RATE, duration, options as common, send, setup } from "./callbacks.js";

export const options = common(
  { executor: "constant-arrival-rate", rate: RATE, timeUnit: "1s", duration: duration("2h") },
  250,
);
export { setup };
export default send;
