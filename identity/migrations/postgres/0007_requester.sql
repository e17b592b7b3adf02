-- The user who requested the token, sealed: the mail and the page say which account asks. NULL without an account (v1).
ALTER TABLE validation_sessions ADD COLUMN requester_sealed BYTEA;
