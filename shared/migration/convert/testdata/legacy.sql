-- schema legacy
CREATE SCHEMA "legacy" AUTHORIZATION coditect_owner;

-- rights on schema legacy
GRANT USAGE ON SCHEMA "legacy" TO coditect_app, coditect_migrator, coditect_readonly;

-- sequence legacy.auth_group_id_seq
CREATE SEQUENCE "legacy"."auth_group_id_seq" AS bigint;

-- rights on sequence legacy.auth_group_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_group_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_group_id_seq" TO coditect_migrator;

-- sequence legacy.auth_group_permissions_id_seq
CREATE SEQUENCE "legacy"."auth_group_permissions_id_seq" AS bigint;

-- rights on sequence legacy.auth_group_permissions_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_group_permissions_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_group_permissions_id_seq" TO coditect_migrator;

-- sequence legacy.auth_permission_id_seq
CREATE SEQUENCE "legacy"."auth_permission_id_seq" AS bigint;

-- rights on sequence legacy.auth_permission_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_permission_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_permission_id_seq" TO coditect_migrator;

-- sequence legacy.auth_user_groups_id_seq
CREATE SEQUENCE "legacy"."auth_user_groups_id_seq" AS bigint;

-- rights on sequence legacy.auth_user_groups_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_user_groups_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_user_groups_id_seq" TO coditect_migrator;

-- sequence legacy.auth_user_id_seq
CREATE SEQUENCE "legacy"."auth_user_id_seq" AS bigint;

-- rights on sequence legacy.auth_user_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_user_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_user_id_seq" TO coditect_migrator;

-- sequence legacy.auth_user_user_permissions_id_seq
CREATE SEQUENCE "legacy"."auth_user_user_permissions_id_seq" AS bigint;

-- rights on sequence legacy.auth_user_user_permissions_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."auth_user_user_permissions_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."auth_user_user_permissions_id_seq" TO coditect_migrator;

-- sequence legacy.django_content_type_id_seq
CREATE SEQUENCE "legacy"."django_content_type_id_seq" AS bigint;

-- rights on sequence legacy.django_content_type_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."django_content_type_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."django_content_type_id_seq" TO coditect_migrator;

-- sequence legacy.django_migrations_id_seq
CREATE SEQUENCE "legacy"."django_migrations_id_seq" AS bigint;

-- rights on sequence legacy.django_migrations_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."django_migrations_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."django_migrations_id_seq" TO coditect_migrator;

-- sequence legacy.work_event_id_seq
CREATE SEQUENCE "legacy"."work_event_id_seq" AS bigint;

-- rights on sequence legacy.work_event_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_event_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_event_id_seq" TO coditect_migrator;

-- sequence legacy.work_label_id_seq
CREATE SEQUENCE "legacy"."work_label_id_seq" AS bigint;

-- rights on sequence legacy.work_label_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_label_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_label_id_seq" TO coditect_migrator;

-- sequence legacy.work_project_id_seq
CREATE SEQUENCE "legacy"."work_project_id_seq" AS bigint;

-- rights on sequence legacy.work_project_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_project_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_project_id_seq" TO coditect_migrator;

-- sequence legacy.work_task_id_seq
CREATE SEQUENCE "legacy"."work_task_id_seq" AS bigint;

-- rights on sequence legacy.work_task_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_task_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_task_id_seq" TO coditect_migrator;

-- sequence legacy.work_task_labels_id_seq
CREATE SEQUENCE "legacy"."work_task_labels_id_seq" AS bigint;

-- rights on sequence legacy.work_task_labels_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_task_labels_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_task_labels_id_seq" TO coditect_migrator;

-- sequence legacy.work_timeentry_id_seq
CREATE SEQUENCE "legacy"."work_timeentry_id_seq" AS bigint;

-- rights on sequence legacy.work_timeentry_id_seq
GRANT USAGE, SELECT ON SEQUENCE "legacy"."work_timeentry_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "legacy"."work_timeentry_id_seq" TO coditect_migrator;

-- table legacy.auth_group
CREATE TABLE "legacy"."auth_group" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_group_id_seq'::regclass),
    "name" character varying(150) NOT NULL,
    CONSTRAINT "auth_group_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_group_id_seq
ALTER SEQUENCE "legacy"."auth_group_id_seq" OWNED BY "legacy"."auth_group"."id";

-- owner of table legacy.auth_group
ALTER TABLE "legacy"."auth_group" OWNER TO coditect_owner;

-- protection of table legacy.auth_group
SELECT coditect.protect('"legacy"."auth_group"');

-- distribution of table legacy.auth_group
SELECT coditect.distribute('"legacy"."auth_group"');

-- table legacy.auth_group_permissions
CREATE TABLE "legacy"."auth_group_permissions" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_group_permissions_id_seq'::regclass),
    "group_id" bigint NOT NULL,
    "permission_id" bigint NOT NULL,
    CONSTRAINT "auth_group_permissions_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_group_permissions_id_seq
ALTER SEQUENCE "legacy"."auth_group_permissions_id_seq" OWNED BY "legacy"."auth_group_permissions"."id";

-- owner of table legacy.auth_group_permissions
ALTER TABLE "legacy"."auth_group_permissions" OWNER TO coditect_owner;

-- protection of table legacy.auth_group_permissions
SELECT coditect.protect('"legacy"."auth_group_permissions"');

-- distribution of table legacy.auth_group_permissions
SELECT coditect.distribute('"legacy"."auth_group_permissions"');

-- table legacy.auth_permission
CREATE TABLE "legacy"."auth_permission" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_permission_id_seq'::regclass),
    "name" character varying(255) NOT NULL,
    "content_type_id" bigint NOT NULL,
    "codename" character varying(100) NOT NULL,
    CONSTRAINT "auth_permission_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_permission_id_seq
ALTER SEQUENCE "legacy"."auth_permission_id_seq" OWNED BY "legacy"."auth_permission"."id";

-- owner of table legacy.auth_permission
ALTER TABLE "legacy"."auth_permission" OWNER TO coditect_owner;

-- protection of table legacy.auth_permission
SELECT coditect.protect('"legacy"."auth_permission"');

-- distribution of table legacy.auth_permission
SELECT coditect.distribute('"legacy"."auth_permission"');

-- table legacy.auth_user
CREATE TABLE "legacy"."auth_user" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_user_id_seq'::regclass),
    "password" character varying(128) NOT NULL,
    "last_login" timestamp with time zone,
    "is_superuser" boolean NOT NULL,
    "username" character varying(150) NOT NULL,
    "first_name" character varying(150) NOT NULL,
    "last_name" character varying(150) NOT NULL,
    "email" character varying(254) NOT NULL,
    "is_staff" boolean NOT NULL,
    "is_active" boolean NOT NULL,
    "date_joined" timestamp with time zone NOT NULL,
    CONSTRAINT "auth_user_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_user_id_seq
ALTER SEQUENCE "legacy"."auth_user_id_seq" OWNED BY "legacy"."auth_user"."id";

-- owner of table legacy.auth_user
ALTER TABLE "legacy"."auth_user" OWNER TO coditect_owner;

-- protection of table legacy.auth_user
SELECT coditect.protect('"legacy"."auth_user"');

-- distribution of table legacy.auth_user
SELECT coditect.distribute('"legacy"."auth_user"');

-- table legacy.auth_user_groups
CREATE TABLE "legacy"."auth_user_groups" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_user_groups_id_seq'::regclass),
    "user_id" bigint NOT NULL,
    "group_id" bigint NOT NULL,
    CONSTRAINT "auth_user_groups_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_user_groups_id_seq
ALTER SEQUENCE "legacy"."auth_user_groups_id_seq" OWNED BY "legacy"."auth_user_groups"."id";

-- owner of table legacy.auth_user_groups
ALTER TABLE "legacy"."auth_user_groups" OWNER TO coditect_owner;

-- protection of table legacy.auth_user_groups
SELECT coditect.protect('"legacy"."auth_user_groups"');

-- distribution of table legacy.auth_user_groups
SELECT coditect.distribute('"legacy"."auth_user_groups"');

-- table legacy.auth_user_user_permissions
CREATE TABLE "legacy"."auth_user_user_permissions" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".auth_user_user_permissions_id_seq'::regclass),
    "user_id" bigint NOT NULL,
    "permission_id" bigint NOT NULL,
    CONSTRAINT "auth_user_user_permissions_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.auth_user_user_permissions_id_seq
ALTER SEQUENCE "legacy"."auth_user_user_permissions_id_seq" OWNED BY "legacy"."auth_user_user_permissions"."id";

-- owner of table legacy.auth_user_user_permissions
ALTER TABLE "legacy"."auth_user_user_permissions" OWNER TO coditect_owner;

-- protection of table legacy.auth_user_user_permissions
SELECT coditect.protect('"legacy"."auth_user_user_permissions"');

-- distribution of table legacy.auth_user_user_permissions
SELECT coditect.distribute('"legacy"."auth_user_user_permissions"');

-- table legacy.django_content_type
CREATE TABLE "legacy"."django_content_type" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".django_content_type_id_seq'::regclass),
    "app_label" character varying(100) NOT NULL,
    "model" character varying(100) NOT NULL,
    CONSTRAINT "django_content_type_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.django_content_type_id_seq
ALTER SEQUENCE "legacy"."django_content_type_id_seq" OWNED BY "legacy"."django_content_type"."id";

-- owner of table legacy.django_content_type
ALTER TABLE "legacy"."django_content_type" OWNER TO coditect_owner;

-- protection of table legacy.django_content_type
SELECT coditect.protect('"legacy"."django_content_type"');

-- distribution of table legacy.django_content_type
SELECT coditect.distribute('"legacy"."django_content_type"');

-- table legacy.django_migrations
CREATE TABLE "legacy"."django_migrations" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".django_migrations_id_seq'::regclass),
    "app" character varying(255) NOT NULL,
    "name" character varying(255) NOT NULL,
    "applied" timestamp with time zone NOT NULL,
    CONSTRAINT "django_migrations_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.django_migrations_id_seq
ALTER SEQUENCE "legacy"."django_migrations_id_seq" OWNED BY "legacy"."django_migrations"."id";

-- owner of table legacy.django_migrations
ALTER TABLE "legacy"."django_migrations" OWNER TO coditect_owner;

-- protection of table legacy.django_migrations
SELECT coditect.protect('"legacy"."django_migrations"');

-- distribution of table legacy.django_migrations
SELECT coditect.distribute('"legacy"."django_migrations"');

-- table legacy.work_attachment
CREATE TABLE "legacy"."work_attachment" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" uuid NOT NULL,
    "content" bytea NOT NULL,
    "size" bigint NOT NULL,
    "task_id" bigint NOT NULL,
    CONSTRAINT "work_attachment_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of table legacy.work_attachment
ALTER TABLE "legacy"."work_attachment" OWNER TO coditect_owner;

-- protection of table legacy.work_attachment
SELECT coditect.protect('"legacy"."work_attachment"');

-- distribution of table legacy.work_attachment
SELECT coditect.distribute('"legacy"."work_attachment"');

-- table legacy.work_event
CREATE TABLE "legacy"."work_event" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_event_id_seq'::regclass),
    "object_id" character varying(64) NOT NULL,
    "note" text NOT NULL,
    "at" timestamp with time zone NOT NULL,
    "score" double precision NOT NULL,
    "content_type_id" bigint NOT NULL,
    CONSTRAINT "work_event_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_event_id_seq
ALTER SEQUENCE "legacy"."work_event_id_seq" OWNED BY "legacy"."work_event"."id";

-- owner of table legacy.work_event
ALTER TABLE "legacy"."work_event" OWNER TO coditect_owner;

-- protection of table legacy.work_event
SELECT coditect.protect('"legacy"."work_event"');

-- distribution of table legacy.work_event
SELECT coditect.distribute('"legacy"."work_event"');

-- table legacy.work_label
CREATE TABLE "legacy"."work_label" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_label_id_seq'::regclass),
    "name" character varying(50) NOT NULL,
    CONSTRAINT "work_label_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_label_id_seq
ALTER SEQUENCE "legacy"."work_label_id_seq" OWNED BY "legacy"."work_label"."id";

-- owner of table legacy.work_label
ALTER TABLE "legacy"."work_label" OWNER TO coditect_owner;

-- protection of table legacy.work_label
SELECT coditect.protect('"legacy"."work_label"');

-- distribution of table legacy.work_label
SELECT coditect.distribute('"legacy"."work_label"');

-- table legacy.work_project
CREATE TABLE "legacy"."work_project" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_project_id_seq'::regclass),
    "name" character varying(200) NOT NULL,
    "status" character varying(20) NOT NULL,
    "settings" jsonb NOT NULL,
    "created_at" timestamp with time zone NOT NULL,
    "owner_id" bigint,
    CONSTRAINT "work_project_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_project_id_seq
ALTER SEQUENCE "legacy"."work_project_id_seq" OWNED BY "legacy"."work_project"."id";

-- owner of table legacy.work_project
ALTER TABLE "legacy"."work_project" OWNER TO coditect_owner;

-- protection of table legacy.work_project
SELECT coditect.protect('"legacy"."work_project"');

-- distribution of table legacy.work_project
SELECT coditect.distribute('"legacy"."work_project"');

-- table legacy.work_setting
CREATE TABLE "legacy"."work_setting" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "key" character varying(80) NOT NULL,
    "value" text NOT NULL,
    CONSTRAINT "work_setting_pkey" PRIMARY KEY ("tenant_id", key)
);

-- owner of table legacy.work_setting
ALTER TABLE "legacy"."work_setting" OWNER TO coditect_owner;

-- protection of table legacy.work_setting
SELECT coditect.protect('"legacy"."work_setting"');

-- distribution of table legacy.work_setting
SELECT coditect.distribute('"legacy"."work_setting"');

-- table legacy.work_task
CREATE TABLE "legacy"."work_task" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_task_id_seq'::regclass),
    "title" character varying(300) NOT NULL,
    "body" text NOT NULL,
    "status" character varying(20) NOT NULL,
    "priority" smallint NOT NULL,
    "estimate" interval,
    "due_on" date,
    "watchers" integer[] NOT NULL,
    "created_at" timestamp with time zone NOT NULL,
    "parent_id" bigint,
    "project_id" bigint NOT NULL,
    CONSTRAINT "no_own_parent" CHECK ((NOT ((parent_id = id) AND (parent_id IS NOT NULL)))),
    CONSTRAINT "priority_not_negative" CHECK ((priority >= 0)),
    CONSTRAINT "work_task_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_task_id_seq
ALTER SEQUENCE "legacy"."work_task_id_seq" OWNED BY "legacy"."work_task"."id";

-- owner of table legacy.work_task
ALTER TABLE "legacy"."work_task" OWNER TO coditect_owner;

-- protection of table legacy.work_task
SELECT coditect.protect('"legacy"."work_task"');

-- distribution of table legacy.work_task
SELECT coditect.distribute('"legacy"."work_task"');

-- table legacy.work_task_labels
CREATE TABLE "legacy"."work_task_labels" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_task_labels_id_seq'::regclass),
    "task_id" bigint NOT NULL,
    "label_id" bigint NOT NULL,
    CONSTRAINT "work_task_labels_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_task_labels_id_seq
ALTER SEQUENCE "legacy"."work_task_labels_id_seq" OWNED BY "legacy"."work_task_labels"."id";

-- owner of table legacy.work_task_labels
ALTER TABLE "legacy"."work_task_labels" OWNER TO coditect_owner;

-- protection of table legacy.work_task_labels
SELECT coditect.protect('"legacy"."work_task_labels"');

-- distribution of table legacy.work_task_labels
SELECT coditect.distribute('"legacy"."work_task_labels"');

-- table legacy.work_timeentry
CREATE TABLE "legacy"."work_timeentry" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"legacy".work_timeentry_id_seq'::regclass),
    "period" tstzrange NOT NULL,
    "rate" numeric(12,4) NOT NULL,
    "task_id" bigint NOT NULL,
    "user_id" bigint NOT NULL,
    CONSTRAINT "work_timeentry_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence legacy.work_timeentry_id_seq
ALTER SEQUENCE "legacy"."work_timeentry_id_seq" OWNED BY "legacy"."work_timeentry"."id";

-- owner of table legacy.work_timeentry
ALTER TABLE "legacy"."work_timeentry" OWNER TO coditect_owner;

-- protection of table legacy.work_timeentry
SELECT coditect.protect('"legacy"."work_timeentry"');

-- distribution of table legacy.work_timeentry
SELECT coditect.distribute('"legacy"."work_timeentry"');

-- constraint auth_group_name_key of legacy.auth_group
ALTER TABLE "legacy"."auth_group" ADD CONSTRAINT "auth_group_name_key" UNIQUE ("tenant_id", name);

-- index auth_group_name_a6ea08ec_like of legacy.auth_group
CREATE INDEX "auth_group_name_a6ea08ec_like" ON "legacy"."auth_group" USING btree ("tenant_id", name varchar_pattern_ops);

-- constraint auth_group_permissions_group_id_permission_id_0cd325b0_uniq of legacy.auth_group_permissions
ALTER TABLE "legacy"."auth_group_permissions" ADD CONSTRAINT "auth_group_permissions_group_id_permission_id_0cd325b0_uniq" UNIQUE ("tenant_id", group_id, permission_id);

-- index auth_group_permissions_group_id_b120cbf9 of legacy.auth_group_permissions
CREATE INDEX "auth_group_permissions_group_id_b120cbf9" ON "legacy"."auth_group_permissions" USING btree ("tenant_id", group_id);

-- index auth_group_permissions_permission_id_84c5c92e of legacy.auth_group_permissions
CREATE INDEX "auth_group_permissions_permission_id_84c5c92e" ON "legacy"."auth_group_permissions" USING btree ("tenant_id", permission_id);

-- constraint auth_permission_content_type_id_codename_01ab375a_uniq of legacy.auth_permission
ALTER TABLE "legacy"."auth_permission" ADD CONSTRAINT "auth_permission_content_type_id_codename_01ab375a_uniq" UNIQUE ("tenant_id", content_type_id, codename);

-- index auth_permission_content_type_id_2f476e4b of legacy.auth_permission
CREATE INDEX "auth_permission_content_type_id_2f476e4b" ON "legacy"."auth_permission" USING btree ("tenant_id", content_type_id);

-- constraint auth_user_username_key of legacy.auth_user
ALTER TABLE "legacy"."auth_user" ADD CONSTRAINT "auth_user_username_key" UNIQUE ("tenant_id", username);

-- index auth_user_username_6821ab7c_like of legacy.auth_user
CREATE INDEX "auth_user_username_6821ab7c_like" ON "legacy"."auth_user" USING btree ("tenant_id", username varchar_pattern_ops);

-- constraint auth_user_groups_user_id_group_id_94350c0c_uniq of legacy.auth_user_groups
ALTER TABLE "legacy"."auth_user_groups" ADD CONSTRAINT "auth_user_groups_user_id_group_id_94350c0c_uniq" UNIQUE ("tenant_id", user_id, group_id);

-- index auth_user_groups_group_id_97559544 of legacy.auth_user_groups
CREATE INDEX "auth_user_groups_group_id_97559544" ON "legacy"."auth_user_groups" USING btree ("tenant_id", group_id);

-- index auth_user_groups_user_id_6a12ed8b of legacy.auth_user_groups
CREATE INDEX "auth_user_groups_user_id_6a12ed8b" ON "legacy"."auth_user_groups" USING btree ("tenant_id", user_id);

-- constraint auth_user_user_permissions_user_id_permission_id_14a6b632_uniq of legacy.auth_user_user_permissions
ALTER TABLE "legacy"."auth_user_user_permissions" ADD CONSTRAINT "auth_user_user_permissions_user_id_permission_id_14a6b632_uniq" UNIQUE ("tenant_id", user_id, permission_id);

-- index auth_user_user_permissions_permission_id_1fbb5f2c of legacy.auth_user_user_permissions
CREATE INDEX "auth_user_user_permissions_permission_id_1fbb5f2c" ON "legacy"."auth_user_user_permissions" USING btree ("tenant_id", permission_id);

-- index auth_user_user_permissions_user_id_a95ead1b of legacy.auth_user_user_permissions
CREATE INDEX "auth_user_user_permissions_user_id_a95ead1b" ON "legacy"."auth_user_user_permissions" USING btree ("tenant_id", user_id);

-- constraint django_content_type_app_label_model_76bd3d3b_uniq of legacy.django_content_type
ALTER TABLE "legacy"."django_content_type" ADD CONSTRAINT "django_content_type_app_label_model_76bd3d3b_uniq" UNIQUE ("tenant_id", app_label, model);

-- index work_attachment_task_id_cad8292c of legacy.work_attachment
CREATE INDEX "work_attachment_task_id_cad8292c" ON "legacy"."work_attachment" USING btree ("tenant_id", task_id);

-- index work_event_content_type_id_696bd893 of legacy.work_event
CREATE INDEX "work_event_content_type_id_696bd893" ON "legacy"."work_event" USING btree ("tenant_id", content_type_id);

-- constraint work_label_name_key of legacy.work_label
ALTER TABLE "legacy"."work_label" ADD CONSTRAINT "work_label_name_key" UNIQUE ("tenant_id", name);

-- index work_label_name_f5adf266_like of legacy.work_label
CREATE INDEX "work_label_name_f5adf266_like" ON "legacy"."work_label" USING btree ("tenant_id", name varchar_pattern_ops);

-- constraint work_project_name_key of legacy.work_project
ALTER TABLE "legacy"."work_project" ADD CONSTRAINT "work_project_name_key" UNIQUE ("tenant_id", name);

-- index work_project_name_27bd107f_like of legacy.work_project
CREATE INDEX "work_project_name_27bd107f_like" ON "legacy"."work_project" USING btree ("tenant_id", name varchar_pattern_ops);

-- index work_project_owner_id_84c97f90 of legacy.work_project
CREATE INDEX "work_project_owner_id_84c97f90" ON "legacy"."work_project" USING btree ("tenant_id", owner_id);

-- index work_setting_key_0563bdb9_like of legacy.work_setting
CREATE INDEX "work_setting_key_0563bdb9_like" ON "legacy"."work_setting" USING btree ("tenant_id", key varchar_pattern_ops);

-- index one_open_title_per_project of legacy.work_task
CREATE UNIQUE INDEX "one_open_title_per_project" ON "legacy"."work_task" USING btree ("tenant_id", project_id, title) WHERE ((status)::text = 'todo'::text);

-- index task_watchers_gin of legacy.work_task
CREATE INDEX "task_watchers_gin" ON "legacy"."work_task" USING gin (watchers);

-- index work_task_parent_id_817c99e9 of legacy.work_task
CREATE INDEX "work_task_parent_id_817c99e9" ON "legacy"."work_task" USING btree ("tenant_id", parent_id);

-- index work_task_project_id_282a3029 of legacy.work_task
CREATE INDEX "work_task_project_id_282a3029" ON "legacy"."work_task" USING btree ("tenant_id", project_id);

-- index work_task_status_23c21d6d of legacy.work_task
CREATE INDEX "work_task_status_23c21d6d" ON "legacy"."work_task" USING btree ("tenant_id", status);

-- index work_task_status_23c21d6d_like of legacy.work_task
CREATE INDEX "work_task_status_23c21d6d_like" ON "legacy"."work_task" USING btree ("tenant_id", status varchar_pattern_ops);

-- constraint work_task_labels_task_id_label_id_89a04c66_uniq of legacy.work_task_labels
ALTER TABLE "legacy"."work_task_labels" ADD CONSTRAINT "work_task_labels_task_id_label_id_89a04c66_uniq" UNIQUE ("tenant_id", task_id, label_id);

-- index work_task_labels_label_id_3be2382e of legacy.work_task_labels
CREATE INDEX "work_task_labels_label_id_3be2382e" ON "legacy"."work_task_labels" USING btree ("tenant_id", label_id);

-- index work_task_labels_task_id_05b5f228 of legacy.work_task_labels
CREATE INDEX "work_task_labels_task_id_05b5f228" ON "legacy"."work_task_labels" USING btree ("tenant_id", task_id);

-- index work_timeentry_task_id_c69e5394 of legacy.work_timeentry
CREATE INDEX "work_timeentry_task_id_c69e5394" ON "legacy"."work_timeentry" USING btree ("tenant_id", task_id);

-- index work_timeentry_user_id_5a920505 of legacy.work_timeentry
CREATE INDEX "work_timeentry_user_id_5a920505" ON "legacy"."work_timeentry" USING btree ("tenant_id", user_id);

-- foreign key auth_group_permissio_permission_id_84c5c92e_fk_auth_perm of legacy.auth_group_permissions
ALTER TABLE "legacy"."auth_group_permissions" ADD CONSTRAINT "auth_group_permissio_permission_id_84c5c92e_fk_auth_perm" FOREIGN KEY ("tenant_id", "permission_id") REFERENCES "legacy"."auth_permission" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_group_permissions_group_id_b120cbf9_fk_auth_group_id of legacy.auth_group_permissions
ALTER TABLE "legacy"."auth_group_permissions" ADD CONSTRAINT "auth_group_permissions_group_id_b120cbf9_fk_auth_group_id" FOREIGN KEY ("tenant_id", "group_id") REFERENCES "legacy"."auth_group" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_permission_content_type_id_2f476e4b_fk_django_co of legacy.auth_permission
ALTER TABLE "legacy"."auth_permission" ADD CONSTRAINT "auth_permission_content_type_id_2f476e4b_fk_django_co" FOREIGN KEY ("tenant_id", "content_type_id") REFERENCES "legacy"."django_content_type" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_user_groups_group_id_97559544_fk_auth_group_id of legacy.auth_user_groups
ALTER TABLE "legacy"."auth_user_groups" ADD CONSTRAINT "auth_user_groups_group_id_97559544_fk_auth_group_id" FOREIGN KEY ("tenant_id", "group_id") REFERENCES "legacy"."auth_group" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_user_groups_user_id_6a12ed8b_fk_auth_user_id of legacy.auth_user_groups
ALTER TABLE "legacy"."auth_user_groups" ADD CONSTRAINT "auth_user_groups_user_id_6a12ed8b_fk_auth_user_id" FOREIGN KEY ("tenant_id", "user_id") REFERENCES "legacy"."auth_user" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_user_user_permi_permission_id_1fbb5f2c_fk_auth_perm of legacy.auth_user_user_permissions
ALTER TABLE "legacy"."auth_user_user_permissions" ADD CONSTRAINT "auth_user_user_permi_permission_id_1fbb5f2c_fk_auth_perm" FOREIGN KEY ("tenant_id", "permission_id") REFERENCES "legacy"."auth_permission" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key auth_user_user_permissions_user_id_a95ead1b_fk_auth_user_id of legacy.auth_user_user_permissions
ALTER TABLE "legacy"."auth_user_user_permissions" ADD CONSTRAINT "auth_user_user_permissions_user_id_a95ead1b_fk_auth_user_id" FOREIGN KEY ("tenant_id", "user_id") REFERENCES "legacy"."auth_user" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_attachment_task_id_cad8292c_fk_work_task_id of legacy.work_attachment
ALTER TABLE "legacy"."work_attachment" ADD CONSTRAINT "work_attachment_task_id_cad8292c_fk_work_task_id" FOREIGN KEY ("tenant_id", "task_id") REFERENCES "legacy"."work_task" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_event_content_type_id_696bd893_fk_django_content_type_id of legacy.work_event
ALTER TABLE "legacy"."work_event" ADD CONSTRAINT "work_event_content_type_id_696bd893_fk_django_content_type_id" FOREIGN KEY ("tenant_id", "content_type_id") REFERENCES "legacy"."django_content_type" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_project_owner_id_84c97f90_fk_auth_user_id of legacy.work_project
ALTER TABLE "legacy"."work_project" ADD CONSTRAINT "work_project_owner_id_84c97f90_fk_auth_user_id" FOREIGN KEY ("tenant_id", "owner_id") REFERENCES "legacy"."auth_user" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_task_parent_id_817c99e9_fk_work_task_id of legacy.work_task
ALTER TABLE "legacy"."work_task" ADD CONSTRAINT "work_task_parent_id_817c99e9_fk_work_task_id" FOREIGN KEY ("tenant_id", "parent_id") REFERENCES "legacy"."work_task" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_task_project_id_282a3029_fk_work_project_id of legacy.work_task
ALTER TABLE "legacy"."work_task" ADD CONSTRAINT "work_task_project_id_282a3029_fk_work_project_id" FOREIGN KEY ("tenant_id", "project_id") REFERENCES "legacy"."work_project" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_task_labels_label_id_3be2382e_fk_work_label_id of legacy.work_task_labels
ALTER TABLE "legacy"."work_task_labels" ADD CONSTRAINT "work_task_labels_label_id_3be2382e_fk_work_label_id" FOREIGN KEY ("tenant_id", "label_id") REFERENCES "legacy"."work_label" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_task_labels_task_id_05b5f228_fk_work_task_id of legacy.work_task_labels
ALTER TABLE "legacy"."work_task_labels" ADD CONSTRAINT "work_task_labels_task_id_05b5f228_fk_work_task_id" FOREIGN KEY ("tenant_id", "task_id") REFERENCES "legacy"."work_task" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_timeentry_task_id_c69e5394_fk_work_task_id of legacy.work_timeentry
ALTER TABLE "legacy"."work_timeentry" ADD CONSTRAINT "work_timeentry_task_id_c69e5394_fk_work_task_id" FOREIGN KEY ("tenant_id", "task_id") REFERENCES "legacy"."work_task" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;

-- foreign key work_timeentry_user_id_5a920505_fk_auth_user_id of legacy.work_timeentry
ALTER TABLE "legacy"."work_timeentry" ADD CONSTRAINT "work_timeentry_user_id_5a920505_fk_auth_user_id" FOREIGN KEY ("tenant_id", "user_id") REFERENCES "legacy"."auth_user" ("tenant_id", "id") DEFERRABLE INITIALLY DEFERRED;
