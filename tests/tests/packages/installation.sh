#!/bin/sh
# Installs, upgrades, removes and purges the packages in a Debian tree, and prints what it finds after
# each step. Runs as root in a mount namespace of its own: the tree itself is not touched, and nothing
# stays mounted however it ends. There is no /run/systemd, and on installation not even /proc: as bare
# as an image build can be.
#
#   installation.sh TREE DEB...
set -eu
tree=$1
shift
work=$(mktemp -d)
mount -t tmpfs -o size=50% tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" "$work/root"
root=$work/root
mkdir -p "$root/tmp/packages"
cp "$@" "$root/tmp/packages/"
names=$(for deb in "$@"; do dpkg-deb --field "$deb" Package; done)

inside() {
    chroot "$root" env DEBIAN_FRONTEND=noninteractive PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" </dev/null
}

facts() {
    echo "== after $1"
    (
        cd "$root"
        echo "users: $(sed -n 's/^\(berth[^:]*\):.*:\([^:]*\):\([^:]*\)$/\1 \2 \3/p' etc/passwd)"
        find etc/systemd/system -name 'berth*' -type l | sed 's/^/enabled: /'
        for path in etc/berth/* usr/sbin/berth-* usr/bin/berthctl usr/libexec/berth/berth-vmm; do
            [ -e "$path" ] && echo "file: $path"
        done
        find var/lib/berth -printf 'state: %m %p\n' 2>/dev/null || true
        controller=$(stat -c %u var/lib/berth/controller 2>/dev/null || echo none)
        user=$(sed -n 's/^berth-controller:[^:]*:\([0-9]*\):.*/\1/p' etc/passwd)
        [ "$controller" = "$user" ] && echo "controller's folder: its own"
        echo "broken: $(inside dpkg --audit | wc -l)"
    ) | sort
}

inside sh -c 'dpkg --install /tmp/packages/*.deb'
facts installation

# What people and programs do meanwhile.
echo '# an administrator was here' >>"$root/etc/berth/agent.toml"
mkdir -p "$root/var/lib/berth/agent/vms" "$root/var/lib/berth/controller"
echo precious >"$root/var/lib/berth/agent/vms/disk.raw"
echo precious >"$root/var/lib/berth/controller/berth.db"
mount -t proc proc "$root/proc"
inside systemctl --root=/ --quiet disable berth-agent.service
inside sh -c 'dpkg --install /tmp/packages/*.deb'
facts upgrade
grep -c administrator "$root/etc/berth/agent.toml" | sed 's/^/changes kept: /'

inside dpkg --remove $names 2>&1
facts removal
inside dpkg --purge $names 2>&1
facts purge
