// @jitsu/js: URL, write key and a JSON list of calls; its lines are those of docs/clients.
// Environment: BARE=1 leaves out the fetch that tries again.
const { jitsuAnalytics } = require("@jitsu/js");

async function patient(url, request, wait = 0.5) {
  const answer = await fetch(url, request).catch(() => new Response(null, { status: 503 }));
  if (answer.status !== 429 && answer.status < 500) return answer;
  await new Promise((go) => setTimeout(go, 1000 * Math.max(wait, Number(answer.headers.get("retry-after")) || 0)));
  return patient(url, request, Math.min(2 * wait, 30));
}

async function main() {
  const [url, writeKey, calls] = process.argv.slice(2);
  const patience = process.env.BARE ? {} : { fetch: patient };
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
