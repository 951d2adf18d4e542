-- When the janitor was told of a use last, by its own clock; 0: nobody told it.
ALTER TABLE uses ADD COLUMN heard INTEGER NOT NULL DEFAULT 0;
-- Whether the last one that kept the registry listened to notifications.
ALTER TABLE listener ADD COLUMN listened INTEGER NOT NULL DEFAULT 1;
