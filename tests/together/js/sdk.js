// matrix-js-sdk, called by name: the same in Node and in a page.

import { createClient } from "matrix-js-sdk";

const clients = new Map();

/**
 * Makes the client `name`, of the homeserver `baseUrl` and the identity server `idBaseUrl`.
 *
 * `userId` and `accessToken` are of the homeserver; `identityToken` is what the client says to the homeserver when that
 * is to speak to the identity server.
 */
export function makeClient({ name, baseUrl, idBaseUrl, userId, accessToken, identityToken }) {
    const identityServer = { getAccessToken: async () => identityToken };
    clients.set(name, createClient({ baseUrl, idBaseUrl, userId, accessToken, identityServer }));
}

/**
 * Calls `method` of the client `name`. Answers `{value}`, or `{thrown}` with what a MatrixError says.
 */
export async function callClient({ name, method, args }) {
    try {
        const value = await clients.get(name)[method](...args);
        // A Room refers to everything; its id is enough.
        return { value: value?.roomId ? { roomId: value.roomId } : value };
    } catch (error) {
        const { name, message, errcode, httpStatus, data } = error;
        return { thrown: { name, message, errcode, httpStatus, data } };
    }
}
