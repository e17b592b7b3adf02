// Debian's Chromium, driven: matrix-js-sdk in a page, and the pages and mails of Waypost as people see them.

import { createServer } from "node:http";
import { fileURLToPath } from "node:url";

import { build } from "esbuild";
import { chromium } from "playwright-core";

import { lookAt, pictures } from "./look.js";
import { serve } from "./lines.js";

// What a browser in a test must not do: ask its maker for updates, or want a graphics card.
const FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
];
const PATIENCE_MS = 20_000;

const browser = await chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });

// --- An origin of our own: the page with the library in it, and mails ------------------------------------------------

const bundle = await build({
    entryPoints: [fileURLToPath(new URL("page.js", import.meta.url))],
    bundle: true,
    format: "esm",
    write: false,
    logLevel: "error",
});
const served = {
    "/": ["text/html", '<!doctype html><title>app</title><script type="module" src="/app.js"></script>'],
    "/app.js": ["text/javascript", bundle.outputFiles[0].text],
};
const server = createServer((request, response) => {
    const [type, text] = served[request.url] ?? ["image/x-icon", ""];
    response.writeHead(text ? 200 : 204, { "Content-Type": `${type}; charset=utf-8` }).end(text);
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const origin = `http://127.0.0.1:${server.address().port}`;

// --- matrix-js-sdk in a page -----------------------------------------------------------------------------------------

/** The page with the library, opened when it is first needed; and the preflights that the browser sent for it. */
let app;
const preflights = [];

async function appPage() {
    if (app) return app;
    const context = await browser.newContext({ ignoreHTTPSErrors: true });
    const page = await context.newPage();
    page.on("console", (line) => console.error(line.text()));
    page.on("pageerror", (error) => console.error(String(error)));
    const protocol = await context.newCDPSession(page);
    await protocol.send("Network.enable");
    protocol.on("Network.requestWillBeSent", ({ request }) => {
        if (request.method === "OPTIONS") preflights.push(request.url);
    });
    await page.goto(`${origin}/`);
    await page.waitForFunction(() => globalThis.sdk, undefined, { timeout: PATIENCE_MS });
    app = page;
    return page;
}

const inApp = async (work, argument) => (await appPage()).evaluate(work, argument);

// --- Pages -----------------------------------------------------------------------------------------------------------

/** The one page that is being looked at, and what happened in it. */
let tab;

async function open({ url, html, locale = "en-GB", width = 800 }) {
    await close();
    const context = await browser.newContext({ locale, viewport: { width, height: 700 }, ignoreHTTPSErrors: true });
    const page = await context.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    tab = { context, page, console: [], requests: [], answers: [] };
    const { console: said, requests, answers } = tab;
    page.on("console", (line) => said.push({ type: line.type(), text: line.text(), url: line.location().url }));
    page.on("pageerror", (error) => said.push({ type: "exception", text: String(error) }));
    page.on("request", (request) => requests.push({ method: request.method(), url: request.url() }));
    page.on("response", (response) => {
        if (response.request().isNavigationRequest()) answers.push(response);
    });
    if (html !== undefined) served["/mail"] = ["text/html", html];
    await page.goto(url ?? `${origin}/mail`);
    return look();
}

async function look() {
    const response = tab.answers.at(-1);
    const headers = await response.allHeaders();
    const sent = await response.request().allHeaders();
    return { status: response.status(), headers, sent, ...(await lookAt(tab.page)) };
}

/** Does what leads to another page, and looks at that. */
async function follow(action) {
    await Promise.all([tab.page.waitForNavigation({ timeout: PATIENCE_MS }), action]);
    return look();
}

/** Closes the page: what it said, and what it asked for. */
async function close() {
    if (!tab) return null;
    const { context, console: said, requests, answers } = tab;
    tab = undefined;
    await context.close();
    // The browser itself says of a page that came with an error's status that it did.
    const itself = (line) =>
        line.text.startsWith("Failed to load resource: the server responded with a status of 4") &&
        answers.some((answer) => answer.status() >= 400 && answer.url() === line.url);
    return { console: said.filter((line) => !itself(line)), requests };
}

await serve(
    {
        origin: () => origin,
        makeClient: (request) => inApp((options) => globalThis.sdk.makeClient(options), request),
        callClient: (request) => inApp((options) => globalThis.sdk.callClient(options), request),
        preflights: () => preflights,
        // What a page of our origin gets when it asks for a URL: a status, or nothing where the browser forbids it.
        fetch: ({ url, options }) =>
            inApp(([url, options]) => fetch(url, options).then((r) => r.status, (e) => e.name), [url, options]),
        open,
        look,
        click: ({ selector }) => follow(tab.page.click(selector)),
        press: async ({ key }) => {
            await tab.page.keyboard.press(key);
            return look();
        },
        pressAndFollow: ({ key }) => follow(tab.page.keyboard.press(key)),
        pictures: ({ folder, name, widths }) => pictures(tab.page, folder, name, widths),
        close,
    },
    async () => {
        await browser.close();
        server.close();
    },
);
