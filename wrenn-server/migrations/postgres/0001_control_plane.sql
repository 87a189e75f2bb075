-- Times are microseconds since 1970, JSON is TEXT. The SQLite migration of the same
-- number makes the same columns; a test compares both.

CREATE TABLE teams (
    id         TEXT   NOT NULL PRIMARY KEY,
    name       TEXT   NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id         TEXT   NOT NULL PRIMARY KEY,
    team_id    TEXT   NOT NULL REFERENCES teams (id),
    name       TEXT   NOT NULL,
    prefix     TEXT   NOT NULL,
    key_hash   TEXT   NOT NULL UNIQUE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT
);

CREATE TABLE sessions (
    token_hash TEXT   NOT NULL PRIMARY KEY,
    team_id    TEXT   NOT NULL REFERENCES teams (id),
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE hosts (
    id           TEXT   NOT NULL PRIMARY KEY,
    name         TEXT   NOT NULL UNIQUE,
    team_id      TEXT   REFERENCES teams (id),
    status       TEXT   NOT NULL,
    root_id      TEXT,
    last_seen_at BIGINT,
    created_at   BIGINT NOT NULL
);

-- Who works on a host in the background. The epoch grows with each holder and stands in the
-- WHERE of what the holder writes.
CREATE TABLE leases (
    host_id    TEXT   NOT NULL PRIMARY KEY REFERENCES hosts (id),
    holder     TEXT   NOT NULL,
    epoch      BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE sandboxes (
    id             TEXT   NOT NULL PRIMARY KEY,
    team_id        TEXT   NOT NULL REFERENCES teams (id),
    host_id        TEXT   NOT NULL REFERENCES hosts (id),
    name           TEXT,
    template       TEXT   NOT NULL,
    vcpus          BIGINT NOT NULL,
    memory_mb      BIGINT NOT NULL,
    timeout_sec    BIGINT NOT NULL,
    metadata       TEXT   NOT NULL,
    network        TEXT   NOT NULL,
    source         TEXT   NOT NULL,
    generation     BIGINT NOT NULL,
    -- What it shall be: running, paused or stopped.
    intent         TEXT   NOT NULL,
    -- What it was last seen to be.
    status         TEXT   NOT NULL,
    status_reason  TEXT,
    changed_at     BIGINT NOT NULL,
    -- Consecutive times that its host did not find it.
    not_found      BIGINT NOT NULL,
    -- The root directory of its host in which it was last seen, or shall be made.
    root_id        TEXT,
    phases         TEXT   NOT NULL,
    created_at     BIGINT NOT NULL,
    started_at     BIGINT,
    last_active_at BIGINT,
    paused_at      BIGINT,
    stopped_at     BIGINT
);

CREATE UNIQUE INDEX sandboxes_by_name ON sandboxes (team_id, name)
    WHERE name IS NOT NULL AND status <> 'stopped';
CREATE INDEX sandboxes_by_age ON sandboxes (team_id, created_at, id);
CREATE INDEX sandboxes_by_host ON sandboxes (host_id) WHERE status <> 'stopped';

CREATE TABLE snapshots (
    id                TEXT   NOT NULL PRIMARY KEY,
    team_id           TEXT   NOT NULL REFERENCES teams (id),
    host_id           TEXT   NOT NULL REFERENCES hosts (id),
    name              TEXT,
    source_sandbox_id TEXT   NOT NULL,
    parent            TEXT   NOT NULL,
    vcpus             BIGINT NOT NULL,
    memory_mb         BIGINT NOT NULL,
    disk_bytes        BIGINT NOT NULL,
    -- creating, ready or deleting.
    status            TEXT   NOT NULL,
    created_at        BIGINT NOT NULL
);

CREATE UNIQUE INDEX snapshots_by_name ON snapshots (team_id, name)
    WHERE name IS NOT NULL AND status = 'ready';

CREATE TABLE idempotency_keys (
    team_id         TEXT   NOT NULL REFERENCES teams (id),
    route           TEXT   NOT NULL,
    idempotency_key TEXT   NOT NULL,
    body_hash       TEXT   NOT NULL,
    -- The ids that the request makes, as JSON.
    resources       TEXT   NOT NULL,
    -- The server that works on it.
    owner           TEXT   NOT NULL,
    -- The answer, once there is one.
    response_status BIGINT,
    response_body   TEXT,
    created_at      BIGINT NOT NULL,
    PRIMARY KEY (team_id, route, idempotency_key)
);

-- Sandboxes that a host has and no row describes. They are paused, never destroyed.
CREATE TABLE orphans (
    sandbox_id    TEXT   NOT NULL PRIMARY KEY,
    host_id       TEXT   NOT NULL REFERENCES hosts (id),
    template      TEXT   NOT NULL,
    first_seen_at BIGINT NOT NULL,
    last_seen_at  BIGINT NOT NULL
);
