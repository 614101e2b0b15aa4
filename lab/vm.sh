#!/bin/bash
# SPDX-License-Identifier: MPL-2.0
# A robot in virtual machines of Debian 12 and 13, whose kernels have cameras (vivid, a USB camera): the
# packages are installed, the service runs, cameras, disk, network, clock and power fail.
#   lab/vm.sh FOLDER [12|13]... [--rounds N] [--only TEXT] [--write docs/5-reports]     12 13, 50 rounds
#   lab/vm.sh FOLDER --make 12|13     only makes the machine's disk anew
# FOLDER keeps disks (3 GB each) and what is made for them. As root, on amd64; the processor is emulated,
# so that no kvm is needed: an hour and a half for both on two processors, a quarter of it for the disks.
# The mirrors are those of this machine's apt. The packages: those in $PACKAGES, or else made here.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
. "$root/scripts/env.sh"
. "$root/scripts/roots.sh"
fail() {
    echo "lab/vm.sh: $*" >&2
    exit 1
}
folder=$(realpath -m "${1:?usage: $0 FOLDER [12|13]... [OPTION]...}")
shift
[ "$(id -u)" = 0 ] || fail "debootstrap needs root"
mkdir -p "$folder"
target=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
"$root/scripts/install-deps.sh" machines

suite() {
    case $1 in
    12) echo bookworm ;;
    13) echo trixie ;;
    *) fail "Debian $1: 12 and 13 are known" ;;
    esac
}

# A root with Debian's own kernel and all that the robot's lines need, but without our packages: kept.
base() {
    local suite=$1 new=$folder/base-$1
    [ ! -d "$new" ] || return 0
    fresh "base-$suite.part" "$suite-amd64"
    within "base-$suite.part" sh -ec '
        apt-get -q -y --no-install-recommends install linux-image-amd64 systemd-sysv systemd-timesyncd udev dbus \
            kmod procps openssh-server v4l-utils iproute2 nftables inotify-tools psmisc gstreamer1.0-tools \
            gstreamer1.0-plugins-base gstreamer1.0-plugins-good gstreamer1.0-plugins-bad gstreamer1.0-plugins-ugly \
            gstreamer1.0-libcamera
        apt-get clean
        systemctl enable systemd-networkd ssh
        rm -f /usr/sbin/policy-rc.d
        printf "[Match]\nName=eth0\n[Network]\nDHCP=yes\n" >/etc/systemd/network/eth0.network
        echo robot >/etc/hostname
        passwd -d root
        mkdir -p -m 700 /root/.ssh
        # What opens a camera, from the first moment: the log of each opening.
        cat >/etc/systemd/system/opened.service <<UNIT
[Unit]
DefaultDependencies=no
After=systemd-udevd.service systemd-modules-load.service
Before=basic.target
[Service]
ExecStart=/usr/bin/inotifywait -m -q --timefmt %%s --format "%%T %%e %%w%%f" -e open -e close -o /run/opened /dev/video0
[Install]
WantedBy=sysinit.target
UNIT
        systemctl enable opened.service
        printf "vivid\n" >/etc/modules-load.d/cameras.conf
        printf "options vivid n_devs=1 node_types=0x1\n" >/etc/modprobe.d/cameras.conf
    ' >>"$folder/$suite.log" 2>&1
    mv "$new.part" "$new"
}

# FOLDER/disk-12.img with kernel-12 and initrd-12: the base and the packages.
make_disk() {
    local version=$1 suite scratch deb
    suite=$(suite "$version")
    base "$suite"
    [ -e "$folder/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
    scratch=$folder/root-$version
    rm -rf "$scratch"
    cp -a --reflink=auto "$folder/base-$suite" "$scratch"
    cp "$folder/key.pub" "$scratch/root/.ssh/authorized_keys"
    for deb in gstreamer1.0-droidrelay droidrelay; do
        cp "$PACKAGES/${deb}"_*_amd64.deb "$scratch/tmp/" ||
            fail "no package $deb in $PACKAGES"
    done
    printf '#!/bin/sh\nexit 101\n' >"$scratch/usr/sbin/policy-rc.d"
    chmod 755 "$scratch/usr/sbin/policy-rc.d"
    within "root-$version" sh -ec 'apt-get -q -y --no-install-recommends install /tmp/*.deb; rm -f /tmp/*.deb /usr/sbin/policy-rc.d' \
        >>"$folder/$suite.log" 2>&1
    cp "$scratch"/boot/vmlinuz-* "$folder/kernel-$version"
    cp "$scratch"/boot/initrd.img-* "$folder/initrd-$version"
    rm -f "$folder/disk-$version.img"
    truncate -s 6G "$folder/disk-$version.img"
    mke2fs -q -t ext4 -d "$scratch" "$folder/disk-$version.img"
    rm -rf "$scratch"
}

if [ -z "${PACKAGES:-}" ]; then
    "$root/scripts/packages.sh" amd64
    PACKAGES=$target/debian
fi
if [ "${1:-}" = --make ]; then
    for version in "${@:2}"; do make_disk "$version"; done
    exit
fi
versions=()
while [[ ${1:-} =~ ^1[0-9]$ ]]; do
    versions+=("$1")
    shift
done
[ ${#versions[@]} -gt 0 ] || versions=(12 13)
for version in "${versions[@]}"; do make_disk "$version"; done
"$root/scripts/install-deps.sh" tests
. "$root/scripts/env.sh"
rust_is_new_enough
cargo build --manifest-path "$root/Cargo.toml" --locked -q -p droidrelay-lab
exec "$target/debug/lab" vm "$folder" --debian "$(IFS=, && echo "${versions[*]}")" "$@"
