#!/usr/bin/env bash
# The package under a real systemd: installs it on a fresh Debian that is booted for the purpose, and
# walks through what an operator meets: start, reload, crash, hang, a bad configuration, stop,
# upgrade, removal.
#
# By hand, as root, on a Debian with: debootstrap systemd-container cargo-deb
#
#     tests/systemd.sh                    with a debug build
#     tests/systemd.sh some.deb           with that package
#
# The Debian is made once, in ASTRO_RELAY_ROOT (default: target/systemd-root), with debootstrap from
# ASTRO_RELAY_MIRROR if that is set, and copied for each run. A run takes about two minutes beside the
# build.
# The container has no network but its own loopback. It needs no systemd on the host, and none of the
# host's is touched.
#
# Every check is a line, PASS or FAIL; the exit code is 0 when no FAIL and every step was reached. The
# steps themselves are in tests/systemd/steps.sh.
set -euo pipefail
package=${1:+$(realpath "$1")}
cd "$(dirname "$0")/.."

root=${ASTRO_RELAY_ROOT:-$PWD/target/systemd-root}
suite=${ASTRO_RELAY_SUITE:-bookworm}
mirror=${ASTRO_RELAY_MIRROR:-}
# Far beyond what the steps take, for a machine that does other things.
limit=${ASTRO_RELAY_LIMIT:-600}

fail() { echo "tests/systemd.sh: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || fail "a container is booted: this needs root"
for tool in debootstrap systemd-nspawn dpkg-deb; do
    command -v "$tool" >/dev/null || fail "$tool is missing (apt-get install debootstrap systemd-container)"
done

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
shared=$work/shared
mkdir "$shared"

if [ -n "$package" ]; then
    cp "$package" "$shared/old.deb"
else
    cargo deb --version >/dev/null 2>&1 || fail "cargo-deb is missing (cargo install cargo-deb --locked)"
    deploy/deb/build dev --fast --no-strip --output "$shared/old.deb" >/dev/null
fi

# The next version: the same program, and a default configuration that has a line more.
dpkg-deb -R "$shared/old.deb" "$work/next"
sed -i 's/^Version: .*/&+next/' "$work/next/DEBIAN/control"
echo '# The next version has this line more.' >>"$work/next/etc/astro-relay/astro-relay.toml"
(cd "$work/next" && find usr etc -type f -exec md5sum {} + >DEBIAN/md5sums)
dpkg-deb --root-owner-group -Znone -b "$work/next" "$shared/new.deb" >/dev/null

if [ ! -e "$root/$suite/.complete" ]; then
    mkdir -p "$root"
    rm -rf "${root:?}/$suite"
    debootstrap --variant=minbase \
        --include=systemd,systemd-sysv,dbus,mosquitto,mosquitto-clients,curl,ca-certificates \
        "$suite" "$root/$suite" ${mirror:+"$mirror"} >"$root/debootstrap.log" 2>&1 \
        || fail "debootstrap failed, see $root/debootstrap.log"
    rm -rf "$root/$suite"/var/cache/apt/archives/*.deb
    touch "$root/$suite/.complete"
fi
cp -a "$root/$suite" "$work/root"

# The container runs the steps as a unit of its own and ends when they have.
cp tests/systemd/steps.sh "$shared/steps.sh"
cat >"$work/root/etc/systemd/system/steps.service" <<'UNIT'
[Unit]
Wants=multi-user.target
After=multi-user.target dbus.socket mosquitto.service
SuccessAction=poweroff-force
FailureAction=poweroff-force
[Service]
Type=oneshot
TimeoutStartSec=infinity
ExecStart=/bin/bash /shared/steps.sh
StandardOutput=file:/shared/report
StandardError=append:/shared/trace
UNIT
mkdir -p "$work/root/etc/systemd/system/default.target.wants"
# Not of multi-user.target, which waits for what it wants.
ln -s ../steps.service "$work/root/etc/systemd/system/default.target.wants/steps.service"
ln -sf /lib/systemd/system/multi-user.target "$work/root/etc/systemd/system/default.target"
ln -sf /dev/null "$work/root/etc/systemd/system/console-getty.service"

# A systemd of the host gives the container a place of its own among its units; without one there is
# nobody to ask.
place=(--register=no)
[ -d /run/systemd/system ] || place+=(--keep-unit)
status=0
timeout --kill-after=10 "$limit" systemd-nspawn --quiet --directory "$work/root" --boot \
    "${place[@]}" --private-network --link-journal=no --console=pipe \
    --bind "$shared:/shared" </dev/null >"$work/console" 2>&1 || status=$?

cat "$shared/report" 2>/dev/null || true
passed=$(grep -c '^PASS' "$shared/report" || true)
failed=$(grep -c '^FAIL' "$shared/report" || true)
if [ "$failed" -gt 0 ] || ! grep -q '^END' "$shared/report"; then
    echo "--- console (the container ended with $status)"
    tail -n 40 "$work/console"
    echo "--- trace"
    tail -n 60 "$shared/trace" 2>/dev/null || true
    fail "$passed passed, $failed failed"
fi
echo "$passed passed, none failed"
