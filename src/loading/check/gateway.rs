//! The gateway, the channels, and everything else that is not a sink: limits, addresses, topics.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tracing_subscriber::EnvFilter;
use url::{Host, Url};

use crate::{
    astro::topics,
    base::nearest::nearest,
    config::{
        Channel, Config,
        problem::{Findings, Problem},
        units::Size,
    },
};

/// The gateway itself closes a connection that has been silent for this long (protocol: heartbeat).
const GATEWAY_GIVES_UP: Duration = Duration::from_secs(70);

pub(super) fn check(config: &Config, found: &mut Findings) {
    limits(found, config);
    astro(found, config);
    http(found, config);
    log(found, config);
    for (label, one) in &config.channels {
        channel(found, label, one);
    }
    repeated(found, config);
}

/// What must not be zero.
fn limits(found: &mut Findings, Config { astro, journal, session, .. }: &Config) {
    for (section, key, period) in [
        ("astro", "connect_timeout", astro.connect_timeout),
        ("astro", "response_timeout", astro.response_timeout),
        ("astro", "ping_after", astro.ping_after),
        ("astro", "ping_timeout", astro.ping_timeout),
        ("astro", "backoff_max", astro.backoff_max),
        ("astro", "retry_refused", astro.retry_refused),
        ("journal", "max_age", journal.max_age),
        // A fetch costs the vendor's server something.
        ("session", "refresh", session.refresh),
    ] {
        if period.0.is_zero() {
            found.error(&[section, key], "must be longer than 0s");
        }
    }
    for (key, count) in [
        ("max_connections", astro.max_connections),
        ("max_subscriptions_per_connection", astro.max_subscriptions_per_connection),
    ] {
        if count == 0 {
            found.error(&["astro", key], "must be at least 1");
        }
    }
    for (section, key, size) in [
        ("astro", "max_message_size", astro.max_message_size),
        ("journal", "max_size", journal.max_size),
        ("journal", "max_dead_letters", journal.max_dead_letters),
        ("journal", "memory", journal.memory),
    ] {
        if size == Size(0) {
            found.error(&[section, key], "must be larger than 0");
        }
    }
}

fn astro(found: &mut Findings, config: &Config) {
    let astro = &config.astro;
    url(found, &["astro", "url"], &astro.url, ["wss", "ws"]);
    url(found, &["astro", "api_url"], &astro.api_url, ["https", "http"]);
    let wanted: usize = config.channels.values().map(|channel| channel.topics.len()).sum();
    let room = astro.max_connections.saturating_mul(astro.max_subscriptions_per_connection);
    if room > 0 && wanted > room {
        let message = format!(
            "{wanted} subscriptions are configured, and only {room} fit into max_connections \
             of max_subscriptions_per_connection each"
        );
        found.error(&["astro", "max_connections"], message);
    }
    if astro.ping_after.0.saturating_add(astro.ping_timeout.0) > GATEWAY_GIVES_UP {
        let message = "with ping_timeout, a dead link is noticed only after the 70s at which the \
                       gateway itself gives up";
        found.warn(&["astro", "ping_after"], message);
    }
}

/// An address with one of two schemes, the first of which is encrypted.
fn url(found: &mut Findings, key: &[&str], text: &str, [secure, plain]: [&str; 2]) {
    let expected = format!("an address {secure}://… or {plain}://… was expected");
    let Ok(url) = Url::parse(text) else { return found.error(key, expected) };
    if url.scheme() != secure && url.scheme() != plain || url.host().is_none() {
        return found.error(key, expected);
    }
    if !url.username().is_empty() || url.password().is_some() {
        let message = "a user and a password have no meaning in this address: the token is what \
                       counts";
        return found.error(key, message);
    }
    if url.scheme() == plain && !url.host().is_some_and(|host| local(&host)) {
        found.warn(key, format!("tokens travel unencrypted: use {secure}://"));
    }
}

fn http(found: &mut Findings, config: &Config) {
    let http = &config.http;
    if !http.commands.are_off() && (http.listen.is_empty() || http.admin_token.is_none()) {
        let message = "nobody can give any: http.listen and http.admin_token are needed";
        found.warn(&["http", "commands"], message);
    }
    if http.listen.is_empty() {
        return;
    }
    let key = ["http", "listen"];
    let loopback = match http.listen.parse::<SocketAddr>() {
        Ok(address) => address.ip().is_loopback(),
        Err(_) => match http.listen.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
                host == "localhost"
            }
            _ => {
                let expected = "an address such as \"127.0.0.1:9464\" was expected, or \"\"";
                return found.error(&key, expected);
            }
        },
    };
    for (index, proxy) in http.trusted_proxies.iter().enumerate() {
        if proxy.parse::<IpAddr>().is_err() {
            let expected = "an address such as \"172.30.32.2\" was expected";
            found.error(&["http", "trusted_proxies", &format!("[{index}]")], expected);
        }
    }
    if !loopback && http.admin_token.is_none() && !http.insecure {
        let message = "can be reached from other machines: http.admin_token is needed, or \
                       http.insecure = true";
        found.error(&key, message);
    }
}

fn log(found: &mut Findings, config: &Config) {
    /// A level alone; in a filter, any other word is the name of a module.
    const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
    let level = config.log.level.as_str();
    let filter = level.contains(['=', ',', '[']) && EnvFilter::try_new(level).is_ok();
    if !filter && !LEVELS.contains(&level) {
        let expected = "one of error, warn, info, debug, trace, off was expected, or a filter such \
                        as \"info,astro_relay::astro=debug\"";
        let problem = Problem::new(["log", "level"], expected);
        found.errors.push(problem.suggest(nearest(level, LEVELS)));
    }
}

fn channel(found: &mut Findings, label: &str, channel: &Channel) {
    if let Some(room) = &channel.room {
        let key = ["channels", label, "room"];
        if room.is_empty() {
            found.error(&key, "is empty: leave it out for the channel of the token");
        } else if room.len() != 24 || !room.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            found.warn(&key, "is not a channel's id, which has 24 hexadecimal digits");
        }
    }
    let key = ["channels", label, "topics"];
    if channel.topics.is_empty() {
        found.error(&key, "is empty: nothing would be subscribed");
    }
    for (index, topic) in channel.topics.iter().enumerate() {
        let element = format!("[{index}]");
        let key = ["channels", label, "topics", &element];
        if topic.is_empty() || topic.chars().any(char::is_whitespace) {
            found.error(&key, "a topic such as \"channel.tips\" was expected");
        } else if topic.contains(['*', '#', '>', '+']) {
            found.error(&key, "a subscription has no wildcards: list the topics");
        } else if topic.starts_with("relay.") {
            found.error(&key, "the relay's own events come by themselves, without a subscription");
        } else if channel.topics.iter().take(index).any(|earlier| earlier == topic) {
            found.error(&key, "stands twice in this list");
        } else if topics::is_unpublished(topic) {
            let text = "can be subscribed, but Astro publishes nothing on it yet";
            found.warnings.push(Problem::new(key, text));
        } else if let Some(meant) = topics::meant_by(topic) {
            let problem = Problem::new(key, "is not in the catalogue of topics");
            found.warnings.push(problem.suggest(Some(meant)));
        }
    }
}

/// The same subscription under two labels: each message would belong to one of the two only, with
/// whatever token it was asked for.
fn repeated(found: &mut Findings, config: &Config) {
    let mut seen: BTreeMap<(&str, Option<&str>, String), &str> = BTreeMap::new();
    for (label, channel) in &config.channels {
        for (index, topic) in channel.topics.iter().enumerate() {
            // Without a room it is the token's. Never the secret itself: it only serves to be
            // compared.
            let token = match &channel.room {
                Some(_) => String::new(),
                None => serde_json::to_string(&channel.token).unwrap_or_default(),
            };
            let subscription = (topic.as_str(), channel.room.as_deref(), token);
            match seen.get(&subscription) {
                Some(first) if first == label => {}
                Some(first) => {
                    let element = format!("[{index}]");
                    let message = format!(
                        "the same subscription (topic and room) stands in channels.{first}: a \
                         message belongs to one channel"
                    );
                    found.error(&["channels", label, "topics", &element], message);
                }
                None => drop(seen.insert(subscription, label)),
            }
        }
    }
}

fn local(host: &Host<&str>) -> bool {
    match host {
        Host::Ipv4(ip) => ip.is_loopback(),
        Host::Ipv6(ip) => ip.is_loopback(),
        Host::Domain(name) => *name == "localhost",
    }
}
