#!/usr/bin/env bash
# The container image: builds it from deploy/Dockerfile, and runs it as an engine would that was told
# --read-only --user 12345:12345 --cap-drop ALL --security-opt no-new-privileges.
#
# As root, on Debian, with: buildah curl jq. Takes half a minute beside the build of the program.
#
#     tests/container.sh [PROGRAM]         the program to put into it, default target/debug/astro-relay
#
# No registry and no engine is needed. The base is made here of Debian's packages, of the same ones as the
# image that the Dockerfile names: a C library, libgcc, time zones, authorities, and no shell. What is run is
# what the image says of itself: its user's place is taken by a foreign one; entry point, command, health
# check and stop signal are its own. Not covered: the stage that compiles, which is the cargo build of every
# other test, and the engine's network.
set -euo pipefail
program=$(realpath "${1:-$(dirname "$0")/../target/debug/astro-relay}")
cd "$(dirname "$0")/.."

readonly ROOM=5b2e2007760aeb7729487dab TOKEN=the-token-of-the-container USER_ID=12345
# The image's own promise is 30 s.
readonly STOPS_WITHIN=30

work=$(mktemp -d)
started=()
finish() {
    for pid in "${started[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    b umount --all >/dev/null 2>&1 || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT
fail() { echo "FAIL $*"; tail -n 30 "$work"/*.log 2>/dev/null || true; exit 1; }
pass() { echo "PASS $*"; }
check() { local what=$1; shift; if "$@" >"$work/check.log" 2>&1; then pass "$what"; else fail "$what"; fi; }
# until_ok SECONDS WHAT COMMAND…: until it holds.
until_ok() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >"$work/check.log" 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "$what"
        sleep 0.1
    done
    pass "$what"
}
b() { buildah --root "$work/storage" --runroot "$work/runroot" --storage-driver vfs "$@"; }

[ "$(id -u)" = 0 ] || fail "namespaces are made and images are built: this needs root"
unshare --mount --pid --fork true || fail "no namespaces may be made here"

# ---- the base, and the image ---------------------------------------------------------------------

debs=$PWD/target/container-base
mkdir -p "$debs" "$work/base/tmp" "$work/base/var/lib"
ls "$debs"/tzdata_*.deb >/dev/null 2>&1 || (
    cd "$debs"
    apt-get -o APT::Sandbox::User=root download libc6 libgcc-s1 tzdata
) >"$work/download.log" 2>&1 || fail "the packages of the base cannot be had"
for deb in "$debs"/*.deb; do dpkg -x "$deb" "$work/base"; done
mkdir -p "$work/base/etc/ssl/certs"
cp -L /etc/ssl/certs/ca-certificates.crt "$work/base/etc/ssl/certs/"
tar -C "$work/base" -cf "$work/base.tar" .
rm -r "$work/base"
printf 'FROM scratch\nADD base.tar /\n' >"$work/base.dockerfile"
(cd "$work" && b bud --isolation chroot --tag localhost/base --file base.dockerfile .) \
    >"$work/build-base.log" 2>&1 || fail "the base was not built"

architecture=$(dpkg --print-architecture)
mkdir -p "$work/context/dist/$architecture"
strip -o "$work/context/dist/$architecture/astro-relay" "$program"
b bud --isolation chroot --pull-never --format docker --build-arg BASE=localhost/base \
    --build-arg PROGRAM=ready --tag localhost/astro-relay --file deploy/Dockerfile "$work/context" \
    >"$work/build.log" 2>&1 || fail "the image was not built"
pass "the image is built"
b inspect --type image localhost/astro-relay | jq .Docker.config >"$work/image.json"
container=$(b from --pull-never localhost/astro-relay)
image=$(b mount "$container")
said() { jq -er "$1" "$work/image.json"; }
check "it is nobody's process" test "$(said .User)" = 65532:65532
check "its volume belongs to that user" test "$(stat -c %u "$image/var/lib/astro-relay")" = 65532
check "there is no shell in it" bash -c "! find '$image' \( -name '*sh' -o -name busybox \) -perm /111 -not -type d | grep ."
mapfile -t command < <(said '.Entrypoint[], .Cmd[]')
mapfile -t health < <(said '.Healthcheck.Test[1:][]')
check "its health check is a command without a shell" test "$(said '.Healthcheck.Test[0]')" = CMD
signal=$(said .StopSignal)

# ---- a run of it ---------------------------------------------------------------------------------

mkdir "$work/root" "$work/state" "$work/config"
chown "$USER_ID:$USER_ID" "$work/state"
chmod 700 "$work/state"
mkdir -p "$image"/{proc,dev,etc/astro-relay}
cat >"$work/enter" <<'SH'
#!/bin/bash
# Within new namespaces: the image's root, not writable, with what an engine mounts; then its command.
set -euo pipefail
image=$1 root=$2 state=$3 config=$4 user=$5
shift 5
mount --make-rprivate /
mount --bind "$image" "$root"
mount -o remount,bind,ro "$root"
mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
mount -t tmpfs -o nosuid,size=64k dev "$root/dev"
for device in null zero random urandom; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mount --bind "$state" "$root/var/lib/astro-relay"
mount --bind "$config" "$root/etc/astro-relay"
mount -o remount,bind,ro "$root/etc/astro-relay"
exec setpriv --no-new-privs chroot --userspec="$user:$user" --groups="$user" "$root" "$@"
SH
chmod +x "$work/enter"

# launch NAME VARIABLE=…: the image's command in the background; $outer waits for it.
launch() {
    local name=$1
    shift
    env -i PATH=/usr/bin:/usr/sbin "$@" unshare --mount --pid --ipc --uts --fork --kill-child=KILL \
        "$work/enter" "$image" "$work/root" "$work/state" "$work/config" "$USER_ID" "${command[@]}" \
        >"$work/$name.out" 2>"$work/$name.log" &
    outer=$!
    started+=("$outer")
}
# start NAME VARIABLE=…: the same, and $main is its process.
start() {
    launch "$@"
    until_ok 60 "$1: the command is process 1 of its own" is_main
}
is_main() { main=$(pgrep -P "$outer") && [[ $(readlink "/proc/$main/exe") == */usr/bin/astro-relay ]]; }
# A command in the container, as its engine runs it; the image's health check.
inside() {
    timeout "$(($(said .Healthcheck.Timeout) / 1000000000))" nsenter --target "$main" --mount --pid --root --wd \
        --setuid "$USER_ID" --setgid "$USER_ID" -- "$@"
}
healthy() { inside "${health[@]}"; }
unhealthy() { ! healthy; }
# stop WHAT: with its own signal, and it ends in time and well.
stop() {
    local code=0 from=$SECONDS
    kill "-${signal#SIG}" "$main"
    timeout "$STOPS_WITHIN" tail --pid="$outer" -f /dev/null || fail "$1: it has not ended within $STOPS_WITHIN s"
    wait "$outer" || code=$?
    check "$1: it ends within $((SECONDS - from)) s, with 0 ($code)" test "$code" = 0
}
status() { inside "${command[0]}" status --json --config /etc/astro-relay/astro-relay.toml 2>/dev/null; }
# Where nobody answers yet, nothing comes: jq takes no input at all for a yes.
does_not_work() { (status || true) | jq -se '.[0].health.state == "not working"'; }
lines() { wc -l <"$work/$1.out"; }
has_lines() { [ "$(lines "$1")" -ge "$2" ]; }
load() { curl -sSf -X POST "http://127.0.0.1:$sim_port/control/load?n=$1&first=$2&topic=channel.tips&rooms=$ROOM" >/dev/null; }
confirmed() { status | jq -e '[.pages.connections[].subscriptions[].state] == ["confirmed"]'; }

sim_port=$((20000 + RANDOM % 10000)) port=$((30000 + RANDOM % 2000))
"$program" sim --speed 0 --listen "127.0.0.1:$sim_port" --token "$TOKEN=$ROOM" --room "$ROOM" >"$work/sim.log" 2>&1 &
started+=($!)
printf '%s\n' "$TOKEN" >"$work/config/main.jwt"
cat >"$work/config/astro-relay.toml" <<TOML
[astro]
url = "ws://127.0.0.1:$sim_port"
api_url = "http://127.0.0.1:$sim_port/kappa/v2"

[channels.main]
room = "$ROOM"
token_file = "/etc/astro-relay/main.jwt"
topics = ["channel.tips"]

[http]
listen = "127.0.0.1:$port"

[sinks.out]
type = "stdout"
TOML

start first TZ=Pacific/Auckland
until_ok 60 "it is healthy" healthy
until_ok 60 "and subscribed" confirmed
load 100 0
until_ok 60 "100 events come out of it" has_lines first 100
check "it runs as the foreign user" test "$(stat -c %u "/proc/$main")" = "$USER_ID"
check "without a capability" grep -qx $'CapEff:\t0000000000000000' "/proc/$main/status"
check "and can gain none" grep -qx $'NoNewPrivs:\t1' "/proc/$main/status"
check "its root cannot be written" bash -c "! touch /proc/$main/root/probe"
check "its journal is in the volume, readable by it alone" \
    test "$(find "$work/state" -type f -printf '%U %m\n' | sort -u)" = "$USER_ID 600"
check "its log tells the time of UTC, whatever the zone" \
    jq -es 'map(.timestamp) | all(endswith("Z")) and (last | .[:19] + "Z" | fromdateiso8601 - now | fabs < 60)' "$work/first.log"
kill -STOP "$main"
check "it is not healthy while it hangs" unhealthy
kill -CONT "$main"
until_ok 60 "and is again" healthy
first=$(status | jq .journal.last)
stop "stop"

start second
until_ok 60 "it starts again, and is healthy" healthy
until_ok 60 "and subscribed" confirmed
check "its journal goes on behind number $first" bash -c "(( $(status | jq .journal.last) >= $first ))"
load 10 100
until_ok 60 "10 events more come out" has_lines second 10
numbers() { cat "$work"/{first,second}.out | jq -r 'select(.topic == "channel.tips") | .data.n // empty' | sort -n; }
check "each event once, over both runs" test "$(numbers | tr '\n' ' ')" = "$(seq 0 109 | tr '\n' ' ')"
stop "stop"

# A token that is not known: nothing is received, and no new start would change that.
printf 'another-token\n' >"$work/config/main.jwt"
start denied
until_ok 60 "a relay that is refused does not work" does_not_work
check "and its container is healthy" healthy
stop "stop"

# Somebody forgot the configuration, or the volume's owner.
mv "$work/config/astro-relay.toml" "$work/other.toml"
code=0
launch third
wait "$outer" || code=$?
check "without a configuration it ends with 78 ($code)" test "$code" = 78
check "and says which file is missing" grep -q /etc/astro-relay/astro-relay.toml "$work/third.log"
echo "all is well"
