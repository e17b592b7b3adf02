-- Until when a message is being sent. When that time is over and it is not NULL, its sender died before it knew whether
-- the message went out, and the same send_attempt sends again.
ALTER TABLE validation_sessions ADD COLUMN sending_until_ms BIGINT;
