-- +goose Up
-- Who may call, and what an organisation is beside its place in the directory.

-- When an operator suspended the tenant: a tenant that is deleted and restored is suspended again.
ALTER TABLE control.tenant ADD COLUMN suspended_at timestamptz;

-- API keys. The secret is 256 random bits, so its plain SHA-256 is as good as any slow hash.
CREATE TABLE control.api_key (
    id           uuid PRIMARY KEY,
    name         text NOT NULL CHECK (length(name) BETWEEN 1 AND 200),
    kind         text NOT NULL CHECK (kind IN ('operator', 'tenant', 'user')),
    subject      text NOT NULL CHECK (length(subject) BETWEEN 1 AND 255),
    tenant_id    uuid REFERENCES control.tenant (id),
    scopes       text[] NOT NULL CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['tenants:read', 'tenants:write', 'tenants:create',
                     'projects:read', 'projects:write', 'migrations:read', 'migrations:write']),
    secret_hash  bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz CHECK (expires_at > created_at),
    revoked_at   timestamptz,
    last_used_at timestamptz, -- coarse: at most one write in ten minutes
    CHECK (kind <> 'operator' OR tenant_id IS NULL),
    CHECK (kind <> 'tenant' OR tenant_id IS NOT NULL),
    -- Making tenants and moving them is the platform's; a tenant's key that leaks must not reach further than the tenant.
    CHECK (kind <> 'tenant' OR scopes <@ ARRAY['tenants:read', 'tenants:write', 'projects:read', 'projects:write']),
    CHECK (kind = 'operator' OR NOT scopes && ARRAY['migrations:read', 'migrations:write'])
);
CREATE INDEX api_key_tenant ON control.api_key (tenant_id, id) WHERE tenant_id IS NOT NULL;

-- Which people belong to which tenants.
CREATE TABLE control.membership (
    tenant_id  uuid NOT NULL REFERENCES control.tenant (id),
    subject    text NOT NULL CHECK (length(subject) BETWEEN 1 AND 255),
    role       text NOT NULL CHECK (role IN ('owner', 'admin', 'member')),
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant_id, subject)
);
CREATE INDEX membership_subject ON control.membership (subject, tenant_id);

-- Custom domains. Anybody may claim a name; whoever shows that they rule its DNS has it.
CREATE TABLE control.domain (
    id          uuid PRIMARY KEY,
    tenant_id   uuid NOT NULL REFERENCES control.tenant (id),
    name        text NOT NULL CHECK (name = lower(name) AND length(name) BETWEEN 3 AND 253),
    token       text NOT NULL CHECK (length(token) BETWEEN 20 AND 100),
    status      text NOT NULL CHECK (status IN ('pending', 'verified')),
    created_at  timestamptz NOT NULL DEFAULT now(),
    verified_at timestamptz,
    CONSTRAINT domain_once UNIQUE (tenant_id, name),
    CHECK ((status = 'verified') = (verified_at IS NOT NULL))
);
CREATE UNIQUE INDEX domain_verified ON control.domain (name) WHERE status = 'verified';

-- Sign-ups by their Idempotency-Key, so that one that is sent again makes nothing twice. The caller's key is hashed: it may be long.
CREATE TABLE control.sign_up (
    id         bytea PRIMARY KEY CHECK (octet_length(id) = 32),      -- of the caller and the key
    request    bytea NOT NULL CHECK (octet_length(request) = 32),    -- of what was asked
    tenant_id  uuid NOT NULL REFERENCES control.tenant (id),
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sign_up_age ON control.sign_up (created_at);

-- Gates that do not yet say what control.tenant says. A row is written with the change of status, and deleted when the
-- gate in the tenant's home has followed: what a crash leaves here, the sweeper finishes.
CREATE TABLE control.gate_due (
    tenant_id uuid PRIMARY KEY REFERENCES control.tenant (id),
    since     timestamptz NOT NULL
);

GRANT SELECT, INSERT, UPDATE ON control.api_key TO coditect_app, coditect_migrator;
GRANT SELECT, INSERT, UPDATE, DELETE ON control.membership, control.domain, control.sign_up, control.gate_due TO coditect_app, coditect_migrator;
-- A tenant that moves is not erased under the mover's hands.
GRANT SELECT (tenant_id, state) ON control.move TO coditect_app;
GRANT SELECT ON control.membership, control.domain, control.gate_due TO coditect_readonly;
GRANT SELECT (id, name, kind, subject, tenant_id, scopes, created_at, expires_at, revoked_at, last_used_at) ON control.api_key TO coditect_readonly;
