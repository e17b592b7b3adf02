-- Times are milliseconds since the epoch. Addresses, tokens and secrets stand here only as keyed hashes
-- (fingerprint, *_hash) or sealed (*_sealed); see docs/decisions/0004-sealed-addresses.md.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
);

CREATE TABLE accounts (
    mxid       TEXT   NOT NULL PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

CREATE TABLE access_tokens (
    token_hash BLOB   NOT NULL PRIMARY KEY,
    mxid       TEXT   NOT NULL REFERENCES accounts (mxid) ON DELETE CASCADE,
    created_ms BIGINT NOT NULL,
    used_ms    BIGINT NOT NULL
);
CREATE INDEX access_tokens_mxid ON access_tokens (mxid);
CREATE INDEX access_tokens_used ON access_tokens (used_ms);

CREATE TABLE accepted_terms (
    mxid        TEXT   NOT NULL REFERENCES accounts (mxid) ON DELETE CASCADE,
    policy      TEXT   NOT NULL,
    version     TEXT   NOT NULL,
    accepted_ms BIGINT NOT NULL,
    PRIMARY KEY (mxid, policy, version)
);

CREATE TABLE validation_sessions (
    sid                TEXT   NOT NULL PRIMARY KEY,
    medium             TEXT   NOT NULL,
    fingerprint        BLOB   NOT NULL,
    address_sealed     BLOB   NOT NULL,
    client_secret_hash BLOB   NOT NULL,
    next_link_sealed   BLOB,
    send_attempt       BIGINT NOT NULL,
    attempts           BIGINT NOT NULL DEFAULT 0,
    requested_ms       BIGINT NOT NULL,
    validated_ms       BIGINT,
    UNIQUE (fingerprint, client_secret_hash)
);
CREATE INDEX validation_sessions_requested ON validation_sessions (requested_ms);

-- An address that was unbound keeps its row for a while, without an mxid.
CREATE TABLE associations (
    fingerprint    BLOB   NOT NULL PRIMARY KEY,
    medium         TEXT   NOT NULL,
    address_sealed BLOB   NOT NULL,
    mxid           TEXT,
    bound_ms       BIGINT NOT NULL
);
CREATE INDEX associations_mxid ON associations (mxid);

CREATE TABLE peppers (
    pepper     TEXT   NOT NULL PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

-- A budget as the time at which it will be full again (GCRA).
CREATE TABLE rate_limits (
    bucket  TEXT   NOT NULL,
    key     BLOB   NOT NULL,
    full_ms BIGINT NOT NULL,
    PRIMARY KEY (bucket, key)
);
CREATE INDEX rate_limits_full ON rate_limits (full_ms);
