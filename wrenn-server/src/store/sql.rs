//! Every statement, as one text for SQLite and PostgreSQL.
//!
//! [`ALL`] lists them for the test that prepares each on both. What differs between the two
//! is how transactions begin and migrations run, in [`super::database`].

macro_rules! statements {
    ($( $(#[$meta:meta])* $name:ident = $text:expr; )+) => {
        $( $(#[$meta])* pub(super) const $name: &str = $text; )+

        /// Every statement with its name.
        #[cfg(test)]
        pub(super) const ALL: &[(&str, &str)] = &[$((stringify!($name), $name)),+];
    };
}

macro_rules! sandbox_columns {
    () => {
        "id, team_id, host_id, name, template, vcpus, memory_mb, timeout_sec, metadata, network, \
         source, generation, intent, status, status_reason, changed_at, not_found, root_id, \
         phases, created_at, started_at, last_active_at, paused_at, stopped_at"
    };
}

macro_rules! snapshot_columns {
    () => {
        "id, team_id, host_id, name, source_sandbox_id, parent, vcpus, memory_mb, disk_bytes, \
         status, created_at"
    };
}

statements! {
    // Liveness: a write and a read that leave no trace.
    PROBE = "UPDATE teams SET name = name WHERE id = $1";

    TEAM_INSERT = "INSERT INTO teams (id, name, created_at) VALUES ($1, $2, $3)";
    TEAM_FIRST = "SELECT id FROM teams ORDER BY created_at, id LIMIT 1";

    KEY_INSERT = "INSERT INTO api_keys (id, team_id, name, prefix, key_hash, created_at) \
        VALUES ($1, $2, $3, $4, $5, $6)";
    KEY_BY_HASH = "SELECT id, team_id, expires_at FROM api_keys WHERE key_hash = $1";

    SESSION_INSERT = "INSERT INTO sessions (token_hash, team_id, created_at, expires_at) \
        VALUES ($1, $2, $3, $4)";
    SESSION_BY_HASH = "SELECT team_id, expires_at FROM sessions WHERE token_hash = $1";
    SESSION_EXPIRE = "DELETE FROM sessions WHERE expires_at < $1";

    HOST_INSERT = "INSERT INTO hosts (id, name, status, created_at) VALUES ($1, $2, $3, $4)";
    HOST_BY_NAME = "SELECT id, name, status, root_id, last_seen_at FROM hosts WHERE name = $1";
    HOST_LIST = "SELECT id, name, status, root_id, last_seen_at FROM hosts ORDER BY name";
    HOST_SEEN = "UPDATE hosts SET status = $2, root_id = $3, last_seen_at = $4 WHERE id = $1";
    HOST_SET_STATUS = "UPDATE hosts SET status = $2 WHERE id = $1";

    LEASE_TAKE = "INSERT INTO leases (host_id, holder, epoch, expires_at) VALUES ($1, $2, 1, $4) \
        ON CONFLICT (host_id) DO UPDATE SET \
        epoch = CASE WHEN leases.holder = excluded.holder THEN leases.epoch ELSE leases.epoch + 1 END, \
        holder = excluded.holder, expires_at = excluded.expires_at \
        WHERE leases.holder = excluded.holder OR leases.expires_at < $3";
    LEASE_OF_HOST = "SELECT holder, epoch, expires_at FROM leases WHERE host_id = $1";
    // Locks the row until the transaction ends, so that nobody takes the lease in between.
    LEASE_HOLD = "UPDATE leases SET epoch = epoch WHERE host_id = $1 AND epoch = $2";
    LEASE_RELEASE = "UPDATE leases SET expires_at = 0 WHERE host_id = $1 AND holder = $2";
    LEASE_RELEASE_ALL = "UPDATE leases SET expires_at = 0";

    SANDBOX_INSERT = concat!("INSERT INTO sandboxes (", sandbox_columns!(), ") VALUES \
        ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, \
        $21, $22, $23, $24)");
    SANDBOX_BY_ID = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes \
        WHERE team_id = $1 AND id = $2");
    SANDBOX_BY_NAME = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes \
        WHERE team_id = $1 AND name = $2 AND status <> 'stopped'");
    SANDBOX_OF_HOST = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes \
        WHERE host_id = $1 AND status <> 'stopped' ORDER BY created_at, id");
    // Whatever its team: for what a host lists.
    SANDBOX_KNOWN = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes WHERE id = $1");
    // Filters that are NULL let everything through. Metadata is compared by the caller.
    SANDBOX_PAGE_DOWN = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes \
        WHERE team_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3)) \
        AND ($4 = '' OR $4 LIKE '%,' || status || ',%') \
        AND ($5 = '' OR template = $5) AND ($6 = '' OR name = $6) AND created_at > $7 \
        ORDER BY created_at DESC, id DESC LIMIT $8");
    SANDBOX_PAGE_UP = concat!("SELECT ", sandbox_columns!(), " FROM sandboxes \
        WHERE team_id = $1 AND (created_at > $2 OR (created_at = $2 AND id > $3)) \
        AND ($4 = '' OR $4 LIKE '%,' || status || ',%') \
        AND ($5 = '' OR template = $5) AND ($6 = '' OR name = $6) AND created_at > $7 \
        ORDER BY created_at, id LIMIT $8");
    SANDBOX_SET_INTENT = "UPDATE sandboxes SET intent = $2, status = $3, changed_at = $4 \
        WHERE id = $1 AND status = $5 AND intent <> 'stopped'";
    SANDBOX_STOP_INTENT = "UPDATE sandboxes SET intent = 'stopped', status_reason = $2, \
        changed_at = $3 WHERE id = $1 AND status <> 'stopped'";
    // The outcome of an operation, or of an observation: only what was seen to be is replaced.
    SANDBOX_OBSERVE = "UPDATE sandboxes SET status = $3, intent = $4, status_reason = $5, \
        changed_at = $6, not_found = 0, phases = $7, started_at = $8, paused_at = $9, \
        vcpus = $10, memory_mb = $11 \
        WHERE id = $1 AND status = $2 AND intent <> 'stopped' AND changed_at = $12";
    SANDBOX_NOT_FOUND = "UPDATE sandboxes SET not_found = not_found + 1 \
        WHERE id = $1 AND status <> 'stopped'";
    SANDBOX_FOUND = "UPDATE sandboxes SET not_found = 0, root_id = $2 WHERE id = $1";
    SANDBOX_STOPPED = "UPDATE sandboxes SET status = 'stopped', intent = 'stopped', \
        status_reason = $2, changed_at = $3, stopped_at = $3 WHERE id = $1 AND status <> 'stopped'";
    // Its host lost it; it was not meant to stop, so its host is not told to destroy it should it
    // list it again.
    SANDBOX_VANISHED = "UPDATE sandboxes SET status = 'stopped', status_reason = $2, \
        changed_at = $3, stopped_at = $3 WHERE id = $1 AND status <> 'stopped'";
    SANDBOX_MISSING = "UPDATE sandboxes SET status = 'missing', status_reason = $2, changed_at = $3 \
        WHERE id = $1 AND status IN ('pending', 'running', 'pausing', 'resuming', 'error')";
    SANDBOX_ACTIVE = "UPDATE sandboxes SET last_active_at = $2, timeout_sec = $3 WHERE id = $1";
    SANDBOX_UPDATE = "UPDATE sandboxes SET name = $2, metadata = $3, timeout_sec = $4, network = $5 \
        WHERE id = $1 AND status <> 'stopped'";

    SNAPSHOT_INSERT = concat!("INSERT INTO snapshots (", snapshot_columns!(), ") VALUES \
        ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)");
    SNAPSHOT_READY = "UPDATE snapshots SET status = 'ready', name = $2, vcpus = $3, memory_mb = $4, \
        disk_bytes = $5 WHERE id = $1 AND status = 'creating'";
    SNAPSHOT_BY_ID = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE team_id = $1 AND id = $2 AND status = 'ready'");
    SNAPSHOT_BY_NAME = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE team_id = $1 AND name = $2 AND status = 'ready'");
    SNAPSHOT_PAGE = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE team_id = $1 AND (created_at < $2 OR (created_at = $2 AND id < $3)) \
        AND status = 'ready' AND ($4 = '' OR source_sandbox_id = $4) AND ($5 = '' OR name = $5) \
        ORDER BY created_at DESC, id DESC LIMIT $6");
    SNAPSHOT_DELETING = "UPDATE snapshots SET status = 'deleting' WHERE id = $1";
    SNAPSHOT_REMOVE = "DELETE FROM snapshots WHERE id = $1";
    SNAPSHOT_INTERRUPTED = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE host_id = $1 AND status = 'creating' AND created_at < $2");
    SNAPSHOT_UNDELETED = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE host_id = $1 AND status = 'deleting' AND created_at < $2");
    // Never published, and never to be: its row says that it is the server's own, whenever its
    // host has it.
    SNAPSHOT_DISCARD = "UPDATE snapshots SET status = 'discarded' \
        WHERE id = $1 AND status = 'creating'";
    SNAPSHOT_DISCARDED = concat!("SELECT ", snapshot_columns!(), " FROM snapshots \
        WHERE host_id = $1 AND status = 'discarded'");
    SNAPSHOT_DISCARDED_EXPIRE = "DELETE FROM snapshots \
        WHERE host_id = $1 AND status = 'discarded' AND created_at < $2";

    KEYED_REQUEST_INSERT = "INSERT INTO idempotency_keys (team_id, route, idempotency_key, \
        body_hash, resources, owner, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7)";
    KEYED_REQUEST = "SELECT body_hash, resources, owner, response_status, response_body \
        FROM idempotency_keys WHERE team_id = $1 AND route = $2 AND idempotency_key = $3";
    KEYED_REQUEST_ADOPT = "UPDATE idempotency_keys SET owner = $4 \
        WHERE team_id = $1 AND route = $2 AND idempotency_key = $3";
    KEYED_REQUEST_DONE = "UPDATE idempotency_keys SET response_status = $4, response_body = $5 \
        WHERE team_id = $1 AND route = $2 AND idempotency_key = $3";
    KEYED_REQUEST_FORGET = "DELETE FROM idempotency_keys \
        WHERE team_id = $1 AND route = $2 AND idempotency_key = $3";
    KEYED_REQUEST_EXPIRE = "DELETE FROM idempotency_keys WHERE created_at < $1";

    ORPHAN_SEEN = "INSERT INTO orphans (sandbox_id, host_id, template, first_seen_at, last_seen_at) \
        VALUES ($1, $2, $3, $4, $4) ON CONFLICT (sandbox_id) DO UPDATE SET \
        last_seen_at = excluded.last_seen_at";
    ORPHAN_LIST = "SELECT sandbox_id, host_id, template, first_seen_at, last_seen_at FROM orphans \
        ORDER BY first_seen_at, sandbox_id";
    ORPHAN_FORGET = "DELETE FROM orphans WHERE host_id = $1 AND last_seen_at < $2";
    ORPHAN_REMOVE = "DELETE FROM orphans WHERE sandbox_id = $1";
}
