-- A ledger as the first version of the schema has it, with records: one of a running task, one that was being sent,
-- one that waits. `sqlite3 FILE .dump` of such a file; it is not to be brought up to date.
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
PRAGMA application_id = 1651074149;
PRAGMA user_version = 1;
BEGIN TRANSACTION;
CREATE TABLE clients (owner TEXT PRIMARY KEY, instance TEXT, origin TEXT, keys TEXT) WITHOUT ROWID;
CREATE TABLE creates (origin TEXT, kind TEXT, key TEXT, answered REAL);
CREATE TABLE lanes (
        origin TEXT, kind TEXT, key TEXT, paused_until REAL, learned INTEGER, learned_at REAL, setbacks INTEGER,
        setback_at REAL, probing INTEGER, window REAL, PRIMARY KEY (origin, kind, key)
    ) WITHOUT ROWID;
INSERT INTO "lanes" VALUES('https://api.example','image','k1',-9e999,NULL,0.0,0,-9e999,0,0.0);
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO "meta" VALUES('clock of an earlier start',0.0);
INSERT INTO "meta" VALUES('salt',X'91928B56587F480482437514B4573F5C');
CREATE TABLE news (id INTEGER PRIMARY KEY AUTOINCREMENT, ticket TEXT, instance TEXT, at REAL);
CREATE TABLE owners (instance TEXT PRIMARY KEY, pid INTEGER, host TEXT, started TEXT) WITHOUT ROWID;
CREATE TABLE records (
        sequence INTEGER PRIMARY KEY, ticket TEXT NOT NULL UNIQUE, origin TEXT NOT NULL, kind TEXT NOT NULL,
        keys TEXT NOT NULL, digest TEXT NOT NULL, model TEXT, owner TEXT, status TEXT NOT NULL, lane TEXT,
        task_id TEXT, added_at TEXT, admitted REAL, sent_at TEXT, slot_for REAL, slot_until REAL, held INTEGER,
        cancelling INTEGER, cancel_taken INTEGER, followed INTEGER, version INTEGER, files TEXT, task TEXT,
        is_open INTEGER, clean_at REAL, blanked INTEGER
    );
INSERT INTO "records" VALUES(1,'running','https://api.example','image','k1','720585bf64de7443f1e95e2708c069c9','m','me','running','k1','task-1','2026-11-21T13:49:55.914232+00:00',1.79526899591477584841e+09,'2026-11-21T13:49:55.915420+00:00',1000.0,1.79526999591477584841e+09,1,NULL,NULL,NULL,2,NULL,'{"task_id": "task-1", "model": "m", "outputs": [], "billing": "unknown"}',1,NULL,NULL);
INSERT INTO "records" VALUES(2,'submitting','https://api.example','image','k1','720585bf64de7443f1e95e2708c069c9','m','me','submitting','k1',NULL,'2026-11-21T13:49:55.916535+00:00',1.79526899591682815551e+09,'2026-11-21T13:49:55.917049+00:00',1000.0,1.79526999591682815552e+09,1,NULL,NULL,NULL,1,NULL,'{"model": "m", "outputs": [], "billing": "unknown"}',1,NULL,NULL);
INSERT INTO "records" VALUES(3,'waiting','https://api.example','image','k1','0f544924d2953c9dff8f9a8c1d08000d','m','me','waiting',NULL,NULL,'2026-11-21T13:49:55.917539+00:00',NULL,NULL,9e999,9e999,NULL,NULL,NULL,NULL,0,NULL,'{"model": "m", "outputs": [], "billing": "unknown"}',1,NULL,NULL);
CREATE TABLE removed (origin TEXT, task_id TEXT, ticket TEXT, at REAL, PRIMARY KEY (origin, task_id)) WITHOUT ROWID;
CREATE TABLE requests (sequence INTEGER PRIMARY KEY, body TEXT NOT NULL);
INSERT INTO "requests" VALUES(1,'{"extra": {}, "images": [], "model": "m", "n": 1, "prompt": "a cat", "seed": null, "size": null, "type": "image"}');
INSERT INTO "requests" VALUES(2,'{"extra": {}, "images": [], "model": "m", "n": 1, "prompt": "a cat", "seed": null, "size": null, "type": "image"}');
INSERT INTO "requests" VALUES(3,'{"extra": {}, "images": [], "model": "m", "n": 1, "prompt": "a dog", "seed": null, "size": null, "type": "image"}');
CREATE INDEX creates_of_lane ON creates (origin, kind, key, answered);
CREATE INDEX records_waiting ON records (origin, kind, keys, sequence)
        WHERE status = 'waiting' AND owner IS NOT NULL;
CREATE INDEX records_held ON records (origin, kind, lane, slot_until) WHERE held = 1;
CREATE INDEX records_submitting ON records (origin, kind, lane) WHERE status = 'submitting';
CREATE INDEX records_of_task ON records (task_id) WHERE task_id IS NOT NULL;
CREATE INDEX records_open ON records (owner) WHERE is_open = 1;
CREATE INDEX records_to_clean ON records (clean_at) WHERE clean_at IS NOT NULL;
COMMIT;
