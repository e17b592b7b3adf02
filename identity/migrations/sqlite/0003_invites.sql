-- Invites that wait for their address to be bound. They are removed when it is, when they are revoked, and when they
-- expire.
CREATE TABLE invites (
    token_hash     BLOB   NOT NULL PRIMARY KEY,
    token_sealed   BLOB   NOT NULL,
    medium         TEXT   NOT NULL,
    fingerprint    BLOB   NOT NULL,
    address_sealed BLOB   NOT NULL,
    room_id        TEXT   NOT NULL,
    sender         TEXT   NOT NULL,
    -- The long-term key whose public half went into the room: it has to sign what lets the user in.
    key_id         TEXT   NOT NULL,
    -- The public key that was made for this invite. NULL where that is not known: Sydent does not keep it.
    ephemeral_key  BLOB,
    created_ms     BIGINT NOT NULL,
    expires_ms     BIGINT NOT NULL
);
CREATE INDEX invites_fingerprint ON invites (fingerprint);
CREATE INDEX invites_sender ON invites (sender);
CREATE INDEX invites_expires ON invites (expires_ms);

-- A key stays valid for as long as its invite waits, and for ever once the invite was handed out (NULL), because
-- servers of the room go on asking.
CREATE TABLE ephemeral_keys (
    public_key BLOB   NOT NULL PRIMARY KEY,
    expires_ms BIGINT
);
CREATE INDEX ephemeral_keys_expires ON ephemeral_keys (expires_ms);

-- What homeservers still have to be told (onbind). A row that is leased is due again when its lease ends; one that was
-- delivered is removed; one that was given up has a time of death and waits for an operator.
CREATE TABLE outbox (
    id             TEXT   NOT NULL PRIMARY KEY,
    mxid           TEXT   NOT NULL,
    payload_sealed BLOB   NOT NULL,
    since_ms       BIGINT NOT NULL,
    due_ms         BIGINT NOT NULL,
    attempts       BIGINT NOT NULL DEFAULT 0,
    failure        TEXT,
    dead_ms        BIGINT
);
CREATE INDEX outbox_due ON outbox (dead_ms, due_ms);
CREATE INDEX outbox_mxid ON outbox (mxid);
