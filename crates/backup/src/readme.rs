//! The page in every repository that says how to restore without this program.

/// What it says.
pub const TEXT: &str = r#"Backups made by `appliance`
===========================

Nothing but common tools is needed to restore from this place: an S3 client (or none, for a directory),
`age`, `zstd`, and for PostgreSQL `pg_restore` and `psql` of at least the version in the manifest.

What is here
------------

  <app>/<kind>/<accessory>/<database>/<time>-<random>/
      vol-00000.zst.age, vol-00001.zst.age, ...   the content, cut into volumes; one after the other they are ONE stream
      globals.zst.age                             roles and tablespaces (PostgreSQL)
      manifest.json                               written last: a directory without it is not a backup
      verified-<time>.json                        this backup was restored and compared at that time

The stream is zstd inside age: `age -d` first, then `zstd -d`.
The key is the recovery key that was shown when backups were set up, or the host's own /etc/appliance/host.key.

What a manifest says (its first line is JSON, its second the signature):

  head -n 1 manifest.json | jq .

Restore a PostgreSQL database
-----------------------------

  PREFIX=s3://BUCKET/PREFIX/APP/postgres/ACCESSORY/DATABASE/ID

  # Roles, where the new server does not have them. Errors about roles that exist are harmless.
  aws s3 cp $PREFIX/globals.zst.age - | age -d -i recovery.key | zstd -d | psql -d postgres

  # The data, into a new database. Encoding and locale are in the manifest, under "database".
  createdb --template=template0 restored
  for volume in $(aws s3 ls $PREFIX/ | awk '/ vol-/ {print $4}' | sort); do aws s3 cp $PREFIX/$volume -; done |
      age -d -i recovery.key | zstd -d | pg_restore --exit-on-error --dbname=restored

From a directory, `cat vol-*.zst.age` takes the place of the loop.
Grants on the database itself and its settings are statements in the manifest: database.statements.

Restore other things
--------------------

  redis     the stream is a dump.rdb: stop the server, put it in its data directory, start it
  sqlite    the stream is the database file
  volume    the stream is a tar archive

With the program, on a new host or under a new name
---------------------------------------------------

Write the same place into the new host's configuration and push it. `appliance backup list` then shows the backups of
the former host and the key that they are signed with ("signing_key" in appliance.json is that of the first host):

  appliance restore ACCESSORY --swap --trust KEY --recovery-key recovery.key

Those of an accessory that had another name: add --from OLD-NAME, or --from OLD-APP/OLD-NAME.

Check that nothing was altered
------------------------------

  sha256sum vol-*.zst.age     and compare with "volumes" in the manifest
  ... | zstd -d | sha256sum   and compare with "plain_sha256"
"#;
