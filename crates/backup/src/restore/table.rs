//! One table of a backup: with its rows, its partitions, its indexes and keys, and everything its columns are made of.
//!
//! ```text
//!   list of the archive ─► definitions of all ─► rows of the one, then indexes, keys and triggers ─► the others, empty, go
//! ```
//!
//! `pg_restore --table` brings neither the schema nor types, sequences, indexes or keys. So all definitions are made, which
//! takes no time, and only the rows are chosen. Foreign keys are left out: the tables they point to have no rows.

use std::sync::Arc;

use serde::Deserialize;

use super::RestoreError;
use crate::manifest::Manifest;
use crate::place::{Offered, Place};
use crate::postgres::{Postgres, sql};
use crate::repository::Repository;
use crate::stream;
use crate::tap::{Counts, Tap};

impl Relation {
    /// As the counts of a backup name it.
    fn key(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// What whoever gets one table should know.
pub(super) const LEFT_OUT: &str =
    "its foreign keys are left out, and other tables are there, empty, where something needs them";
/// Other tables are removed afterwards if there are no more: each costs the server a lock.
const REMOVED: usize = 1000;
/// Entries of an archive that one table is restored without: what needs rows of other tables, or concerns the whole.
const WITHOUT: &[&str] = &[
    "FK CONSTRAINT ",
    "MATERIALIZED VIEW DATA ",
    "EVENT TRIGGER ",
    "PUBLICATION",
    "SUBSCRIPTION",
    "COMMENT ",
    "SECURITY LABEL ",
    "BLOB",
    "LARGE OBJECT",
];

/// A table's name as people write it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    schema: Option<String>,
    table: String,
}

/// A table of the side database.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct Relation {
    schema: String,
    name: String,
    /// A table that was asked for itself, no partition of one.
    asked: bool,
}

/// One table of a backup, and the room for it.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// Its name, as people write it.
    pub table: &'a str,
    /// Bytes that are free on the server's disk; `None` where nobody can tell.
    pub free: Option<u64>,
}

/// What rows need on the disk, in tenths of their text: themselves, their indexes, and what the server writes meanwhile.
const TENTHS: u64 = 22;
/// What a new database takes before any rows are in it, and what its server writes meanwhile, bytes.
const EMPTY: u64 = 64 << 20;

/// Looks whether the rows of these tables fit; answers with a warning where the backup does not tell how many they are.
fn fits(
    counts: Option<&Counts>,
    relations: &[Relation],
    part: Part<'_>,
) -> Result<Option<String>, RestoreError> {
    let Some(counts) = counts else {
        return Ok(Some(format!(
            "the backup does not tell how large {} is: whether there is room for it was not looked at",
            part.table
        )));
    };
    let known = |relation: &Relation| counts.tables.get(&relation.key());
    let bytes: u64 = relations.iter().filter_map(known).map(|table| table.bytes).sum();
    let needed = (bytes / 10).saturating_mul(TENTHS).saturating_add(EMPTY);
    match part.free {
        Some(free) if free < needed => Err(RestoreError::Room {
            table: part.table.to_owned(),
            needed,
            free,
        }),
        _ => Ok(None),
    }
}

/// Fills the side database with one table. Answers with how many tables have rows of their own, how many rows, and what
/// whoever asked should know.
///
/// # Errors
/// When there is no such table or no room for it, anything fails, or its rows are not as many as were backed up.
pub(super) async fn fill(
    repository: &Repository,
    server: &Postgres,
    manifest: &Manifest,
    side: &str,
    word: &str,
    part: Part<'_>,
) -> Result<(u64, u64, Option<String>), RestoreError> {
    let name = Name::parse(part.table)?;
    let place = server.place();
    let listed = stream::show(repository, manifest, place, server.contents(), word).await?;
    let list = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut job = server.restore(side);
    job.command.push("--section=pre-data".to_owned());
    stream::show(repository, manifest, place, job, word).await?;

    let relations: Vec<Relation> = server.ask(side, "its tables", &name.question()).await?;
    name.one(&relations)?;
    let unsure = fits(manifest.counts.as_ref(), &relations, part)?;
    bring(
        repository,
        server,
        manifest,
        side,
        word,
        chosen(&list, &relations),
    )
    .await?;

    let wanted: Vec<String> = relations.iter().map(Relation::key).collect();
    let all = server.tables(side).await?;
    let (ours, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|table| wanted.contains(&table.name));
    let counts = server.count(side, &ours).await?;
    for (table, found) in ours.iter().zip(&counts) {
        let expected = manifest.counts.as_ref();
        let expected = expected.and_then(|counts| counts.tables.get(&table.name));
        if let Some(expected) = expected.filter(|expected| expected.rows != *found) {
            return Err(RestoreError::Differs {
                what: format!("{} has {found} rows, the backup {}", table.name, expected.rows),
            });
        }
    }
    if others.len() <= REMOVED {
        server.run(side, &without_others(&wanted)).await?;
    }
    Ok((ours.len() as u64, counts.iter().sum(), unsure))
}

async fn bring(
    repository: &Repository,
    server: &Postgres,
    manifest: &Manifest,
    side: &str,
    word: &str,
    list: String,
) -> Result<(), RestoreError> {
    let place: &Arc<dyn Place> = server.place();
    let offered = Offered::new(&**place, &format!("{word}-list"), list).map_err(stream::StreamError::from)?;
    let mut job = server.restore(side);
    job.command.extend([
        "--section=data".to_owned(),
        "--section=post-data".to_owned(),
        format!("--use-list={}", offered.inside()),
    ]);
    let tap = manifest.counts.as_ref().map(|_| Tap::default());
    stream::replay(repository, manifest, place, job, tap, word, true).await?;
    Ok(())
}

/// The lines of an archive's list that fill these tables.
fn chosen(list: &str, relations: &[Relation]) -> String {
    let entry = |line: &&str| {
        // `215; 1259 16386 TABLE DATA public items owner`
        let Some(what) = line.splitn(4, ' ').nth(3).filter(|_| !line.starts_with(';')) else {
            return false;
        };
        match what.strip_prefix("TABLE DATA ") {
            Some(of) => relations
                .iter()
                .any(|relation| of.starts_with(&format!("{} {} ", relation.schema, relation.name))),
            None => !WITHOUT.iter().any(|begin| what.starts_with(begin)),
        }
    };
    let mut text = String::new();
    for line in list.lines().filter(entry) {
        text.push_str(line);
        text.push('\n');
    }
    text
}

/// Removes tables that nothing needs; what needs one that goes may go in the next round.
fn without_others(wanted: &[String]) -> String {
    let wanted: Vec<String> = wanted.iter().map(|name| sql::literal(name)).collect();
    format!(
        "DO $appliance$ DECLARE found text; removed boolean; BEGIN LOOP removed := false; \
         FOR found IN SELECT pg_catalog.format('%I.%I', n.nspname, c.relname) FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') \
         AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%' \
         AND NOT (n.nspname || '.' || c.relname) = ANY (ARRAY[{}]::text[]) \
         LOOP BEGIN EXECUTE 'DROP TABLE ' || found; removed := true; \
         EXCEPTION WHEN dependent_objects_still_exist OR undefined_table THEN NULL; END; END LOOP; \
         EXIT WHEN NOT removed; END LOOP; END $appliance$",
        wanted.join(", ")
    )
}

impl Name {
    /// `table`, `schema.table`, and both with quotes as in SQL: `"Odd.Schema"."a ""b"""`.
    fn parse(text: &str) -> Result<Self, RestoreError> {
        let wrong = || RestoreError::Table {
            why: format!(
                "{text:?} is no name of a table; write table or schema.table, in double quotes where there is a dot in a name"
            ),
        };
        let mut parts = Vec::new();
        let mut rest = text;
        loop {
            let (part, after) = match rest.strip_prefix('"') {
                Some(quoted) => quoted_part(quoted).ok_or_else(wrong)?,
                None => {
                    let (part, after) = rest.split_at(rest.find('.').unwrap_or(rest.len()));
                    (part.to_owned(), after)
                }
            };
            if part.is_empty() {
                return Err(wrong());
            }
            parts.push(part);
            match after.strip_prefix('.') {
                Some(more) => rest = more,
                None if after.is_empty() => break,
                None => return Err(wrong()),
            }
        }
        let table = parts.pop().ok_or_else(wrong)?;
        let schema = parts.pop();
        if parts.is_empty() {
            Ok(Self { schema, table })
        } else {
            Err(wrong())
        }
    }

    /// The tables of that name, and their partitions.
    fn question(&self) -> String {
        let schema = match &self.schema {
            Some(schema) => format!("n.nspname = {}", sql::literal(schema)),
            None => "n.nspname NOT IN ('pg_catalog', 'information_schema')".to_owned(),
        };
        format!(
            "WITH RECURSIVE wanted AS (SELECT c.oid, true AS asked FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind IN ('r', 'p') AND c.relname = {} AND {schema} \
             UNION SELECT i.inhrelid, false FROM pg_inherits i JOIN wanted ON i.inhparent = wanted.oid \
             JOIN pg_class c ON c.oid = i.inhrelid WHERE c.relispartition) \
             SELECT coalesce(json_agg(json_build_object('schema', n.nspname, 'name', c.relname, 'asked', asked)), '[]') \
             FROM wanted JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace",
            sql::literal(&self.table)
        )
    }

    /// That exactly one table is meant.
    fn one(&self, relations: &[Relation]) -> Result<(), RestoreError> {
        let asked: Vec<String> = relations
            .iter()
            .filter(|relation| relation.asked)
            .map(|relation| format!("{}.{}", sql::ident(&relation.schema), sql::ident(&relation.name)))
            .collect();
        let shown = match &self.schema {
            Some(schema) => format!("{schema}.{}", self.table),
            None => self.table.clone(),
        };
        let why = match asked.len() {
            1 => return Ok(()),
            0 => format!(
                "there is no table {shown} in this backup; write schema.table, with the letters as they are"
            ),
            _ => format!(
                "there are several tables {shown}: choose one of {}",
                asked.join(", ")
            ),
        };
        Err(RestoreError::Table { why })
    }
}

/// What stands before the closing quote, and what comes after it.
fn quoted_part(text: &str) -> Option<(String, &str)> {
    let mut name = String::new();
    let mut letters = text.char_indices().peekable();
    loop {
        match letters.next()? {
            (_, '"') if letters.next_if(|(_, next)| *next == '"').is_some() => name.push('"'),
            (at, '"') => return Some((name, text.get(at + 1..)?)),
            (_, letter) => name.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_with_and_without_quotes() {
        let read = |text: &str| Name::parse(text).map(|name| (name.schema, name.table)).ok();
        let of = |schema: &str, table: &str| Some((Some(schema.to_owned()), table.to_owned()));
        assert_eq!(read("items"), Some((None, "items".to_owned())));
        assert_eq!(read("app.Items"), of("app", "Items"));
        assert_eq!(
            read(r#""odd ""schema"""."Weird.Name; --""#),
            of(r#"odd "schema""#, "Weird.Name; --")
        );
        assert_eq!(read(r#"app."a.b""#), of("app", "a.b"));
        for wrong in ["", ".", "a.", ".b", "a.b.c", r#""a"#, r#""a"b"#, r#""""#] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_table_that_does_not_fit_is_refused_before_its_first_row() {
        let of = |name: &str| Relation {
            schema: "app".to_owned(),
            name: name.to_owned(),
            asked: name == "items",
        };
        let mut counts = Counts::default();
        for (name, bytes) in [
            ("app.items", 0),
            ("app.items_1", 400 << 20),
            ("app.items_2", 600 << 20),
            ("app.log", 1 << 40),
        ] {
            let table = crate::tap::TableCounts { rows: 1, bytes };
            counts.tables.insert(name.to_owned(), table);
        }
        // Its partitions are a part of it, other tables are not.
        let relations = ["items", "items_1", "items_2"].map(of);
        let look = |counts: Option<&Counts>, free| fits(counts, &relations, Part { table: "items", free });
        assert!(matches!(look(Some(&counts), Some(2_300 << 20)), Ok(None)));
        let refused = look(Some(&counts), Some(2_200 << 20)).expect_err("too little");
        assert!(
            refused
                .to_string()
                .contains("the rows of items need about 2373976"),
            "{refused}"
        );
        assert!(matches!(look(Some(&counts), None), Ok(None)));
        let unsure = look(None, Some(0)).expect("an old backup is restored all the same");
        assert!(unsure.is_some_and(|why| why.contains("items")));
    }

    #[test]
    fn rows_of_one_table_are_chosen_and_what_stands_on_them() {
        let list = "\
            ;\n; Archive created at 2026-11-21\n;     Format: CUSTOM\n;\n\
            2; 2615 16389 SCHEMA - app owner\n\
            220; 1259 16390 TABLE app items owner\n\
            3400; 0 16390 TABLE DATA app items owner\n\
            3401; 0 16391 TABLE DATA app items2 owner\n\
            3402; 0 16392 TABLE DATA public items owner\n\
            3410; 0 0 SEQUENCE SET app items_id_seq owner\n\
            3411; 0 0 BLOBS - BLOBS \n\
            3250; 2606 16400 CONSTRAINT app items items_pkey owner\n\
            3251; 1259 16401 INDEX app items_name owner\n\
            3252; 2606 16402 FK CONSTRAINT app items items_shop_fkey owner\n\
            3253; 0 16403 MATERIALIZED VIEW DATA app totals owner\n";
        let items = Relation {
            schema: "app".to_owned(),
            name: "items".to_owned(),
            asked: true,
        };
        let chosen = chosen(list, &[items]);
        let numbers: Vec<&str> = chosen
            .lines()
            .filter_map(|line| Some(line.split_once(';')?.0))
            .collect();
        assert_eq!(numbers, ["2", "220", "3400", "3410", "3250", "3251"]);
    }
}
