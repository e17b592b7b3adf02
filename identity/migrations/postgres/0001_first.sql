-- Times are milliseconds since the epoch. Addresses, tokens and secrets stand here only as keyed hashes
-- (fingerprint, *_hash) or sealed (*_sealed); see docs/decisions/0004-sealed-addresses.md.

CREATE TABLE settings (
    name  TEXT NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE accounts (
    mxid       TEXT   NOT NULL PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

CREATE TABLE access_tokens (
    token_hash BYTEA  NOT NULL PRIMARY KEY,
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
    fingerprint        BYTEA  NOT NULL,
    address_sealed     BYTEA  NOT NULL,
    client_secret_hash BYTEA  NOT NULL,
    next_link_sealed   BYTEA,
    send_attempt       BIGINT NOT NULL,
    attempts           BIGINT NOT NULL DEFAULT 0,
    requested_ms       BIGINT NOT NULL,
    validated_ms       BIGINT,
    UNIQUE (fingerprint, client_secret_hash)
);
CREATE INDEX validation_sessions_requested ON validation_sessions (requested_ms);

-- An address that was unbound keeps its row for a while, without an mxid.
CREATE TABLE associations (
    fingerprint    BYTEA  NOT NULL PRIMARY KEY,
    medium         TEXT   NOT NULL,
    address_sealed BYTEA  NOT NULL,
    mxid           TEXT,
    bound_ms       BIGINT NOT NULL,
    -- The transaction that changed the row last, so that replicas can follow. Sequences would not do: they commit
    -- out of order, and a reader that went past a number would never see a row that committed late.
    changed        BIGINT NOT NULL DEFAULT pg_current_xact_id()::text::bigint
);
CREATE INDEX associations_mxid ON associations (mxid);
CREATE INDEX associations_changed ON associations (changed);

CREATE FUNCTION associations_mark_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.changed := pg_current_xact_id()::text::bigint;
    RETURN NEW;
END $$;
CREATE TRIGGER associations_mark_changed BEFORE INSERT OR UPDATE ON associations
    FOR EACH ROW EXECUTE FUNCTION associations_mark_changed();

-- Once a statement, and PostgreSQL itself sends equal notices of one transaction once. The notice is a hint to look;
-- what changed is read from the table.
CREATE FUNCTION associations_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('waypost_associations', '');
    RETURN NULL;
END $$;
CREATE TRIGGER associations_tell AFTER INSERT OR UPDATE ON associations
    FOR EACH STATEMENT EXECUTE FUNCTION associations_tell();

CREATE TABLE peppers (
    pepper     TEXT   NOT NULL PRIMARY KEY,
    created_ms BIGINT NOT NULL
);

-- A budget as the time at which it will be full again (GCRA).
CREATE TABLE rate_limits (
    bucket  TEXT   NOT NULL,
    key     BYTEA  NOT NULL,
    full_ms BIGINT NOT NULL,
    PRIMARY KEY (bucket, key)
);
CREATE INDEX rate_limits_full ON rate_limits (full_ms);
