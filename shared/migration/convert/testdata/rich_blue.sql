-- One tenant's schema with everything a table may have, and shared tables beside it.
CREATE EXTENSION btree_gist;
CREATE EXTENSION pg_trgm;
CREATE TYPE public.level AS ENUM ('low', 'high');
CREATE TABLE public.currency (code char(3) PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE public.country (id serial PRIMARY KEY, name text NOT NULL, currency char(3) REFERENCES public.currency, level public.level);
CREATE TABLE public.stays (id bigserial PRIMARY KEY);

CREATE SCHEMA "we""ird Name";
SET search_path = "we""ird Name", public;
CREATE TYPE mood AS ENUM ('sad', 'it''s ok', 'we"ird Name.happy');
CREATE DOMAIN "E-Mail" AS text CONSTRAINT has_at CHECK (VALUE ~ '@');
CREATE DOMAIN mood_not_sad AS mood CHECK (VALUE <> 'sad');
CREATE TYPE span AS RANGE (SUBTYPE = float8, SUBTYPE_DIFF = float8mi, MULTIRANGE_TYPE_NAME = span_multirange);
CREATE SEQUENCE numbers START WITH 1000 INCREMENT BY 10 CACHE 5;

CREATE TABLE "Order" (
    id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    "select" mood NOT NULL DEFAULT 'sad',
    moods mood[] NOT NULL DEFAULT '{sad}',
    mail "E-Mail",
    calm mood_not_sad,
    level level DEFAULT 'low',
    number bigint NOT NULL DEFAULT nextval('numbers') UNIQUE DEFERRABLE INITIALLY DEFERRED,
    label text NOT NULL DEFAULT 'we"ird Name.x',
    total numeric(10,2),
    tax numeric(10,2) GENERATED ALWAYS AS (total * 0.2) STORED,
    name text COLLATE "C",
    code text,
    parent int,
    country_id int REFERENCES public.country ON DELETE SET NULL,
    stays_id bigint REFERENCES public.stays,
    CONSTRAINT "sad, is free" CHECK ("select" <> 'sad'::mood OR total = 0),
    CONSTRAINT one_code UNIQUE NULLS NOT DISTINCT (code) INCLUDE (total),
    CONSTRAINT up FOREIGN KEY (parent) REFERENCES "Order" ON DELETE SET NULL DEFERRABLE
);
CREATE UNIQUE INDEX lower_name ON "Order" (lower(name) text_pattern_ops DESC NULLS LAST) INCLUDE (total) WHERE "select" = 'it''s ok';
CREATE INDEX "Trigram" ON "Order" USING gin (name gin_trgm_ops) WITH (fastupdate = off);
CREATE INDEX by_hash ON "Order" USING hash (code);
CREATE INDEX by_brin ON "Order" USING brin (id);
CREATE INDEX by_sum ON "Order" ((total + tax), "select");

CREATE TABLE small (
    id smallserial PRIMARY KEY,
    order_id int NOT NULL REFERENCES "Order" ON DELETE CASCADE,
    second_order int DEFAULT 1 REFERENCES "Order" ON DELETE SET DEFAULT
);
-- Widened through two keys: small.id, and everything that refers to it.
CREATE TABLE smaller (
    small_id smallint PRIMARY KEY REFERENCES small ON UPDATE CASCADE ON DELETE RESTRICT,
    note text
);
CREATE TABLE smallest (
    small_id smallint NOT NULL REFERENCES smaller,
    language text NOT NULL,
    PRIMARY KEY (small_id, language)
);
CREATE TABLE translation_use (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    small_id smallint,
    language text,
    FOREIGN KEY (small_id, language) REFERENCES smallest MATCH FULL ON DELETE SET NULL
);
CREATE TABLE booking (
    room int,
    during tstzrange,
    id bigserial PRIMARY KEY,
    EXCLUDE USING gist (room WITH =, during WITH &&) WHERE (room > 0) DEFERRABLE
);
CREATE TABLE a_table_whose_name_has_exactly_sixty_three_bytes_in_it_really__ (
    id bigserial PRIMARY KEY,
    a_column_whose_name_has_exactly_sixty_three_bytes_in_it_really_ text UNIQUE
);
-- Not on Citus: it cannot distribute range types.
CREATE TABLE ranged (id bigserial PRIMARY KEY, width span, widths span_multirange);
CREATE TABLE empty_of_columns_but_key (id text PRIMARY KEY);
RESET search_path;
