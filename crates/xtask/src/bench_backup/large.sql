-- More than a gigabyte beside `all_types.sql`: partitions, large values, large objects, and other databases' worries.
CREATE TABLE readings (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, place int, value numeric(10, 2), note text)
    PARTITION BY RANGE (at);
CREATE TABLE readings_2024 PARTITION OF readings FOR VALUES FROM ('2024-01-01') TO ('2025-01-01');
CREATE TABLE readings_2025 PARTITION OF readings FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY HASH (id);
CREATE TABLE readings_2025_even PARTITION OF readings_2025 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE readings_2025_odd PARTITION OF readings_2025 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE readings_rest PARTITION OF readings DEFAULT;
INSERT INTO readings (at, place, value, note)
    SELECT '2024-01-01'::timestamptz + n * interval '25 seconds', n % 1000, (n % 99991) / 100.0, md5(n::text) || E'\t\n\\' || n
    FROM generate_series(1, (4000000 * :scale)::int) AS n;
CREATE INDEX ON readings (at);
CREATE TABLE pictures (id int PRIMARY KEY, data bytea NOT NULL);
INSERT INTO pictures
    SELECT n, block || int4send(n) FROM generate_series(1, (4000 * :scale)::int) AS n,
        (SELECT string_agg(decode(md5(m::text), 'hex'), '') AS block FROM generate_series(1, 4096) AS m) AS random;
CREATE TABLE shown (picture int REFERENCES pictures, at timestamptz, PRIMARY KEY (picture, at));
INSERT INTO shown SELECT id, '2026-01-01' FROM pictures;
SELECT count(lo_from_bytea(0, block || int4send(n))) FROM generate_series(1, (2000 * :scale)::int) AS n,
    (SELECT string_agg(decode(md5(m::text), 'hex'), '') AS block FROM generate_series(1, 4096) AS m) AS random;
GRANT SELECT ON readings TO "odd role" WITH GRANT OPTION;
ANALYZE;
