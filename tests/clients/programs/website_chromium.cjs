// A page in Chromium, by default @segment/analytics-next's: URL, write key, a JSON list of calls, and a JSON object of options.
// CHROMIUM: the browser's program. WEBSITE: another page, which needs to be told nothing.
const { chromium } = require("playwright-core");
const { listen, untilClosed } = require("./website_server.cjs");

async function main() {
  const [url, writeKey, calls, options] = process.argv.slice(2);
  const { signature, batching } = JSON.parse(options || "{}");
  // The sandbox needs what containers do not give; the only page opened is our own.
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
  try {
    const page = await browser.newPage();
    page.on("pageerror", (problem) => console.error(problem.message));
    await page.goto(await listen());
    const told = [url, writeKey, JSON.parse(calls), signature, batching];
    if (!process.env.WEBSITE) await page.evaluate((given) => window.tell(...given), told);
    await untilClosed();
  } finally {
    await browser.close();
  }
  process.exit(0);
}

main();
