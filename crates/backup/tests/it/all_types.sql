-- Everything that a dump can get wrong, in one database.
CREATE EXTENSION hstore;
CREATE SCHEMA "odd ""schema""";
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (a int, b text);
CREATE TABLE every_type (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    small smallint, real_ real, double_ double precision, exact numeric(30, 10), money_ money,
    flag boolean, text_ text, char_ char(5), bytes bytea, at timestamptz, plain timestamp, day date, clock time, span interval,
    uuid_ uuid, json_ json, jsonb_ jsonb, xml_ xml, inet_ inet, cidr_ cidr, mac macaddr, bits bit varying(20),
    words tsvector, asked tsquery, point_ point, box_ box, ints int[], texts text[][], range_ int4range, multi int4multirange,
    mood_ mood, positive_ positive, pair_ pair, pairs hstore,
    doubled numeric GENERATED ALWAYS AS (exact * 2) STORED
);
INSERT INTO every_type (small, real_, double_, exact, money_, flag, text_, char_, bytes, at, plain, day, clock, span, uuid_, json_, jsonb_,
    xml_, inet_, cidr_, mac, bits, words, asked, point_, box_, ints, texts, range_, multi, mood_, positive_, pair_, pairs)
SELECT n, n / 3.0, n * 1e100, n / 7.0, n, n % 2 = 0, E'line one\nline two\t\\. \\N ' || n, 'ab', decode(md5(n::text), 'hex'),
    '2026-11-21 03:15+01'::timestamptz + n * interval '1 hour', '2026-11-21', '2026-11-21', '03:15', n * interval '1 day',
    md5(n::text)::uuid, '{"a": [1, null]}', jsonb_build_object('n', n), '<a>ä</a>', '10.0.0.1', '10.0.0.0/8', '08:00:2b:01:02:03', B'101',
    to_tsvector('simple', 'a b c'), 'a & b', point(n, n), box(point(0, 0), point(n, n)), ARRAY[n, NULL], ARRAY[['a', '{"'], ['\\', '']],
    int4range(n, n + 5), '{[1,3), [5,7)}', 'ok', n, ROW(n, 'x,"y')::pair, hstore('k', n::text)
FROM generate_series(1, 500) AS n;
INSERT INTO every_type (text_) VALUES (NULL), (''), (E'\\.'), (E'\n');
CREATE TABLE nothing (x int);
CREATE TABLE no_columns ();
INSERT INTO no_columns SELECT FROM generate_series(1, 7);
CREATE TABLE "odd ""schema"""."Weird.Name; --" ("select" text, "a ""b""" int);
INSERT INTO "odd ""schema"""."Weird.Name; --" VALUES ('x', 1);
CREATE TABLE parted (id int, at date) PARTITION BY RANGE (at);
CREATE TABLE parted_2025 PARTITION OF parted FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE parted_rest PARTITION OF parted DEFAULT;
CREATE INDEX ON parted (at);
INSERT INTO parted SELECT n, '2025-06-01'::date + n FROM generate_series(1, 400) AS n;
CREATE TABLE parent (a int); CREATE TABLE child (b int) INHERITS (parent);
INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 3), (4, 5);
CREATE UNLOGGED TABLE unlogged (x int); INSERT INTO unlogged VALUES (1);
CREATE TABLE secret (owner text, x int); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY own ON secret USING (owner = current_user); INSERT INTO secret VALUES ('somebody', 1);
CREATE SEQUENCE counter START 10 INCREMENT 5; SELECT nextval('counter'), nextval('counter');
CREATE MATERIALIZED VIEW summed AS SELECT count(*) AS n FROM every_type;
CREATE VIEW seen AS SELECT id, text_ FROM every_type WHERE flag;
CREATE FUNCTION twice(x int) RETURNS int LANGUAGE sql IMMUTABLE AS $$ SELECT x * 2 -- $
$$;
CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$;
CREATE TRIGGER noted BEFORE INSERT ON secret FOR EACH ROW EXECUTE FUNCTION noted();
CREATE INDEX partial ON every_type (lower(text_)) WHERE flag;
SELECT lo_from_bytea(0, convert_to(repeat('large object ' || n, 3000), 'UTF8')) FROM generate_series(1, 5) AS n;
COMMENT ON TABLE every_type IS 'it''s all here';
GRANT SELECT ON every_type TO reader; GRANT USAGE ON SCHEMA "odd ""schema""" TO reader WITH GRANT OPTION;
ALTER TABLE parted OWNER TO "odd role";
ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO reader;
