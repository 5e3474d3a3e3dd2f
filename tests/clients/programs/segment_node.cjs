// @segment/analytics-node: URL, write key and a JSON list of calls; its five lines are those of docs/clients.
const { Analytics } = require("@segment/analytics-node");

const [url, writeKey, calls] = process.argv.slice(2);
const analytics = new Analytics({ writeKey, host: url, path: "/v1/batch" });
analytics.on("error", (problem) => console.error(problem.code, problem.reason));

for (const { call, ...given } of JSON.parse(calls)) {
  analytics[call](given);
}
analytics.closeAndFlush(); // sends what waits; the program ends after the answers
