// A module of a website in jsdom, as a bundler would put it there: its imports come from node_modules. MODULE: the file.
const { pathToFileURL } = require("url");
const { JSDOM } = require("jsdom");
const { untilClosed } = require("./website_server.cjs");

const { window } = new JSDOM("<!doctype html><html><body></body></html>", { url: "http://127.0.0.1/", pretendToBeVisual: true });
for (const name of ["window", "self", "document", "navigator", "location", "localStorage", "sessionStorage", "history"])
  Object.defineProperty(globalThis, name, { value: window[name], configurable: true });

async function main() {
  await import(pathToFileURL(process.env.MODULE));
  await untilClosed();
  process.exit(0);
}

main();
