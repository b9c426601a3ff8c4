-- schema shop_public
CREATE SCHEMA "shop_public" AUTHORIZATION coditect_owner;

-- rights on schema shop_public
GRANT USAGE ON SCHEMA "shop_public" TO coditect_app, coditect_migrator, coditect_readonly;

-- schema shop
CREATE SCHEMA "shop" AUTHORIZATION coditect_owner;

-- rights on schema shop
GRANT USAGE ON SCHEMA "shop" TO coditect_app, coditect_migrator, coditect_readonly;

-- type shop.E-Mail
CREATE DOMAIN "shop"."E-Mail" AS text CONSTRAINT has_at CHECK ((VALUE ~ '@'::text));

-- type shop.mood
CREATE TYPE "shop"."mood" AS ENUM ('sad', 'it''s ok', 'we"ird Name.happy');

-- type shop.mood_not_sad
CREATE DOMAIN "shop"."mood_not_sad" AS "shop".mood CONSTRAINT mood_not_sad_check CHECK ((VALUE <> 'sad'::"shop".mood));

-- type shop.span
CREATE TYPE "shop"."span" AS RANGE (SUBTYPE = double precision, SUBTYPE_DIFF = float8mi, MULTIRANGE_TYPE_NAME = "shop".span_multirange);

-- sequence shop_public.country_id_seq
CREATE SEQUENCE "shop_public"."country_id_seq" AS bigint;

-- rights on sequence shop_public.country_id_seq
GRANT USAGE, SELECT ON SEQUENCE "shop_public"."country_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop_public"."country_id_seq" TO coditect_migrator;

-- sequence shop.Order_id_seq
CREATE SEQUENCE "shop"."Order_id_seq" AS bigint;

-- rights on sequence shop.Order_id_seq
GRANT USAGE, SELECT ON SEQUENCE "shop"."Order_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop"."Order_id_seq" TO coditect_migrator;

-- sequence shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq
CREATE SEQUENCE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq" AS bigint;

-- rights on sequence shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq
GRANT USAGE, SELECT ON SEQUENCE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq" TO coditect_migrator;

-- sequence shop.booking_id_seq
CREATE SEQUENCE "shop"."booking_id_seq" AS bigint;

-- rights on sequence shop.booking_id_seq
GRANT USAGE, SELECT ON SEQUENCE "shop"."booking_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop"."booking_id_seq" TO coditect_migrator;

-- sequence shop.numbers
CREATE SEQUENCE "shop"."numbers" AS bigint INCREMENT BY 10 START WITH 1000 CACHE 5;

-- rights on sequence shop.numbers
GRANT USAGE, SELECT ON SEQUENCE "shop"."numbers" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop"."numbers" TO coditect_migrator;

-- sequence shop.small_id_seq
CREATE SEQUENCE "shop"."small_id_seq" AS bigint;

-- rights on sequence shop.small_id_seq
GRANT USAGE, SELECT ON SEQUENCE "shop"."small_id_seq" TO coditect_app; GRANT USAGE, SELECT, UPDATE ON SEQUENCE "shop"."small_id_seq" TO coditect_migrator;

-- type shop_public.level
CREATE TYPE "shop_public"."level" AS ENUM ('low', 'high');

-- table shop_public.country
CREATE TABLE "shop_public"."country" (
    "id" bigint NOT NULL DEFAULT nextval('"shop_public".country_id_seq'::regclass),
    "name" text NOT NULL,
    "currency" character(3),
    "level" "shop_public".level,
    CONSTRAINT "country_pkey" PRIMARY KEY (id)
);

-- owner of sequence shop_public.country_id_seq
ALTER SEQUENCE "shop_public"."country_id_seq" OWNED BY "shop_public"."country"."id";

-- owner of table shop_public.country
ALTER TABLE "shop_public"."country" OWNER TO coditect_owner;

-- reference table shop_public.country
SELECT coditect.reference('"shop_public"."country"');

-- table shop_public.currency
CREATE TABLE "shop_public"."currency" (
    "code" character(3) NOT NULL,
    "name" text NOT NULL,
    CONSTRAINT "currency_pkey" PRIMARY KEY (code)
);

-- owner of table shop_public.currency
ALTER TABLE "shop_public"."currency" OWNER TO coditect_owner;

-- reference table shop_public.currency
SELECT coditect.reference('"shop_public"."currency"');

-- table shop.Order
CREATE TABLE "shop"."Order" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"shop"."Order_id_seq"'::regclass),
    "select" "shop".mood NOT NULL DEFAULT 'sad'::"shop".mood,
    "moods" "shop".mood[] NOT NULL DEFAULT '{sad}'::"shop".mood[],
    "mail" "shop"."E-Mail",
    "calm" "shop".mood_not_sad,
    "level" "shop_public".level DEFAULT 'low'::"shop_public".level,
    "number" bigint NOT NULL DEFAULT nextval('"shop".numbers'::regclass),
    "label" text NOT NULL DEFAULT 'we"ird Name.x'::text,
    "total" numeric(10,2),
    "tax" numeric(10,2) GENERATED ALWAYS AS ((total * 0.2)) STORED,
    "name" text COLLATE pg_catalog."C",
    "code" text,
    "parent" bigint,
    "country_id" bigint,
    "stays_id" bigint,
    CONSTRAINT "Order_pkey" PRIMARY KEY ("tenant_id", id),
    CONSTRAINT "sad, is free" CHECK ((("select" <> 'sad'::"shop".mood) OR (total = (0)::numeric)))
);

-- owner of sequence shop.Order_id_seq
ALTER SEQUENCE "shop"."Order_id_seq" OWNED BY "shop"."Order"."id";

-- owner of table shop.Order
ALTER TABLE "shop"."Order" OWNER TO coditect_owner;

-- protection of table shop.Order
SELECT coditect.protect('"shop"."Order"');

-- distribution of table shop.Order
SELECT coditect.distribute('"shop"."Order"');

-- table shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__
CREATE TABLE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"shop".a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq'::regclass),
    "a_column_whose_name_has_exactly_sixty_three_bytes_in_it_really_" text,
    CONSTRAINT "a_table_whose_name_has_exactly_sixty_three_bytes_in_it_rea_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq
ALTER SEQUENCE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_r_id_seq" OWNED BY "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__"."id";

-- owner of table shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__
ALTER TABLE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__" OWNER TO coditect_owner;

-- protection of table shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__
SELECT coditect.protect('"shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__"');

-- distribution of table shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__
SELECT coditect.distribute('"shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__"');

-- table shop.booking
CREATE TABLE "shop"."booking" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "room" integer,
    "during" tstzrange,
    "id" bigint NOT NULL DEFAULT nextval('"shop".booking_id_seq'::regclass),
    CONSTRAINT "booking_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence shop.booking_id_seq
ALTER SEQUENCE "shop"."booking_id_seq" OWNED BY "shop"."booking"."id";

-- owner of table shop.booking
ALTER TABLE "shop"."booking" OWNER TO coditect_owner;

-- protection of table shop.booking
SELECT coditect.protect('"shop"."booking"');

-- distribution of table shop.booking
SELECT coditect.distribute('"shop"."booking"');

-- table shop.empty_of_columns_but_key
CREATE TABLE "shop"."empty_of_columns_but_key" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" text NOT NULL,
    CONSTRAINT "empty_of_columns_but_key_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of table shop.empty_of_columns_but_key
ALTER TABLE "shop"."empty_of_columns_but_key" OWNER TO coditect_owner;

-- protection of table shop.empty_of_columns_but_key
SELECT coditect.protect('"shop"."empty_of_columns_but_key"');

-- distribution of table shop.empty_of_columns_but_key
SELECT coditect.distribute('"shop"."empty_of_columns_but_key"');

-- table shop.small
CREATE TABLE "shop"."small" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" bigint NOT NULL DEFAULT nextval('"shop".small_id_seq'::regclass),
    "order_id" bigint NOT NULL,
    "second_order" bigint DEFAULT 1,
    CONSTRAINT "small_pkey" PRIMARY KEY ("tenant_id", id)
);

-- owner of sequence shop.small_id_seq
ALTER SEQUENCE "shop"."small_id_seq" OWNED BY "shop"."small"."id";

-- owner of table shop.small
ALTER TABLE "shop"."small" OWNER TO coditect_owner;

-- protection of table shop.small
SELECT coditect.protect('"shop"."small"');

-- distribution of table shop.small
SELECT coditect.distribute('"shop"."small"');

-- table shop.smaller
CREATE TABLE "shop"."smaller" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "small_id" bigint NOT NULL,
    "note" text,
    CONSTRAINT "smaller_pkey" PRIMARY KEY ("tenant_id", small_id)
);

-- owner of table shop.smaller
ALTER TABLE "shop"."smaller" OWNER TO coditect_owner;

-- protection of table shop.smaller
SELECT coditect.protect('"shop"."smaller"');

-- distribution of table shop.smaller
SELECT coditect.distribute('"shop"."smaller"');

-- table shop.smallest
CREATE TABLE "shop"."smallest" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "small_id" bigint NOT NULL,
    "language" text NOT NULL,
    CONSTRAINT "smallest_pkey" PRIMARY KEY ("tenant_id", small_id, language)
);

-- owner of table shop.smallest
ALTER TABLE "shop"."smallest" OWNER TO coditect_owner;

-- protection of table shop.smallest
SELECT coditect.protect('"shop"."smallest"');

-- distribution of table shop.smallest
SELECT coditect.distribute('"shop"."smallest"');

-- table shop.translation_use
CREATE TABLE "shop"."translation_use" (
    "tenant_id" uuid NOT NULL DEFAULT coditect.current_tenant(),
    "id" uuid NOT NULL DEFAULT gen_random_uuid(),
    "small_id" bigint,
    "language" text,
    CONSTRAINT "translation_use_pkey" PRIMARY KEY ("tenant_id", id),
    CONSTRAINT "translation_use_small_id_language_fkey_full" CHECK (num_nulls("small_id", "language") IN (0, 2))
);

-- owner of table shop.translation_use
ALTER TABLE "shop"."translation_use" OWNER TO coditect_owner;

-- protection of table shop.translation_use
SELECT coditect.protect('"shop"."translation_use"');

-- distribution of table shop.translation_use
SELECT coditect.distribute('"shop"."translation_use"');

-- constraint currency_name_key of shop_public.currency
ALTER TABLE "shop_public"."currency" ADD CONSTRAINT "currency_name_key" UNIQUE (name);

-- constraint Order_number_key of shop.Order
ALTER TABLE "shop"."Order" ADD CONSTRAINT "Order_number_key" UNIQUE ("tenant_id", number) DEFERRABLE INITIALLY DEFERRED;

-- constraint one_code of shop.Order
ALTER TABLE "shop"."Order" ADD CONSTRAINT "one_code" UNIQUE NULLS NOT DISTINCT ("tenant_id", code) INCLUDE (total);

-- index Trigram of shop.Order
CREATE INDEX "Trigram" ON "shop"."Order" USING gin (name "public".gin_trgm_ops) WITH (fastupdate=off);

-- index by_brin of shop.Order
CREATE INDEX "by_brin" ON "shop"."Order" USING brin (id);

-- index by_hash of shop.Order
CREATE INDEX "by_hash" ON "shop"."Order" USING hash (code);

-- index by_sum of shop.Order
CREATE INDEX "by_sum" ON "shop"."Order" USING btree ("tenant_id", ((total + tax)), "select");

-- index lower_name of shop.Order
CREATE UNIQUE INDEX "lower_name" ON "shop"."Order" USING btree ("tenant_id", lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (total) WHERE ("select" = 'it''s ok'::"shop".mood);

-- constraint a_table_whose_name_has_exactl_a_column_whose_name_has_exact_key of shop.a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__
ALTER TABLE "shop"."a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__" ADD CONSTRAINT "a_table_whose_name_has_exactl_a_column_whose_name_has_exact_key" UNIQUE ("tenant_id", a_column_whose_name_has_exactly_sixty_three_bytes_in_it_really_);

-- constraint booking_room_during_excl of shop.booking
ALTER TABLE "shop"."booking" ADD CONSTRAINT "booking_room_during_excl" EXCLUDE USING gist ("tenant_id" WITH =, room WITH =, during WITH &&) WHERE ((room > 0)) DEFERRABLE;

-- foreign key country_currency_fkey of shop_public.country
ALTER TABLE "shop_public"."country" ADD CONSTRAINT "country_currency_fkey" FOREIGN KEY ("currency") REFERENCES "shop_public"."currency" ("code");

-- foreign key Order_country_id_fkey of shop.Order
ALTER TABLE "shop"."Order" ADD CONSTRAINT "Order_country_id_fkey" FOREIGN KEY ("country_id") REFERENCES "shop_public"."country" ("id") ON DELETE SET NULL;

-- foreign key up of shop.Order
ALTER TABLE "shop"."Order" ADD CONSTRAINT "up" FOREIGN KEY ("tenant_id", "parent") REFERENCES "shop"."Order" ("tenant_id", "id") DEFERRABLE;

-- foreign key small_order_id_fkey of shop.small
ALTER TABLE "shop"."small" ADD CONSTRAINT "small_order_id_fkey" FOREIGN KEY ("tenant_id", "order_id") REFERENCES "shop"."Order" ("tenant_id", "id") ON DELETE CASCADE;

-- foreign key small_second_order_fkey of shop.small
ALTER TABLE "shop"."small" ADD CONSTRAINT "small_second_order_fkey" FOREIGN KEY ("tenant_id", "second_order") REFERENCES "shop"."Order" ("tenant_id", "id");

-- foreign key smaller_small_id_fkey of shop.smaller
ALTER TABLE "shop"."smaller" ADD CONSTRAINT "smaller_small_id_fkey" FOREIGN KEY ("tenant_id", "small_id") REFERENCES "shop"."small" ("tenant_id", "id") ON DELETE RESTRICT;

-- foreign key smallest_small_id_fkey of shop.smallest
ALTER TABLE "shop"."smallest" ADD CONSTRAINT "smallest_small_id_fkey" FOREIGN KEY ("tenant_id", "small_id") REFERENCES "shop"."smaller" ("tenant_id", "small_id");

-- foreign key translation_use_small_id_language_fkey of shop.translation_use
ALTER TABLE "shop"."translation_use" ADD CONSTRAINT "translation_use_small_id_language_fkey" FOREIGN KEY ("tenant_id", "small_id", "language") REFERENCES "shop"."smallest" ("tenant_id", "small_id", "language");

-- notes
-- identity_always: table Order: column id is GENERATED ALWAYS AS IDENTITY; on green it has a default, so a value given by the application is no longer refused
-- foreign_key_dropped: table Order: foreign key Order_stays_id_fkey does not come along, because stays stays where it is
-- on_delete_dropped: table Order: foreign key up loses ON DELETE SET NULL, which Citus refuses: deleting a row that is still referred to is refused on green
-- on_delete_dropped: table small: foreign key small_second_order_fkey loses ON DELETE SET DEFAULT, which Citus refuses: deleting a row that is still referred to is refused on green
-- on_update_dropped: table smaller: foreign key smaller_small_id_fkey loses ON UPDATE CASCADE: changing a referenced key is refused on green
-- on_delete_dropped: table translation_use: foreign key translation_use_small_id_language_fkey loses ON DELETE SET NULL, which Citus refuses: deleting a row that is still referred to is refused on green
-- needs
-- pg_catalog.C
-- public.gin_trgm_ops
-- extension btree_gist
