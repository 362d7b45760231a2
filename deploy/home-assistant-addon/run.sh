#!/bin/sh
# From the options of the add-on to the configuration of the relay: each option becomes a variable of
# the environment, which overrides whatever file there is. Secrets stay in the environment.
#
# A file of one's own, /config/astro-relay.toml, is used instead of the options; what the Supervisor
# knows of the broker stands ready for it in MQTT_URL, MQTT_USER and MQTT_PASSWORD, the token in
# ASTRO_TOKEN.
#
# ADDON_OPTIONS, ADDON_DATA, ADDON_CONFIG, ADDON_PORT, ADDON_INGRESS and ADDON_COMMAND are for trying this
# script out.
set -eu

options=${ADDON_OPTIONS:-/data/options.json}
data=${ADDON_DATA:-/data}
own=${ADDON_CONFIG:-/config}/astro-relay.toml
command=${ADDON_COMMAND:-run}

# An option, or nothing where it is not given.
option() { jq -r --arg key "$1" '.[$key] | if . == null then "" else . end | if type == "array" then tojson else . end' "$options"; }
# The relay ends with 78 for a configuration that cannot be used (sysexits); so does this.
fail() { echo "$*" >&2; exit 78; }

ASTRO_TOKEN=$(option token)
export ASTRO_TOKEN

# ---- the broker: what is configured, or what the Supervisor knows --------------------------------

MQTT_URL=$(option mqtt_url)
MQTT_USER=$(option mqtt_user)
MQTT_PASSWORD=$(option mqtt_password)
if [ -z "$MQTT_URL" ] && [ -n "${SUPERVISOR_TOKEN:-}" ]; then
    if service=$(curl -sSf --max-time 10 -H "Authorization: Bearer $SUPERVISOR_TOKEN" \
        "${SUPERVISOR_URL:-http://supervisor}/services/mqtt"); then
        known() { printf '%s' "$service" | jq -r --arg key "$1" '.data[$key] // ""'; }
        scheme=mqtt
        [ "$(known ssl)" != true ] || scheme=mqtts
        MQTT_URL=$scheme://$(known host):$(known port)
        MQTT_USER=$(known username)
        MQTT_PASSWORD=$(known password)
    fi
fi
export MQTT_URL MQTT_USER MQTT_PASSWORD

# ---- what holds in any case ----------------------------------------------------------------------

export ASTRO_RELAY__JOURNAL__DIR="$data/journal"
mkdir -p "$data/journal"
export ASTRO_RELAY__LOG__FORMAT=text
ASTRO_RELAY__LOG__LEVEL=$(option log_level)
export ASTRO_RELAY__LOG__LEVEL="${ASTRO_RELAY__LOG__LEVEL:-info}"

# The Supervisor's watchdog asks from outside of the container, so it is listened on everywhere in it,
# and what is not a probe needs a token. The port is not published unless it is configured to be.
ADMIN_TOKEN=$(option admin_token)
if [ -z "$ADMIN_TOKEN" ]; then
    [ -s "$data/admin.token" ] || (umask 077 && od -An -N24 -tx1 /dev/urandom | tr -d ' \n' >"$data/admin.token")
    ADMIN_TOKEN=$(cat "$data/admin.token")
fi
export ADMIN_TOKEN
export ASTRO_RELAY__HTTP__ADMIN_TOKEN_ENV=ADMIN_TOKEN
export ASTRO_RELAY__HTTP__LISTEN="0.0.0.0:${ADDON_PORT:-9464}"
# The name under which most people have their Home Assistant; any address will do besides.
export ASTRO_RELAY__HTTP__ALLOWED_HOSTS=homeassistant.local
# Ingress: Home Assistant asks itself who comes, and lets administrators in only.
export ASTRO_RELAY__HTTP__TRUSTED_PROXIES="${ADDON_INGRESS:-172.30.32.2}"

# ---- a configuration of one's own, or the options ------------------------------------------------

if [ -s "$own" ]; then
    echo "using your own configuration, $own; the options for topics and MQTT are not looked at" >&2
    exec astro-relay "$command" --config "$own"
fi

[ -n "$ASTRO_TOKEN" ] || fail "token is missing: the JWT of your channel, from StreamElements' account settings"
[ -n "$MQTT_URL" ] || fail "there is no MQTT broker: install the Mosquitto add-on, or set mqtt_url"

export ASTRO_RELAY__CHANNELS__MAIN__TOKEN_ENV=ASTRO_TOKEN
ASTRO_RELAY__CHANNELS__MAIN__TOPICS=$(option topics)
export ASTRO_RELAY__CHANNELS__MAIN__TOPICS
export ASTRO_RELAY__SINKS__HOME__TYPE=mqtt
export ASTRO_RELAY__SINKS__HOME__URL="$MQTT_URL"
# The entities, with a button that sends a test event.
if [ "$(option homeassistant)" != false ]; then
    export ASTRO_RELAY__SINKS__HOME__HOMEASSISTANT=true
    export ASTRO_RELAY__SINKS__HOME__COMMANDS=relay/test,relay/refresh
    if slug=$(curl -sSf --max-time 10 -H "Authorization: Bearer ${SUPERVISOR_TOKEN:-}" \
        "${SUPERVISOR_URL:-http://supervisor}/addons/self/info" 2>/dev/null | jq -er .data.slug); then
        export ASTRO_RELAY__SINKS__HOME__CONFIGURATION_URL="homeassistant://hassio/ingress/$slug"
    fi
else
    export ASTRO_RELAY__SINKS__HOME__HOMEASSISTANT=false
fi

# An option that is not given leaves the relay's own default.
optional() {
    value=$(option "$1")
    [ -z "$value" ] || export "$2=$value"
}
optional room ASTRO_RELAY__CHANNELS__MAIN__ROOM
optional token_type ASTRO_RELAY__CHANNELS__MAIN__TOKEN_TYPE
optional max_age ASTRO_RELAY__SINKS__HOME__MAX_AGE
if [ -n "$MQTT_USER" ]; then
    export ASTRO_RELAY__SINKS__HOME__USER="$MQTT_USER"
    export ASTRO_RELAY__SINKS__HOME__PASSWORD_ENV=MQTT_PASSWORD
fi

exec astro-relay "$command" --config /dev/null
