// The shop's website: serves website.html, the bundle of @segment/analytics-next and the module of @jitsu/js, on a port (so: an
// origin) of its own. WEBSITE: another page in its place.
const fs = require("fs");
const http = require("http");
const path = require("path");

const BUNDLE = path.join(path.dirname(require.resolve("@segment/analytics-next/package.json")), "dist", "umd");
const JITSU = path.join(path.dirname(require.resolve("@jitsu/js")), "jitsu.es.js");
const BUNDLES = "/analytics-next/bundles/"; // where the library looks for its parts

exports.listen = () =>
  new Promise((listening) => {
    const server = http.createServer((request, response) => {
      const { pathname } = new URL(request.url, "http://site");
      const wanted = pathname.startsWith(BUNDLES)
        ? path.join(BUNDLE, path.basename(pathname))
        : pathname === "/jitsu.js"
        ? JITSU
        : process.env.WEBSITE || path.join(__dirname, "website.html");
      if (!fs.existsSync(wanted)) return response.writeHead(404).end();
      const type = wanted.endsWith(".js") ? "text/javascript" : "text/html; charset=utf-8";
      response.writeHead(200, { "Content-Type": type }).end(fs.readFileSync(wanted));
    });
    server.listen(0, "127.0.0.1", () => listening(`http://127.0.0.1:${server.address().port}/`));
  });

// Programs of the website stay open as a page does, until their standard input is closed.
exports.untilClosed = () => new Promise((closed) => process.stdin.resume().on("end", closed));
