#!/bin/sh
# Builds the root file system of one image from Debian packages alone.
#
#   rootfs.sh DEFINITION SUITE OUTPUT.tar
#
# DEFINITION is a directory:
#   packages      one package a line; `suite:package` only for that suite; `#` comments
#   variant       mmdebstrap variant, `minbase` if absent
#   essential.sh  run as `essential.sh ROOT SUITE` before any but the essential packages are in
#   files/        copied over the root when all packages are in
#   customize.sh  then run as `customize.sh ROOT SUITE`
#
# From the environment:
#   DEBIAN_MIRROR, DEBIAN_SECURITY_MIRROR   where packages come from
#   APT_OPTIONS                             further apt settings, one a line, for the build and for the image
set -eu

definition=$1 suite=$2 output=$3
: "${DEBIAN_MIRROR:=http://deb.debian.org/debian}"
: "${DEBIAN_SECURITY_MIRROR:=http://deb.debian.org/debian-security}"
: "${APT_OPTIONS:=}"

packages=$(sed -e 's/#.*//' -e "s/^$suite://" "$definition/packages" | grep -v ':' | tr -s ' \n' ',,' | sed -e 's/^,*//' -e 's/,*$//')
variant=minbase
if [ -f "$definition/variant" ]; then variant=$(cat "$definition/variant"); fi

# Documentation is left out, licences stay.
set -- "--variant=$variant" "--include=$packages" \
    --format=tar --skip=cleanup/apt/cache \
    --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --aptopt='APT::Install-Recommends "false"' \
    --aptopt='Acquire::Languages "none"' \
    --aptopt='Acquire::Retries "3"'
while IFS= read -r option; do
    if [ -n "$option" ]; then set -- "$@" "--aptopt=$option"; fi
done <<OPTIONS
$APT_OPTIONS
OPTIONS

set -- "$@" '--customize-hook=rm -f "$1"/var/cache/apt/archives/*.deb'
if [ -f "$definition/essential.sh" ]; then
    set -- "$@" "--essential-hook=sh '$definition/essential.sh' \"\$1\" '$suite'"
fi
if [ -d "$definition/files" ]; then
    set -- "$@" "--customize-hook=cp -R '$definition/files/.' \"\$1\""
fi
if [ -f "$definition/customize.sh" ]; then
    set -- "$@" "--customize-hook=sh '$definition/customize.sh' \"\$1\" '$suite'"
fi
# apt's own binary caches are rebuilt on demand.
set -- "$@" '--customize-hook=rm -f "$1"/var/cache/apt/*.bin'

exec mmdebstrap "$@" "$suite" "$output" \
    "deb $DEBIAN_MIRROR $suite main" \
    "deb $DEBIAN_MIRROR $suite-updates main" \
    "deb $DEBIAN_SECURITY_MIRROR $suite-security main"
