#!/bin/bash
# Starts PostgreSQL as the official image does: what it documents about its environment, first-start scripts and
# data directory holds here too.
set -Eeo pipefail

say() {
    printf '%s\n' "$*" >&2
}

# Sets NAME from NAME_FILE's content, or to a default; both at once are a mistake.
from_file() {
    local name=$1 default=${2-} file_name=${1}_FILE value
    if [ -n "${!name-}" ] && [ -n "${!file_name-}" ]; then
        say "error: both $name and $file_name are set; set one"
        exit 1
    fi
    value=${!name-$default}
    if [ -n "${!file_name-}" ]; then
        value=$(< "${!file_name}")
    fi
    export "$name=$value"
    unset "$file_name"
}

read_environment() {
    from_file POSTGRES_PASSWORD
    from_file POSTGRES_USER postgres
    from_file POSTGRES_DB "$POSTGRES_USER"
    from_file POSTGRES_INITDB_ARGS
    : "${POSTGRES_HOST_AUTH_METHOD:=}"
}

check_password() {
    if [ -z "$POSTGRES_PASSWORD" ] && [ "$POSTGRES_HOST_AUTH_METHOD" != trust ]; then
        say 'error: the database is new and the superuser has no password'
        say '       set POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE to a value that is not empty;'
        say '       POSTGRES_HOST_AUTH_METHOD=trust lets everybody in without one'
        exit 1
    fi
    if [ "$POSTGRES_HOST_AUTH_METHOD" = trust ]; then
        say 'warning: POSTGRES_HOST_AUTH_METHOD is trust: whoever reaches port 5432 is let in as anybody'
    fi
}

create_cluster() {
    local arguments=(--username="$POSTGRES_USER")
    if [ -n "${POSTGRES_INITDB_WALDIR-}" ]; then
        arguments+=(--waldir="$POSTGRES_INITDB_WALDIR")
    fi
    # The value is a command line, as documented by the official image.
    # shellcheck disable=SC2086
    eval 'initdb "${arguments[@]}" --pwfile=<(printf "%s\n" "$POSTGRES_PASSWORD")' $POSTGRES_INITDB_ARGS

    local method=$POSTGRES_HOST_AUTH_METHOD
    if [ -z "$method" ]; then
        method=$("$@" -C password_encryption)
    fi
    printf '\nhost all all all %s\n' "$method" >> "$PGDATA/pg_hba.conf"
}

# A server that only this container's socket reaches, for the first-start scripts.
start_private() {
    if [ "$1" = postgres ]; then shift; fi
    NOTIFY_SOCKET='' PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -w start \
        -o "$(printf '%q ' "$@" -c listen_addresses= -p "${PGPORT:-5432}")"
}

stop_private() {
    PGUSER=$POSTGRES_USER pg_ctl -D "$PGDATA" -m fast -w stop
}

run_sql() {
    local database=()
    if [ -n "$POSTGRES_DB" ]; then database=(--dbname "$POSTGRES_DB"); fi
    PGHOST='' PGHOSTADDR='' psql -v ON_ERROR_STOP=1 --username "$POSTGRES_USER" --no-password --no-psqlrc \
        "${database[@]}" "$@"
}

create_database() {
    local found
    found=$(POSTGRES_DB='' run_sql --dbname postgres --tuples-only --set db="$POSTGRES_DB" \
        <<< "SELECT 1 FROM pg_database WHERE datname = :'db';")
    if [ -z "$found" ]; then
        POSTGRES_DB='' run_sql --dbname postgres --set db="$POSTGRES_DB" <<< 'CREATE DATABASE :"db";'
    fi
}

run_scripts() {
    local file
    for file; do
        case $file in
            *.sh)
                if [ -x "$file" ]; then
                    say "$0: running $file"
                    "$file"
                else
                    say "$0: sourcing $file"
                    # shellcheck disable=SC1090
                    . "$file"
                fi
                ;;
            *.sql) say "$0: running $file"; run_sql -f "$file" ;;
            *.sql.gz) say "$0: running $file"; gunzip -c "$file" | run_sql ;;
            *.sql.xz) say "$0: running $file"; xzcat "$file" | run_sql ;;
            *.sql.zst) say "$0: running $file"; zstd -dc "$file" | run_sql ;;
            *) say "$0: ignoring $file" ;;
        esac
    done
}

# Only `postgres` that would really serve needs a cluster.
wants_help() {
    local argument
    for argument; do
        case $argument in
            -'?' | --help | --describe-config | -V | --version) return 0 ;;
        esac
    done
    return 1
}

main() {
    # Flags alone are flags of the server.
    if [ "${1:0:1}" = - ]; then
        set -- postgres "$@"
    fi
    if [ "$1" != postgres ] || wants_help "$@"; then
        exec "$@"
    fi

    mkdir -p "$PGDATA"
    if [ "$(id -u)" = 0 ]; then
        chmod 0700 "$PGDATA" || true
        find "$PGDATA" \! -user postgres -exec chown postgres '{}' +
        mkdir -p /var/run/postgresql
        chmod 3777 /var/run/postgresql || true
        if [ -n "${POSTGRES_INITDB_WALDIR-}" ]; then
            mkdir -p "$POSTGRES_INITDB_WALDIR"
            find "$POSTGRES_INITDB_WALDIR" \! -user postgres -exec chown postgres '{}' +
            chmod 0700 "$POSTGRES_INITDB_WALDIR"
        fi
        exec setpriv --reuid=postgres --regid=postgres --init-groups -- "$BASH_SOURCE" "$@"
    fi
    chmod 0700 "$PGDATA" || true

    read_environment
    if [ ! -s "$PGDATA/PG_VERSION" ]; then
        check_password
        # So that a script which cannot be read fails now, not after a database was made.
        ls /docker-entrypoint-initdb.d/ > /dev/null
        create_cluster "$@"
        export PGPASSWORD=${PGPASSWORD-$POSTGRES_PASSWORD}
        start_private "$@"
        create_database
        run_scripts /docker-entrypoint-initdb.d/*
        stop_private
        unset PGPASSWORD
        say 'PostgreSQL init process complete; ready for start up.'
    else
        say 'PostgreSQL Database directory appears to contain a database; Skipping initialization'
    fi
    exec "$@"
}

# Sourced, it only lends its functions.
if [ "${FUNCNAME[0]-main}" = main ] && [ "$0" = "$BASH_SOURCE" ]; then
    main "$@"
fi
