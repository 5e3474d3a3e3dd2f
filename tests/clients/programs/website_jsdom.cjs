// @segment/analytics-next in jsdom: URL, write key, a JSON list of calls, and a JSON object of options.
const { JSDOM, VirtualConsole } = require("jsdom");
const { listen, untilClosed } = require("./website_server.cjs");

async function main() {
  const [url, writeKey, calls, options] = process.argv.slice(2);
  const { signature, batching } = JSON.parse(options || "{}");
  const said = new VirtualConsole().on("jsdomError", (problem) => console.error(problem.message));
  const page = await JSDOM.fromURL(await listen(), {
    runScripts: "dangerously",
    resources: "usable",
    pretendToBeVisual: true,
    virtualConsole: said,
  });
  const { window } = page;
  await new Promise((loaded) => window.addEventListener("load", loaded));
  if (window.tell) await window.tell(url, writeKey, JSON.parse(calls), signature, batching);
  await untilClosed();
  process.exit(0);
}

main();
