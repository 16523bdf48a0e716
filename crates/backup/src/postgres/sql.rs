//! SQL text from names and values, and the questions we ask a server.

/// A name as an identifier.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value as a literal, whatever `standard_conforming_strings` says.
pub fn literal(value: &str) -> String {
    let quoted = value.replace('\'', "''");
    if quoted.contains('\\') {
        format!(" E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// A database's name as a connection string: a bare name with `=` in it would be taken for one.
pub fn connection(database: &str) -> String {
    format!("dbname='{}'", database.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Databases worth a backup: those that people connect to, the administrative one only where somebody put a table into it.
pub const DATABASES: &str = "SELECT json_agg(datname ORDER BY datname) FROM pg_database d \
    WHERE datallowconn AND NOT datistemplate AND datname <> 'postgres' \
    AND coalesce(shobj_description(d.oid, 'pg_database'), '') NOT LIKE 'appliance: %'";

/// Whether the connected database has relations of its users.
pub const HAS_TABLES: &str = "SELECT to_json(EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'))";

/// Version, clock and position of the server, and the extensions of the connected database.
pub const SERVER: &str = "SELECT json_build_object('version', current_setting('server_version_num')::int, \
    'version_text', current_setting('server_version'), \
    'now', to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), \
    'lsn', CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END, \
    'extensions', (SELECT coalesce(json_object_agg(extname, extversion), '{}') FROM pg_extension))";

/// What the connected database consists of, as one digest: columns, indexes, constraints, functions, triggers, policies.
///
/// Names and texts as the server itself spells them, so that two databases with the same schema have the same digest.
pub const SCHEMA: &str = "WITH ours AS (SELECT oid, nspname FROM pg_namespace \
      WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname NOT LIKE 'pg_toast%' AND nspname NOT LIKE 'pg_temp%'), \
    lines AS ( \
      SELECT concat_ws('|', 'column', nspname, relname, relkind, relpersistence, relrowsecurity, attname, format_type(atttypid, atttypmod), \
        attnotnull, attidentity, attgenerated, pg_get_expr(d.adbin, d.adrelid)) AS line \
        FROM pg_class c JOIN ours ON ours.oid = c.relnamespace \
        LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum \
        WHERE c.relkind IN ('r', 'p', 'm', 'v', 'f') \
      UNION ALL SELECT concat_ws('|', 'index', nspname, pg_get_indexdef(i.indexrelid)) \
        FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN ours ON ours.oid = c.relnamespace \
      UNION ALL SELECT concat_ws('|', 'constraint', nspname, conrelid::regclass, conname, pg_get_constraintdef(k.oid)) \
        FROM pg_constraint k JOIN ours ON ours.oid = k.connamespace \
      UNION ALL SELECT concat_ws('|', 'function', nspname, proname, pg_get_function_identity_arguments(p.oid), md5(prosrc)) \
        FROM pg_proc p JOIN ours ON ours.oid = p.pronamespace \
      UNION ALL SELECT concat_ws('|', 'trigger', pg_get_triggerdef(t.oid)) FROM pg_trigger t WHERE NOT tgisinternal \
      UNION ALL SELECT concat_ws('|', 'policy', polrelid::regclass, polname, polcmd, pg_get_expr(polqual, polrelid)) FROM pg_policy) \
    SELECT to_json(md5(coalesce(string_agg(line, E'\\n' ORDER BY line COLLATE \"C\"), ''))) FROM lines";

/// Indexes that are not usable.
pub const INVALID_INDEXES: &str =
    "SELECT coalesce(json_agg(indexrelid::regclass::text), '[]') FROM pg_index WHERE NOT indisvalid";

/// Every table that can hold rows of its own, as the server quotes it, and whether an extension brought it.
pub const TABLES: &str = "SELECT coalesce(json_agg(json_build_object('name', n.nspname || '.' || c.relname, \
    'quoted', format('%I.%I', n.nspname, c.relname), \
    'extension', EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))), '[]') \
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
    WHERE c.relkind = 'r' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'";

/// Properties of one database.
pub fn database(name: &str) -> String {
    // Older servers lack some columns; the row as JSON has what there is.
    format!(
        "SELECT json_build_object('row', to_jsonb(d) - 'datacl', 'owner', pg_get_userbyid(datdba), 'encoding', pg_encoding_to_char(encoding), \
         'comment', shobj_description(d.oid, 'pg_database'), \
         'grants', (SELECT coalesce(json_agg(json_build_object('privilege', privilege_type, 'grantable', is_grantable, \
            'grantee', CASE WHEN grantee = 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END) ORDER BY grantee, privilege_type), '[]') \
            FROM aclexplode(datacl)), \
         'has_acl', datacl IS NOT NULL, \
         'settings', (SELECT coalesce(json_agg(json_build_object('role', CASE WHEN setrole <> 0 THEN quote_ident(pg_get_userbyid(setrole)) END, \
            'setting', setting) ORDER BY setrole, setting), '[]') FROM pg_db_role_setting s, unnest(s.setconfig) AS setting WHERE s.setdatabase = d.oid)) \
         FROM pg_database d WHERE datname = {}",
        literal(name)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_cannot_leave_their_quotes() {
        assert_eq!(ident(r#"a"b; DROP"#), r#""a""b; DROP""#);
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\' OR 1=1"), r" E'a\\'' OR 1=1'");
        assert_eq!(connection(r"we'ird=\"), r"dbname='we\'ird=\\'");
    }
}
