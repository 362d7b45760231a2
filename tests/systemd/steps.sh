#!/usr/bin/env bash
# The steps of tests/systemd.sh, run inside the container. Standard output is the report.
#
# Nothing here sleeps for luck: each step waits for a condition until a deadline. Each FAIL is followed
# by what the service manager and the log say, and the next step goes on.
set -uo pipefail

readonly ROOM=5b2e2007760aeb7729487dab TOKEN=the-token-of-the-container
readonly CONFIG=/etc/astro-relay/astro-relay.toml UNIT=astro-relay.service
readonly SIM=http://127.0.0.1:9900/control
readonly HEARD=/run/heard

pass() { echo "PASS $*"; }
told() {
    echo "FAIL $*"
    { echo "--- $*"; systemctl status --no-pager --lines=25 "$UNIT"; } 2>&1 | sed 's/^/     /'
}

# check WHAT COMMAND…: once.
check() {
    local what=$1
    shift
    if "$@" >&2; then pass "$what"; else told "$what"; fi
}

# until_ok SECONDS WHAT COMMAND…: until it holds.
until_ok() {
    local end=$((SECONDS + $1)) what=$2 start=$SECONDS
    shift 2
    until "$@" >&2; do
        if [ "$SECONDS" -ge "$end" ]; then told "$what (not within $((SECONDS - start)) s)"; return 1; fi
        sleep 0.2
    done
    pass "$what"
}

property() { systemctl show --property="$1" --value "$UNIT"; }
is() { [ "$(property "$1")" = "$2" ]; }
has() { [[ $(property "$1") == *$2* ]]; }
active() { is ActiveState active && is SubState running; }
# The command fails while the relay does not work, and says so all the same.
page_has() { grep -qF "$1" <<<"$(astro-relay status --verbose 2>/dev/null)"; }
# How many of the numbered events have been heard, each counted once.
heard() { grep -oE "^astro/main/$1 .*\"n\":[0-9]+" "$HEARD" | grep -oE '[0-9]+$' | sort -un | wc -l; }
heard_are() { [ "$(heard "$1")" -ge "$2" ]; }
# load NUMBER FIRST: publishes numbered tips at Astro.
load() { curl -sSf -X POST "$SIM/load?n=$1&first=$2&topic=channel.tips&rooms=$ROOM" >&2; }
# The number of the newest event in the journal.
journal_last() { astro-relay status --json | grep -oE '"last":[0-9]+' | head -n 1 | grep -oE '[0-9]+$'; }
journal_reaches() { [ "$(journal_last)" -ge "$1" ]; }

# ---- the far sides ------------------------------------------------------------------------------

broker=$(systemctl show --property=MainPID --value mosquitto.service)
systemd-run --quiet --collect --unit=ear --property=StandardOutput=file:$HEARD \
    stdbuf -oL mosquitto_sub -h 127.0.0.1 -t 'astro/#' -q 1 -F '%t %p'

# ---- install ------------------------------------------------------------------------------------

check "the package installs" dpkg -i /shared/old.deb
check "the unit is enabled" systemctl is-enabled --quiet "$UNIT"
check "the service is not started before it is configured" is ActiveState inactive
check "the unit is well-formed" systemd-analyze verify --man=no "/lib/systemd/system/$UNIT"
check "the manual page is there" test -s /usr/share/man/man1/astro-relay.1.gz
for completion in bash-completion/completions/astro-relay zsh/vendor-completions/_astro-relay \
    fish/vendor_completions.d/astro-relay.fish; do
    check "completion: $completion" grep -q send-test "/usr/share/$completion"
done

check "its licences are there" test -s /usr/share/doc/astro-relay/LICENSE-MIT
check "started as installed it runs" systemctl start "$UNIT"
until_ok 10 "and says that nothing is configured" page_has "no channel is configured"
systemctl stop "$UNIT"

systemd-run --quiet --collect --unit=sim \
    /usr/bin/astro-relay sim --speed 0 --listen 127.0.0.1:9900 --token "$TOKEN=$ROOM" --room "$ROOM"

# ---- configure and start ------------------------------------------------------------------------

cp "$CONFIG" /run/shipped.toml
echo "$TOKEN" >/etc/astro-relay/main.jwt
chmod 600 /etc/astro-relay/main.jwt
cat >"$CONFIG" <<TOML
[astro]
url = "ws://127.0.0.1:9900"
api_url = "http://127.0.0.1:9900/kappa/v2"
backoff_max = "2s"

[channels.main]
room = "$ROOM"
token_file = "/etc/astro-relay/main.jwt"
topics = ["channel.tips"]

[sinks.home]
type = "mqtt"
url = "mqtt://127.0.0.1:1883"
backoff_max = "2s"
TOML
# What nearly everybody tries first: root can read the file, and the service cannot.
check "a token that only root can read is no reason for check to complain" astro-relay check
check "the service does not start with it" bash -c "! systemctl start $UNIT"
check "and the log names the way out" bash -c "journalctl -u $UNIT -o cat | grep -q 'permission denied.*LoadCredential='"
# The way out, with the command of docs/install.md.
sed -i -E '/^# The file is read again on every connection/d; /^(ca|client_cert|client_key)_file/!s#^([a-z_]+)_file = "/etc/astro-relay/([^/"]+)"#\1_credential = "\2"#' "$CONFIG"
check "the secrets' directory makes check find a credential" env CREDENTIALS_DIRECTORY=/etc/astro-relay astro-relay check
systemctl reset-failed "$UNIT"
mkdir -p /etc/systemd/system/$UNIT.d
# The watchdog is given less patience than the unit's 30 s, to save time; everything else is as shipped.
cat >/etc/systemd/system/$UNIT.d/test.conf <<CONF
[Service]
LoadCredential=main.jwt:/etc/astro-relay/main.jwt
WatchdogSec=4
CONF
systemctl daemon-reload

# As after a reboot: it runs already, not configured, and a start would change nothing.
cp "$CONFIG" /run/configured.toml
cp /run/shipped.toml "$CONFIG"
systemctl start "$UNIT"
until_ok 10 "not configured, it runs" page_has "no channel is configured"
cp /run/configured.toml "$CONFIG"
check "the service starts with it, and restart returns when it is ready" systemctl restart "$UNIT"
check "it is active" active
check "it is an unprivileged user's process" test "$(stat -c %u "/proc/$(property MainPID)")" -ge 61184
until_ok 20 "the status line counts subscriptions and sinks" \
    has StatusText "1 of 1 subscriptions, 1 of 1 sinks up"
check "the token came as a credential, and the simulated gateway took it" page_has "confirmed"
check "the journal is in the state directory" test -e /var/lib/private/astro-relay
check "the log is in systemd's journal" bash -c "journalctl -u $UNIT -o cat | grep -q 'journal opened'"
until_ok 10 "and says which sink is connected" bash -c "journalctl -u $UNIT -o cat | grep -q 'connected.* sink=home'"
check "the journal knows the priority of a line" bash -c "journalctl -u $UNIT -p notice -g sink=home -o cat | grep -q connected"
check "no secret is in the log" bash -c "! journalctl -u $UNIT -o verbose | grep -qF $TOKEN"

load 100 0
until_ok 20 "100 events flow to MQTT" heard_are channel/tips 100

# ---- reload -------------------------------------------------------------------------------------

pid=$(property MainPID)
sed -i 's/^topics = .*/topics = ["channel.tips", "channel.activities"]/' "$CONFIG"
check "reload returns well" systemctl reload "$UNIT"
until_ok 20 "reload is applied: a topic more is subscribed" \
    has StatusText "2 of 2 subscriptions"
until_ok 10 "after the reload the service is active, not reloading" active
check "it is the same process" is MainPID "$pid"

cp "$CONFIG" /run/good.toml
echo 'nonsense = true' >>"$CONFIG"
systemctl reload "$UNIT"
until_ok 20 "a reload that cannot be used is told" page_has "the new configuration was rejected"
until_ok 10 "and the service goes on" active
check "with the same process" is MainPID "$pid"
cp /run/good.toml "$CONFIG"
systemctl reload "$UNIT"
until_ok 20 "and the mended file is taken" bash -c '! astro-relay status | grep -qF "was rejected"'

# ---- crash --------------------------------------------------------------------------------------

# The broker stands still, so that everything waits; then the relay is killed, and all must come.
kill -STOP "$broker"
before=$(journal_last)
load 200 1000
until_ok 20 "200 events are in the journal while the broker hangs" journal_reaches $((before + 200))
kill -KILL "$pid"
restarted() { active && [ "$(property MainPID)" != "$1" ] && [ "$(property NRestarts)" -ge "$2" ]; }
until_ok 40 "killed, it is started again" restarted "$pid" 1
kill -CONT "$broker"
until_ok 40 "nothing that was read is lost: all 300 events are heard" heard_are channel/tips 300
check "and the gap is told" grep -q '^astro/main/relay/gap ' "$HEARD"
until_ok 30 "it is well again" has StatusText "2 of 2 subscriptions, 1 of 1 sinks up"

# ---- hang ---------------------------------------------------------------------------------------

pid=$(property MainPID) restarts=$(property NRestarts)
kill -STOP "$pid"
until_ok 60 "hung, it is ended by the watchdog and started again" restarted "$pid" $((restarts + 1))
check "the log says that it was the watchdog" \
    bash -c "journalctl -u $UNIT -o cat | grep -qi 'watchdog timeout'"
until_ok 30 "it is well again" has StatusText "2 of 2 subscriptions, 1 of 1 sinks up"
load 50 5000
until_ok 20 "and events flow" heard_are channel/tips 350

# ---- stop ---------------------------------------------------------------------------------------

start=$SECONDS
check "it stops" systemctl stop "$UNIT"
check "within seconds ($((SECONDS - start)) s)" test $((SECONDS - start)) -le 5
check "as it should" is Result success
systemctl start "$UNIT"
until_ok 30 "it starts again" has StatusText "2 of 2 subscriptions, 1 of 1 sinks up"
kill -STOP "$broker"
load 10 6000
start=$SECONDS
check "it stops while the broker hangs" systemctl stop "$UNIT"
check "within the unit's 30 s ($((SECONDS - start)) s)" test $((SECONDS - start)) -lt 30
check "and was not killed" is Result success
kill -CONT "$broker"

# ---- a bad configuration ------------------------------------------------------------------------

echo 'nonsense = true' >>"$CONFIG"
check "a configuration that cannot be used does not start" bash -c "! systemctl start $UNIT"
# What is to be tried again is "activating (auto-restart)" from the moment of its end.
check "it is not tried again" is SubState failed
check "the exit code is EX_CONFIG" is ExecMainStatus 78
check "no restart was counted" is NRestarts 0
check "and the log names the key" bash -c "journalctl -u $UNIT -o cat | grep -q nonsense"
cp /run/good.toml "$CONFIG"
systemctl reset-failed "$UNIT"
systemctl start "$UNIT"
until_ok 30 "mended, it starts, and what waited is delivered" heard_are channel/tips 360

# ---- upgrade ------------------------------------------------------------------------------------

pid=$(property MainPID) last=$(journal_last) sum=$(sha256sum <"$CONFIG")
check "a higher version installs, keeping the changed configuration" \
    dpkg -i --force-confdef --force-confold /shared/new.deb
until_ok 30 "it was started again" restarted "$pid" 0
check "the configuration is as it was" test "$sum" = "$(sha256sum <"$CONFIG")"
check "the new default is beside it" grep -q 'this line more' "$CONFIG.dpkg-dist"
until_ok 30 "it works with it" has StatusText "2 of 2 subscriptions, 1 of 1 sinks up"
check "the journal goes on where it was" test "$(journal_last)" -ge "$last"
load 40 7000
until_ok 20 "and events flow" heard_are channel/tips 400
systemctl stop "$UNIT"
check "an upgrade does not start what was stopped" \
    bash -c "dpkg -i --force-confold /shared/new.deb && ! systemctl is-active --quiet $UNIT"
systemctl start "$UNIT"

# ---- remove and purge ---------------------------------------------------------------------------

check "it is removed" dpkg -r astro-relay
check "and stopped" bash -c "! systemctl is-active --quiet $UNIT"
check "the configuration stays" test -s "$CONFIG"
check "the state stays" bash -c 'ls /var/lib/private/astro-relay/* >/dev/null'
check "it comes back" bash -c "dpkg -i --force-confold /shared/new.deb && systemctl start $UNIT"
until_ok 30 "where it was" journal_reaches "$last"
check "it is purged" dpkg -P astro-relay
check "the state is gone" bash -c '[ ! -e /var/lib/private/astro-relay ] && [ ! -e /var/lib/astro-relay ]'
check "the configuration is gone" test ! -e "$CONFIG"
check "what the administrator made stays" test -s /etc/astro-relay/main.jwt
check "no link of the unit is left" bash -c '! ls /etc/systemd/system/*.wants/astro-relay.service'

echo END
