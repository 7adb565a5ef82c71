#!/bin/sh
# Makes an ext4 image from an unpacked Debian tree without touching the tree: extra files, masked
# units and packages go into a layer in memory. Runs as root in a mount namespace of its own, so
# that nothing stays mounted however it ends.
#
#   layer.sh TREE STAGING MASKED-UNITS PACKAGES-FOLDER IMAGE SIZE LABEL
set -eu
tree=$1 staging=$2 masked=$3 packages=$4 image=$5 size=$6 label=$7

work=$(mktemp -d)
mount -t tmpfs -o size=75% tmpfs "$work"
mkdir "$work/upper" "$work/work" "$work/root"
mount -t overlay overlay \
    -o "lowerdir=$tree,upperdir=$work/upper,workdir=$work/work" "$work/root"
root=$work/root

cp -rT --no-preserve=ownership "$staging" "$root"
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/resolv.conf"
rm -rf "$root/var/cache/apt/archives" "$root"/var/lib/apt/lists/*
if [ -n "$(ls "$packages")" ]; then
    mkdir "$root/tmp/packages"
    cp "$packages"/*.deb "$root/tmp/packages/"
    mount -t proc proc "$root/proc"
    chroot "$root" env DEBIAN_FRONTEND=noninteractive sh -c \
        'dpkg --install /tmp/packages/*.deb && apt-get check -qq'
    umount "$root/proc"
    rm -rf "$root/tmp/packages"
fi
while read -r unit; do
    ln -sf /dev/null "$root/etc/systemd/system/$unit"
done <"$masked"
chroot "$root" systemctl enable $(cd "$staging/etc/systemd/system" && ls *.service) 2>/dev/null

rm -f "$image"
truncate -s "$size" "$image"
mke2fs -q -t ext4 -L "$label" -E lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0 \
    -d "$root" "$image"
chmod 0644 "$image"
