// matrix-js-sdk in Node.

import { serve } from "./lines.js";
import { callClient, makeClient } from "./sdk.js";

await serve({ makeClient, callClient });
