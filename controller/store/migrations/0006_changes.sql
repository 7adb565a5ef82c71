-- One more with every writing transaction: each controller sees by it that another wrote.
ALTER TABLE controller ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
