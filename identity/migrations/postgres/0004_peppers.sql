-- From when on a pepper is handed out; NULL is from its creation. Until then replicas prepare for it.
ALTER TABLE peppers ADD COLUMN active_ms BIGINT;

-- What is removed some time after it was unbound.
CREATE INDEX associations_unbound ON associations (bound_ms) WHERE mxid IS NULL;

CREATE FUNCTION peppers_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('waypost_peppers', '');
    RETURN NULL;
END $$;
CREATE TRIGGER peppers_tell AFTER INSERT ON peppers
    FOR EACH STATEMENT EXECUTE FUNCTION peppers_tell();

-- So that no replica goes on believing a token that ended. Told when the transaction commits.
CREATE FUNCTION access_tokens_tell() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('waypost_tokens', encode(OLD.token_hash, 'base64'));
    RETURN NULL;
END $$;
CREATE TRIGGER access_tokens_tell AFTER DELETE ON access_tokens
    FOR EACH ROW EXECUTE FUNCTION access_tokens_tell();
