#!/usr/bin/env bash
# The Home Assistant add-on, as far as it can be tried without a Supervisor: its files can be read, and
# its script makes a configuration of the options that the relay takes.
#
# Needs jq, python3 with yaml, and a debug build.
set -euo pipefail
cd "$(dirname "$0")/.."

addon=deploy/home-assistant-addon
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
pass() { echo "PASS $*"; }
fail() { echo "FAIL $*"; sed 's/^/     /' "$work/out"; failed=1; }

python3 - "$addon" <<'PY'
import glob, sys, yaml
addon = sys.argv[1]
config = yaml.safe_load(open(f"{addon}/config.yaml"))
assert set(config["options"]) <= set(config["schema"]), "an option without a schema"
required = {key for key, kind in config["schema"].items() if not str(kind).endswith("?")}
assert required <= set(config["options"]), f"required, without a default: {required - set(config['options'])}"
assert set(yaml.safe_load(open(f"{addon}/build.yaml"))["build_from"]) == set(config["arch"])
for path in glob.glob(f"{addon}/translations/*.yaml"):
    named = set(yaml.safe_load(open(path))["configuration"])
    assert named == set(config["schema"]), f"{path}: {named ^ set(config['schema'])}"
cargo = next(line for line in open("Cargo.toml") if line.startswith("version"))
assert config["version"] in cargo, "the add-on's version is not the program's"
repository = yaml.safe_load(open("repository.yaml"))
assert repository["name"] and repository["url"].startswith("https://github.com/"), repository
assert config["url"] == repository["url"], "two addresses of one repository"
assert f"add `{repository['url']}`," in open(f"{addon}/README.md").read(), "its README names another address"
image = "ghcr.io/" + repository["url"].removeprefix("https://github.com/") + "-addon-{arch}"
assert config["image"] == image == image.lower(), f"the release publishes {image}"
listens = 'HTTP__LISTEN="0.0.0.0:${ADDON_PORT:-%d}"' % config["ingress_port"]
blueprint = next(word for word in open(f"{addon}/DOCS.md").read().split("`") if word.endswith("/flash_lights.yaml"))
home, path = blueprint.split("/blob/main/")
assert home == config["url"] and glob.glob(path), f"no blueprint at {blueprint}"
assert config["ingress"] and listens in open(f"{addon}/run.sh").read(), "ingress leads elsewhere"
# Whatever else is called config.yaml in this repository would be taken for an add-on.
found = [path for path in glob.glob("**/config.y*ml", recursive=True) + glob.glob("**/config.json", recursive=True)
         if not path.startswith("target")]
assert found == [f"{addon}/config.yaml"], found
PY
pass "its files agree with each other and with the program's version"
# The relay is the built one; the Supervisor is a script in place of curl.
mkdir "$work/bin"
ln -s "$PWD/target/debug/astro-relay" "$work/bin/astro-relay"
cat >"$work/bin/curl" <<'SH'
#!/bin/sh
case "$*" in
    *"Bearer of-the-supervisor"*"http://supervisor/services/mqtt"*)
        echo '{"result":"ok","data":{"host":"core-mosquitto","port":1883,"ssl":false,"username":"addons","password":"hidden"}}' ;;
    *"Bearer of-the-supervisor"*"http://supervisor/addons/self/info"*)
        echo '{"result":"ok","data":{"slug":"local_astro_relay"}}' ;;
    *) exit 22 ;;
esac
SH
chmod +x "$work/bin/curl"

# try CODE WORDS OPTIONS [VARIABLE=…]…: runs the script with these options, and expects its end.
try() {
    local code=$1 words=$2 got=0
    echo "$3" >"$work/options.json"
    shift 3
    env -i PATH="$work/bin:/usr/bin:/bin" ADDON_OPTIONS="$work/options.json" ADDON_DATA="$work/data" \
        ADDON_CONFIG="$work/config" ADDON_COMMAND=check "$@" sh "$addon/run.sh" >"$work/out" 2>&1 || got=$?
    if [ "$got" = "$code" ] && grep -qF "$words" "$work/out" && ! grep -q 'hidden\|the-token' "$work/out"; then
        pass "$words"
    else
        fail "expected $code and \"$words\", got $got"
    fi
}

mkdir "$work/data"
full='{"token":"the-token","topics":["channel.tips","channel.follow"],"max_age":"30s","log_level":"info"}'
try 78 "token is missing" '{"token":"","topics":["channel.tips"],"log_level":"info"}'
try 78 "there is no MQTT broker" "$full"
try 0 "1 channel, 2 subscriptions, 1 sink: home (mqtt)" "$full" SUPERVISOR_TOKEN=of-the-supervisor
# What the script hands on, as the relay would read it.
handed() {
    sed 's|^exec astro-relay .*|env|' "$addon/run.sh" >"$work/env.sh"
    echo "$1" >"$work/options.json"
    env -i PATH="$work/bin:/usr/bin:/bin" ADDON_OPTIONS="$work/options.json" ADDON_DATA="$work/data" \
        ADDON_CONFIG="$work/config" SUPERVISOR_TOKEN=of-the-supervisor sh "$work/env.sh" >"$work/out" 2>&1
    shift
    for line in "$@"; do
        if grep -qx "$line" "$work/out"; then pass "$line"; else fail "$line"; fi
    done
}
handed "$full" ASTRO_RELAY__SINKS__HOME__HOMEASSISTANT=true \
    ASTRO_RELAY__SINKS__HOME__COMMANDS=relay/test,relay/refresh \
    ASTRO_RELAY__SINKS__HOME__CONFIGURATION_URL=homeassistant://hassio/ingress/local_astro_relay \
    ASTRO_RELAY__HTTP__TRUSTED_PROXIES=172.30.32.2
handed "${full%\}},\"homeassistant\":false}" ASTRO_RELAY__SINKS__HOME__HOMEASSISTANT=false
try 78 "there is no MQTT broker" "$full" SUPERVISOR_TOKEN=of-somebody-else
try 0 "1 sink: home (mqtt)" "${full%\}},\"mqtt_url\":\"mqtts://broker\",\"mqtt_user\":\"u\",\"mqtt_password\":\"hidden\",\"room\":\"5b2e2007760aeb7729487dab\",\"token_type\":\"apikey\",\"admin_token\":\"hidden-too\"}"
try 78 "max_age" "${full/30s/soon}" SUPERVISOR_TOKEN=of-the-supervisor
try 78 "log.level" "${full/info/loud}" SUPERVISOR_TOKEN=of-the-supervisor
mkdir "$work/config"
printf '[channels.a]\ntoken_env = "ASTRO_TOKEN"\ntopics = ["channel.tips"]\n[sinks.b]\ntype = "mqtt"\nurl = "mqtt://x"\nuser = "addons"\npassword_env = "MQTT_PASSWORD"\n' >"$work/config/astro-relay.toml"
try 0 "1 channel, 1 subscription, 1 sink: b (mqtt)" "$full" SUPERVISOR_TOKEN=of-the-supervisor
if [ "$(stat -c %a "$work/data/admin.token")" = 600 ] && [ "$(wc -c <"$work/data/admin.token")" = 48 ]; then
    pass "an admin token was made that nobody else can read"
else
    fail "the admin token"
fi

# And once for good, with nobody to talk to: it runs, its probe answers, and it ends when it is told to.
rm "$work/config/astro-relay.toml"
echo "$full" >"$work/options.json"
port=$((20000 + RANDOM % 10000))
env -i PATH="$work/bin:/usr/bin:/bin" ADDON_OPTIONS="$work/options.json" ADDON_DATA="$work/data" \
    ADDON_CONFIG="$work/config" ADDON_PORT=$port ADDON_INGRESS=127.0.0.2 SUPERVISOR_TOKEN=of-the-supervisor \
    ASTRO_RELAY__ASTRO__URL=ws://127.0.0.1:1 sh "$addon/run.sh" >"$work/out" 2>&1 &
relay=$!
# answer HOST: the status of the probe, asked for under that name.
answer() { curl -s -o /dev/null -w '%{http_code}' -H "Host: $1:9464" "http://127.0.0.1:$port/livez" || true; }
deadline=$((SECONDS + 20))
until [ "$(answer 172.30.32.2)" = 200 ] || [ "$SECONDS" -ge "$deadline" ]; do sleep 0.2; done
for host in 172.30.32.2 homeassistant.local; do
    if [ "$(answer $host)" = 200 ]; then pass "the probe answers to $host"; else fail "the probe, as $host"; fi
done
if [ "$(answer evil.example)" = 421 ]; then pass "and not to any name"; else fail "any name"; fi
# Through Ingress the page may stand in a frame of its own origin, and an action needs no token; here
# another address of the loopback plays the Supervisor.
posted() { curl -s -o /dev/null -w '%{http_code}' -X POST --interface 127.0.0.2 "$@" "http://127.0.0.1:$port/api/admin" || true; }
if [ "$(posted)" = 200 ]; then pass "Ingress needs no token"; else fail "Ingress"; fi
if [ "$(posted -H 'Sec-Fetch-Site: cross-site')" = 421 ]; then pass "another site cannot use it"; else fail "another site"; fi
if curl -s -D - -o /dev/null --interface 127.0.0.2 "http://127.0.0.1:$port/" | grep -qi "^x-frame-options: sameorigin"; then
    pass "the page may be framed by Home Assistant"
else
    fail "the frame"
fi
without=$(curl -s -o /dev/null -w '%{http_code}' -X POST "http://127.0.0.1:$port/api/admin")
if [ "$without" = 401 ]; then pass "everybody else needs it"; else fail "without a token: $without"; fi
kill "$relay"
if wait "$relay"; then pass "it ends when it is told to"; else fail "it ended with $?"; fi
exit "$failed"
