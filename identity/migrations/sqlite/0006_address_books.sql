-- The addresses that an account has looked up, as 32 bits of their lookup hashes, sealed. An address is charged only
-- when an account asks for it for the first time.
CREATE TABLE address_books (
    account    BLOB  NOT NULL PRIMARY KEY,
    sealed     BLOB  NOT NULL,
    changed_ms BIGINT NOT NULL
);
CREATE INDEX address_books_changed ON address_books (changed_ms);

-- When a homeserver's users were first seen, by a keyed hash of its registrable domain. The budgets of homeservers that
-- the operator has not named grow with their age.
CREATE TABLE homeservers (
    owner         BLOB  NOT NULL PRIMARY KEY,
    first_seen_ms BIGINT NOT NULL
);
