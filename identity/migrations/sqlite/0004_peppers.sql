-- From when on a pepper is handed out; NULL is from its creation. Until then the server prepares for it.
ALTER TABLE peppers ADD COLUMN active_ms BIGINT;

-- What is removed some time after it was unbound.
CREATE INDEX associations_unbound ON associations (bound_ms) WHERE mxid IS NULL;

-- Commands are processes of their own, so that the server has to follow what they change. SQLite's transactions commit
-- in the order in which they write, so that a counter tells what is new.
CREATE TABLE association_changes (
    number BIGINT NOT NULL
);
INSERT INTO association_changes (number) VALUES (0);
ALTER TABLE associations ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;
CREATE INDEX associations_changed ON associations (changed);

CREATE TRIGGER associations_inserted AFTER INSERT ON associations BEGIN
    UPDATE association_changes SET number = number + 1;
    UPDATE associations SET changed = (SELECT number FROM association_changes) WHERE fingerprint = NEW.fingerprint;
END;
CREATE TRIGGER associations_updated AFTER UPDATE OF address_sealed, mxid, bound_ms ON associations BEGIN
    UPDATE association_changes SET number = number + 1;
    UPDATE associations SET changed = (SELECT number FROM association_changes) WHERE fingerprint = NEW.fingerprint;
END;
