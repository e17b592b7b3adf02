// matrix-js-sdk in a page: bundled by esbuild into what the page loads.

import { callClient, makeClient } from "./sdk.js";

globalThis.sdk = { makeClient, callClient };
