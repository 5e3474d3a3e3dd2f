// @jitsu/js: URL, write key and a JSON list of calls; its lines are those of docs/clients.
// Environment: BARE=1 leaves out the fetch that tries again.
const { jitsuAnalytics } = require("@jitsu/js");

async function patientFetch(url, request) {
  for (let wait = 500; ; wait = Math.min(wait * 2, 30000)) {
    const answer = await fetch(url, request).catch(() => null);
    if (answer && answer.status !== 429 && answer.status < 500) return answer;
    const asked = 1000 * Number(answer?.headers.get("retry-after") || 0);
    await new Promise((resume) => setTimeout(resume, Math.max(wait, asked)));
  }
}

async function main() {
  const [url, writeKey, calls] = process.argv.slice(2);
  const patience = process.env.BARE ? {} : { fetch: patientFetch };
  const analytics = jitsuAnalytics({ host: url, writeKey, ...patience });

  for (const { call, event, userId, groupId, anonymousId, name, traits, properties } of JSON.parse(calls)) {
    if (anonymousId) analytics.setAnonymousId(anonymousId);
    if (call === "identify") await analytics.identify(userId, traits);
    if (call === "track") await analytics.track(event, properties);
    if (call === "page") await analytics.page({ name, ...properties });
    if (call === "group") await analytics.group(groupId, traits);
  }
}

main();
