// What the tests and the programs here say to each other: a line of JSON each way, `{call, ...}` and `{ok}` or
// `{error}`.

import { createInterface } from "node:readline";

/**
 * Answers each line of stdin, one after another, until stdin ends; then exits.
 *
 * `calls` holds a function for each name that a line may have as `call`; it gets the whole line as an object. What it
 * throws is answered as `{error: {name, message}}`, and with what a MatrixError has besides.
 */
export async function serve(calls, end = async () => {}) {
    // Standard output is for answers only, and libraries like to talk.
    for (const name of ["log", "info", "debug", "trace"]) console[name] = console.error;
    for await (const line of createInterface({ input: process.stdin })) {
        const request = JSON.parse(line);
        let answer;
        try {
            answer = { ok: (await calls[request.call](request)) ?? null };
        } catch (error) {
            answer = { error: { name: error.name, message: error.message, stack: error.stack } };
        }
        process.stdout.write(JSON.stringify(answer) + "\n");
    }
    await end();
    process.exit(0);
}
