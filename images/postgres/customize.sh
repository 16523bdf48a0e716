#!/bin/sh
# Lays out what the official image has: customize.sh ROOT SUITE
set -eu
root=$1

chroot "$root" localedef -i en_US -f UTF-8 en_US.UTF-8

# The version that Debian ships decides all paths.
major=$(ls "$root/usr/lib/postgresql")
for program in "$root/usr/lib/postgresql/$major/bin"/*; do
    ln -sf "/usr/lib/postgresql/$major/bin/${program##*/}" "$root/usr/local/bin/${program##*/}"
done
# A container's server is there to be reached from other containers.
sed -i "s/^#*listen_addresses = .*/listen_addresses = '*'/" \
    "$root/usr/share/postgresql/$major/postgresql.conf.sample"

chroot "$root" install -d -o postgres -g postgres -m 1777 /var/lib/postgresql /var/lib/postgresql/data
chroot "$root" install -d -o postgres -g postgres -m 3777 /var/run/postgresql
install -d "$root/docker-entrypoint-initdb.d"
