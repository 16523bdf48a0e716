#!/bin/sh
# bootstrap.sh [BOOTSTRAP'S OPTIONS]: runs as root on a fresh machine: bootstrap, once more to see `0 changes`, and what then answers.
set -eu

install -m 0755 /tmp/appliance /root/appliance
key=$(cat /tmp/key.pub)

/root/appliance bootstrap "$@" --admin-key "$key" --deploy-key "$key"
/usr/local/bin/appliance bootstrap "$@" | grep '0 changes'

systemctl is-active appliance-agent.service appliance-proxy.service
/usr/local/bin/appliance status
