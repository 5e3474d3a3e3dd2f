// @rudderstack/rudder-sdk-node: URL, write key and a JSON list of calls; its five lines are those of docs/clients.
const RudderAnalytics = require("@rudderstack/rudder-sdk-node");

async function main() {
  const [url, writeKey, calls] = process.argv.slice(2);
  const analytics = new RudderAnalytics(writeKey, { dataPlaneUrl: url, flushInterval: 500 });

  const answers = [];
  for (const { call, ...given } of JSON.parse(calls)) {
    if (given.timestamp) given.timestamp = new Date(given.timestamp);
    // The callback comes when the answer to the event's batch is there.
    answers.push(new Promise((done) => analytics[call](given, (problem) => done(problem))));
  }
  const problems = (await Promise.all(answers)).filter(Boolean);
  problems.forEach((problem) => console.error(String(problem)));
  process.exit(0); // its timer would keep the program alive
}

main();
