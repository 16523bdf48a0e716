#!/bin/sh
# Before the packages: the user that the official image has, and no cluster made by the package.
set -eu
root=$1

# useradd is not there yet; passwd's own installation adds the shadow entries.
echo 'postgres:x:999:' >> "$root/etc/group"
echo 'postgres:x:999:999:PostgreSQL administrator:/var/lib/postgresql:/bin/bash' >> "$root/etc/passwd"
mkdir -p "$root/etc/postgresql-common"
echo 'create_main_cluster = false' > "$root/etc/postgresql-common/createcluster.conf"
