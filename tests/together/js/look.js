// What a page looks like: to a person, to axe-core, and to a script that measures it.

import { join } from "node:path";

import axe from "axe-core";

const SCHEMES = ["light", "dark"];

/** What a page says: its address, title, language, text, and where the keyboard is. */
export function lookAt(page) {
    return page.evaluate(() => {
        const focused = document.activeElement;
        const visible = focused !== document.body && getComputedStyle(focused).outlineStyle !== "none";
        return {
            url: location.href,
            referrer: document.referrer,
            title: document.title,
            lang: document.documentElement.lang,
            heading: document.querySelector("h1")?.innerText,
            text: document.body.innerText,
            links: [...document.links].map((link) => link.href),
            focused: focused.innerText ?? "",
            focusIsVisible: visible,
            scripts: document.scripts.length,
        };
    });
}

/**
 * Takes a picture of the page at each of the `widths`, light and dark, into `folder`; returns what is wrong with it in any of
 * them, as texts: what axe-core finds, and what does not fit into the width.
 */
export async function pictures(page, folder, name, widths) {
    const wrong = [];
    for (const width of widths) {
        await page.setViewportSize({ width, height: 700 });
        for (const colorScheme of SCHEMES) {
            await page.emulateMedia({ colorScheme });
            const picture = `${name}-${width}-${colorScheme}`;
            await page.screenshot({ path: join(folder, `${picture}.png`), fullPage: true });
            const found = await tooWide(page);
            // What axe-core measures depends on the width or on the colours, not on both: so two of the four will do.
            if ((width === widths[0]) === (colorScheme === SCHEMES[0])) found.push(...(await violations(page)));
            wrong.push(...found.map((text) => `${picture}: ${text}`));
        }
    }
    return wrong;
}

async function violations(page) {
    await page.evaluate(`if (!window.axe) { ${axe.source} }`);
    const result = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
    if (result.passes.length === 0) throw new Error("axe-core looked at nothing");
    const told = ({ id, help, nodes }) => `axe: ${id}: ${help}: ${nodes.map((node) => node.html).join(" ")}`;
    return result.violations.map(told);
}

/** What sticks out of the window, or is cut off by what it is in. */
function tooWide(page) {
    return page.evaluate(() => {
        const root = document.documentElement;
        const found = [];
        if (root.scrollWidth > root.clientWidth) found.push(`${root.scrollWidth} pixels wide, of ${root.clientWidth}`);
        for (const element of document.body.querySelectorAll("*")) {
            const style = getComputedStyle(element);
            // What scrolls by itself may be as wide as it likes; text in a line has no width of its own.
            if (["auto", "scroll"].includes(style.overflowX) || style.display === "inline") continue;
            const [has, wants] = [element.clientWidth, element.scrollWidth];
            if (wants > has + 1) found.push(`${element.tagName} with ${wants} pixels in ${has}: ${element.innerText}`);
        }
        return found;
    });
}
