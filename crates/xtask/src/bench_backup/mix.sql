-- What apps keep: people, events with JSON, texts, and things that do not compress. 851 MB at scale 1.
CREATE TABLE users AS
    SELECT n AS id, 'user' || n AS name, 'user' || n || '@example.com' AS email, now() - n * interval '1 minute' AS joined
    FROM generate_series(1, (300000 * :scale)::int) AS n;
ALTER TABLE users ADD PRIMARY KEY (id);
CREATE TABLE events AS
    SELECT gen_random_uuid() AS id, (ARRAY['view', 'click', 'buy', 'return'])[1 + n % 4] AS kind,
        now() - n * interval '1 second' AS at, (n % 10000) / 100.0 AS amount,
        jsonb_build_object('user', n % 300000, 'session', md5(n::text), 'page', '/p/' || n % 1000) AS data
    FROM generate_series(1, (2200000 * :scale)::int) AS n;
CREATE INDEX ON events (at);
CREATE INDEX ON events (id);
CREATE TABLE docs AS
    SELECT n AS id, (
        SELECT string_agg((ARRAY['lorem', 'ipsum', 'dolor', 'sit', 'amet', 'consetetur', 'sadipscing', 'elitr', 'sed', 'diam', 'nonumy',
            'eirmod', 'tempor', 'invidunt', 'ut', 'labore'])[1 + (random() * 15)::int] || (random() * 50)::int, ' ')
        FROM generate_series(1, 60 + n % 41) WHERE n > 0
    ) AS body
    FROM generate_series(1, (120000 * :scale)::int) AS n;
CREATE EXTENSION pgcrypto;
CREATE TABLE blobs AS
    SELECT n AS id, (SELECT string_agg(gen_random_bytes(1024), '') FROM generate_series(1, 32) WHERE n > 0) AS data
    FROM generate_series(1, (2500 * :scale)::int) AS n;
ANALYZE;
