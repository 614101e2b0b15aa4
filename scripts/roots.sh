# SPDX-License-Identifier: MPL-2.0
# shellcheck shell=bash disable=SC2154
# Sourced by the tests that need fresh Debians: roots in $folder, what runs in them, machines that
# are booted from them. fail TEXT ends the test. Needs root, and install-deps.sh release.

mirror() {
    apt-get indextargets --format '$(LABEL) $(REPO_URI)' "Created-By: Packages" |
        sed -n "s/^$1 //p" | head -n 1
}

# fresh NAME RELEASE-ARCH: a new root at $folder/NAME with all of Debian's suites.
fresh() {
    local release=${2%-*} arch=${2#*-} base=$folder/base/$2 new=$folder/$1
    if [ ! -d "$base" ]; then
        rm -rf "$base.part"
        mkdir -p "$folder/base"
        debootstrap --variant=minbase --arch="$arch" "$release" "$base.part" "$(mirror Debian)" >"$folder/$2.log" ||
            fail "debootstrap, see $folder/$2.log"
        mv "$base.part" "$base"
    fi
    rm -rf "$new"
    cp -a "$base" "$new"
    cat >"$new/etc/apt/sources.list" <<TEXT
deb $(mirror Debian) $release main
deb $(mirror Debian) $release-updates main
deb $(mirror Debian-Security) $release-security main
TEXT
    cat /etc/apt/apt.conf.d/* 2>/dev/null | grep '^Acquire::Check-' >"$new/etc/apt/apt.conf.d/90this-machine" || true
    # Whom this machine trusts (its registries may stand behind a certificate of its own), under a
    # name that no package writes.
    cp /etc/ssl/certs/ca-certificates.crt "$new/etc/this-machine.crt"
    # A root that lives for minutes need not outlive a power cut.
    echo force-unsafe-io >"$new/etc/dpkg/dpkg.cfg.d/90unsafe-io"
    # No service starts in a chroot.
    printf '#!/bin/sh\nexit 101\n' >"$new/usr/sbin/policy-rc.d"
    chmod 755 "$new/usr/sbin/policy-rc.d"
    within "$1" apt-get -q update
}

# within NAME COMMAND...: runs it in that root; whatever it leaves running ends with it.
within() {
    local at=$folder/$1
    shift
    unshare --mount --pid --fork --kill-child sh -ec '
        mount -t proc proc "$0/proc"
        exec chroot "$0" "$@"
    ' "$at" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 \
        DEBIAN_FRONTEND=noninteractive SSL_CERT_FILE=/etc/this-machine.crt \
        CARGO_HTTP_CAINFO=/etc/this-machine.crt "$@"
}

# booted NAME SCRIPT [NETWORK]: boots that root in a container and runs the script there, in a network
# namespace of this name, or in one of its own.
booted() {
    local at=$folder/$1 network=--private-network
    [ -z "${3:-}" ] || network=--network-namespace-path=/run/netns/$3
    rm -f "$at/passed"
    printf '#!/bin/bash\ntrap "systemctl poweroff" EXIT\n%s\n' "$2" >"$at/script"
    chmod 755 "$at/script"
    printf '[Unit]\nAfter=multi-user.target\n[Service]\nExecStart=/script\nStandardOutput=append:/script.log\nStandardError=append:/script.log\n' \
        >"$at/etc/systemd/system/script.service"
    mkdir -p "$at/etc/systemd/system/default.target.wants"
    ln -sf ../script.service "$at/etc/systemd/system/default.target.wants/"
    rm -f "$at/usr/sbin/policy-rc.d"
    # A machine without systemd of its own cannot give the container a scope.
    timeout 1200 systemd-nspawn --directory="$at" --boot --register=no $network --quiet \
        $([ -d /run/systemd/system ] || echo --keep-unit) </dev/null >"$at.boot.log" 2>&1 || true
    cat "$at/script.log"
    [ -e "$at/passed" ]
}
