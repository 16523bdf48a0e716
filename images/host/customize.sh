#!/bin/sh
# Turns the plain root file system into a bare host: customize.sh ROOT SUITE
set -eu
root=$1 suite=$2
here=$(dirname "$0")

# Bare means: the engine is at hand in apt's cache, and not installed.
downloads=$(sed -e 's/#.*//' -e "s/^$suite://" "$here/downloads" | grep -v ':')
# shellcheck disable=SC2086 # a list of package names
chroot "$root" apt-get install --yes --download-only --no-install-recommends $downloads

# Root is reached by a key alone, which whoever starts the host puts there.
install -d -m 0700 "$root/root/.ssh"
passwd --root "$root" --lock root

# Host keys and machine id belong to a host, not to an image; ssh.service makes the keys at first boot.
rm -f "$root"/etc/ssh/ssh_host_*
: > "$root/etc/machine-id"

# A container has neither consoles nor devices of its own; these would reach for the machine's.
for unit in \
    console-getty.service getty.target serial-getty@.service \
    systemd-udevd.service systemd-udevd-control.socket systemd-udevd-kernel.socket \
    systemd-udev-trigger.service systemd-udev-settle.service \
    systemd-modules-load.service sys-kernel-config.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount dev-hugepages.mount systemd-remount-fs.service \
    e2scrub_reap.service e2scrub_all.timer
do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done

# The engine that runs the container writes these two; nothing inside may replace them.
ln -sf /dev/null "$root/etc/systemd/system/systemd-resolved.service"
systemctl --root "$root" enable ssh.service ssh-host-keys.service
