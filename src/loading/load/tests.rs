//! What a configuration becomes, and what is said of a bad one.

mod difference;
mod every_key;
mod mistakes;
mod refresh;

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;
use crate::config::{SecretRef, units::Period};

/// The least that works.
const LEAST: &str = r#"
[channels.main]
token_env = "TOKEN"
topics = ["channel.tips"]

[sinks.out]
type = "stdout"
"#;

fn sources(text: &str) -> Sources {
    Sources { text: Some(text.into()), resolve_secrets: false, ..Sources::default() }
}

fn env(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn problems(text: &str) -> Vec<String> {
    match load(&sources(text)) {
        Ok(_) => Vec::new(),
        Err(error) => error.problems.iter().map(ToString::to_string).collect(),
    }
}

fn warnings(text: &str) -> Vec<String> {
    load(&sources(text)).unwrap().warnings.iter().map(ToString::to_string).collect()
}

/// Everything that anybody could print of an outcome.
fn everything(outcome: &Result<Loaded, ConfigError>) -> String {
    let mut text = String::new();
    let (problems, word) = match outcome {
        Ok(loaded) => {
            write!(text, "{loaded:?} {:?}", loaded.config).unwrap();
            (&loaded.warnings, "warning")
        }
        Err(error) => {
            write!(text, "{error} {error:?}").unwrap();
            (&error.problems, "error")
        }
    };
    for problem in problems {
        write!(text, "\n{problem} {problem:?} {}", problem.render(word)).unwrap();
    }
    text
}

#[test]
fn the_least_configuration_is_that_of_the_defaults() {
    let loaded = load(&sources(LEAST)).unwrap();
    let expected = Config::default();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.astro, expected.astro);
    assert_eq!(loaded.config.journal, expected.journal);
    assert_eq!(loaded.config.http, expected.http);
    assert_eq!(loaded.config.log, expected.log);
    assert_eq!(loaded.config.channels["main"].token, SecretRef::Env("TOKEN".into()));
    assert_eq!(loaded.config.sinks["out"].window, 2048);
    assert_eq!(loaded.config.sinks["out"].settings, serde_json::json!({}));
}

#[test]
fn the_command_line_overrides_the_environment_overrides_the_file() {
    let mut sources = sources(&format!("{LEAST}[log]\nlevel = \"warn\"\n[http]\nlisten = \"\"\n"));
    let level = |sources: &Sources| load(sources).unwrap().config.log.level;
    assert_eq!(level(&sources), "warn");
    sources.env = env(&[("ASTRO_RELAY__LOG__LEVEL", "debug"), ("LOG__LEVEL", "nobody")]);
    assert_eq!(level(&sources), "debug");
    sources.set = vec![("log.level".into(), "trace".into()), ("log.level".into(), "off".into())];
    assert_eq!(level(&sources), "off");
    assert_eq!(load(&sources).unwrap().config.http.listen, "");
}

#[test]
fn the_environment_alone_is_enough() {
    let sources = Sources {
        text: Some(String::new()),
        env: env(&[
            ("ASTRO_RELAY__CHANNELS__MAIN__TOKEN", "0123"),
            ("ASTRO_RELAY__CHANNELS__MAIN__TOKEN_TYPE", "apikey"),
            ("ASTRO_RELAY__CHANNELS__MAIN__TOPICS", "channel.tips, Channel.Mixed"),
            ("ASTRO_RELAY__SINKS__OUT__TYPE", "stdout"),
            ("ASTRO_RELAY__SINKS__OUT__TOPICS", r#"["channel.*"]"#),
            ("ASTRO_RELAY__SINKS__OUT__WINDOW", "10"),
            ("ASTRO_RELAY__SINKS__OUT__MAX_AGE", "30s"),
            ("ASTRO_RELAY__SINKS__OUT__REDACT", ""),
            ("ASTRO_RELAY__HTTP__INSECURE", "True"),
            ("ASTRO_RELAY__HTTP__LISTEN", ""),
            ("astro_relay__astro__api_url", "https://0123/"),
            ("ASTRO_RELAY_CONFIG", "not ours to read"),
        ]),
        ..Sources::default()
    };
    let Loaded { config, warnings, .. } = load(&sources).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(config.channels["main"].token, SecretRef::Value("0123".into()));
    assert_eq!(config.channels["main"].topics, ["channel.tips", "Channel.Mixed"]);
    let sink = &config.sinks["out"];
    assert_eq!(sink.topics.as_deref(), Some(&["channel.*".to_owned()][..]));
    assert_eq!((sink.window, sink.redact.as_deref()), (10, Some(&[][..])));
    assert_eq!(sink.max_age, Some(Period::parse("30s").unwrap()));
    assert!(config.http.insecure);
    assert_eq!((config.http.listen.as_str(), config.astro.api_url.as_str()), ("", "https://0123/"));
}

#[test]
fn a_secret_of_a_higher_layer_stands_for_every_form_below() {
    for (name, value, expected) in [
        ("TOKEN", "007", SecretRef::Value("007".into())),
        ("TOKEN_FILE", "/run/token", SecretRef::File("/run/token".into())),
        ("TOKEN_CREDENTIAL", "main", SecretRef::Credential("main".into())),
    ] {
        let mut sources = sources(LEAST);
        sources.env = env(&[(&format!("ASTRO_RELAY__CHANNELS__MAIN__{name}"), value)]);
        assert_eq!(load(&sources).unwrap().config.channels["main"].token, expected);
        sources.set = vec![("channels.main.token_env".into(), "OTHER".into())];
        let token = load(&sources).unwrap().config.channels["main"].token.clone();
        assert_eq!(token, SecretRef::Env("OTHER".into()));
    }
}

#[test]
fn what_comes_from_outside_the_file_is_located_there() {
    let mut sources = sources(LEAST);
    sources.env = env(&[
        ("ASTRO_RELAY__SINKS__OUT__WINDOW", "many"),
        ("ASTRO_RELAY__SINKS__OUT__BACH", "1"),
        ("ASTRO_RELAY__LOG__LEVEL", "info"),
        ("ASTRO_RELAY__LOG__level", "debug"),
        ("ASTRO_RELAY__LOG", "{}"),
        ("ASTRO_RELAY__", "x"),
        ("ASTRO_RELAY__SINKS__TWO__WINDOW", "5"),
    ]);
    sources.set = vec![("sinks.out.type".into(), "stdot".into()), ("a..b".into(), "x".into())];
    insta::assert_snapshot!(load(&sources).unwrap_err());
}

#[test]
fn every_problem_is_told_at_once() {
    let text = r#"
        chanels = {}
        [astro]
        url = "https://astro.streamelements.com"
        ping_after = 15
        ping_timeout = "0s"
        max_connections = 0
        max_message_size = "1 banana"
        conect_timeout = "3s"
        [channels.main]
        topics = []
        token_type = "JWT"
        [channels.Other]
        token_file = "a"
        token_env = "B"
        topics = ["channel.tips", "channel.*", "channel.tips", 5]
        [channels.third]
        token_env = "B"
        topics = ["channel.tips", "channel.*", "channel.tips", "", "relay.gap"]
        [channels.fourth]
        token_env = "B"
        topics = ["channel.follow", "channel.tips"]
        [journal]
        max_age = "0s"
        sync = "sometimes"
        memory = "0"
        [http]
        listen = "0.0.0.0:9464"
        insecure = "yes"
        [log]
        format = "jsn"
        level = "wran"
        [sinks.out]
        type = "stdout"
        topics = ["channel.**.x", "chan*", "a..b", "channel.*"]
        channels = ["mian"]
        when = "data.amount >"
        payload = "mesage"
        window = 0
        max_age = "0s"
        redact = ["data..x"]
        format = "texr"
        urll = "x"
        [sinks.none]
        window = 3
        [sinks.typo]
        type = "mqttt"
        [sinks.more]
        type = "stdout"
        when = "dta.x"
        payload = "{{ topic"
        start = "yesterday"
        window = -1
        timeout = 2.5
        [sinks.redacted]
        type = "stdout"
        redact = ["topic"]
        [[sinks.list]]
        type = "stdout"
    "#;
    let error = load(&sources(text)).unwrap_err();
    let rendered: Vec<String> =
        error.problems.iter().map(|problem| problem.render("error")).collect();
    insta::assert_snapshot!(rendered.join("\n\n"));
}

#[test]
fn a_file_that_is_not_toml_is_told_by_line_and_column() {
    let rendered = |text: &str| -> Vec<String> {
        let error = load(&sources(text)).unwrap_err();
        error.problems.iter().map(|problem| problem.render("error")).collect()
    };
    let mut shown = String::new();
    for text in [
        "[channels.main\ntopics = []",
        "[log]\nlevel = info",
        "[log]\nlevel = \"info\nformat = \"text\"",
        "[log]\nlevel = \"a\"\nlevel = \"b\"",
        "[log]\nlevel = \"a\" format = \"text\"",
        "level: info",
        "\"a.b\" = 1\n\"\" = 2",
        "[log]\nlevel = 1\n[astro]\nurl = 99999999999999999999",
    ] {
        writeln!(shown, "{text}\n---\n{}\n", rendered(text).join("\n\n")).unwrap();
    }
    insta::assert_snapshot!(shown);
}

#[test]
fn what_works_but_is_hardly_meant_is_a_warning() {
    for (text, expected) in [
        ("", "channels: there is none"),
        (
            "[channels.main]\ntoken_env=\"A\"\ntopics=[\"channel.tip\"]",
            "did you mean \"channel.tips\"?",
        ),
        (
            "[channels.main]\nroom=\"shroud\"\ntoken_env=\"A\"\ntopics=[\"x\"]",
            "24 hexadecimal digits",
        ),
        ("[astro]\nurl=\"ws://example.org\"", "unencrypted"),
        ("[astro]\nping_after=\"5m\"", "noticed only after the 70s"),
        (&format!("{LEAST}topics = [\"channel.tip\"]"), "subscribes to this topic; did you mean"),
        ("[http]\ncommands = true", "http.commands: nobody can give any"),
        (
            &format!("{LEAST}{}", commanded("url = \"mqtt://b\"", "")),
            "sinks.a takes commands from the same",
        ),
        (
            &format!(
                "{LEAST}[cluster]\nurl = \"nats://n\"\n[sinks.a]\ntype = \"nats\"\n\
                 url = \"nats://n\"\njetstream = true\ncreate_stream = true\n"
            ),
            "sinks.a.subject: the sink's stream would take astro.>",
        ),
    ] {
        let warnings = warnings(text);
        assert!(warnings.iter().any(|warning| warning.contains(expected)), "{text}: {warnings:?}");
    }
    assert_eq!(warnings("[astro]\nurl=\"ws://127.0.0.1:1\"").len(), 2, "no channel and no sink");
}

#[test]
fn a_private_key_that_every_user_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let certs = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/certs");
    let (cert, key) = (certs.join("client.pem"), dir.path().join("client.key"));
    std::fs::copy(certs.join("client.key"), &key).unwrap();
    let text = format!(
        "{LEAST}[sinks.a]\ntype = \"mqtt\"\nurl = \"mqtts://b\"\n\
         client_cert_file = {cert:?}\nclient_key_file = {key:?}\n"
    );
    for (mode, expected) in [(0o644, true), (0o640, false)] {
        std::fs::set_permissions(&key, std::fs::Permissions::from_mode(mode)).unwrap();
        let sources = Sources { env: env(&[("TOKEN", "t")]), ..sources(&text) };
        let sources = Sources { resolve_secrets: true, ..sources };
        let warnings = load(&sources).unwrap().warnings;
        let warnings: Vec<_> = warnings.iter().map(ToString::to_string).collect();
        let warned = "sinks.a.client_key_file: the private key can be read by every user";
        let found = warnings.iter().any(|warning| warning.contains(warned));
        assert_eq!(found, expected, "{mode:o}: {warnings:?}");
    }
}

/// Two sinks that take commands.
fn commanded(first: &str, second: &str) -> String {
    let sink = |name: &str, more: &str| {
        format!("[sinks.{name}]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\ncommands = true\n{more}\n")
    };
    sink("a", first).replacen("url = \"mqtt://b\"\n", "", 1) + &sink("b", second)
}

#[test]
fn a_path_that_only_a_shell_reads_is_no_path() {
    let token = LEAST.replace("token_env = \"TOKEN\"", "token_file = \"~/token\"");
    assert_ne!(token, LEAST);
    for text in [format!("[journal]\ndir = \"~/j\"\n{LEAST}"), token] {
        let problems = problems(&text);
        assert!(problems.iter().any(|problem| problem.contains("`~` is not expanded")), "{text}");
    }
    assert_eq!(problems(&format!("[journal]\ndir = \"/srv/~j\"\n{LEAST}")), [""; 0]);
    // What a user names is no path.
    let hook =
        "[sinks.hook]\ntype = \"webhook\"\nurl = \"https://h\"\nheaders = { x_file = \"~/a\" }\n";
    assert_eq!(problems(&format!("{LEAST}\n{hook}")), [""; 0]);
}

#[test]
fn a_misspelt_type_is_pointed_at() {
    let text = LEAST.replace("type =", "typ =");
    assert!(problems(&text).iter().any(|problem| problem.ends_with("; typ is no key")), "{text}");
}

#[test]
fn commands_are_what_is_named_and_nowhere_else() {
    use crate::config::{Action, Commands};
    let mut sources = sources(LEAST);
    let loaded = load(&sources).unwrap().config;
    assert!(loaded.http.commands.are_off() && !loaded.sinks["out"].takes_commands());
    sources.env = env(&[("ASTRO_RELAY__HTTP__COMMANDS", "session/set,relay/refresh")]);
    let commands = load(&sources).unwrap().config.http.commands;
    assert_eq!(commands, Commands::Only(vec![Action::Set, Action::Refresh]));
    sources.env = env(&[("ASTRO_RELAY__HTTP__COMMANDS", "true")]);
    assert_eq!(load(&sources).unwrap().config.http.commands, Commands::All(true));

    let nats = "[sinks.a]\ntype = \"nats\"\nurl = \"nats://b\"\ncommands = true\n";
    for (text, expected) in [
        (format!("{LEAST}commands = true"), "sinks.out.commands: unknown key"),
        ("[http]\ncommands = [\"session/drop\"]".to_owned(), "http.commands"),
        ("[http]\ncommands = \"session/set\"".to_owned(), "http.commands"),
        (format!("{LEAST}{nats}jetstream = true"), "answer them in the relay's place"),
    ] {
        let problems = problems(&text);
        assert!(problems.iter().any(|problem| problem.contains(expected)), "{text}: {problems:?}");
    }
    let elsewhere = "jetstream = true\nsubject = \"events.{{ topic }}\"";
    assert_eq!(problems(&format!("{LEAST}{nats}{elsewhere}")), [""; 0]);
    // Each has its channel, or its broker.
    let apart = LEAST.replace("main", "other").replace("channel.tips", "channel.follow");
    let apart = apart.split("[sinks").next().unwrap();
    let (main, other) = ("channels = [\"main\"]", "channels = [\"other\"]");
    for (first, second) in
        [(format!("url = \"mqtt://b\"\n{main}"), other), ("url = \"mqtt://c\"".to_owned(), "")]
    {
        let text = format!("{LEAST}{apart}{}", commanded(&first, second));
        assert_eq!(warnings(&text), [""; 0], "{text}");
    }
}

#[test]
fn a_state_is_kept_where_it_can_be_and_once() {
    let mqtt = "[sinks.a]\ntype=\"mqtt\"\nurl=\"mqtt://h\"\nstate=true\n";
    let none = format!("{LEAST}[sinks.b]\ntype=\"stdout\"\nstate=true\n");
    let topic = format!("{LEAST}{mqtt}availability_topic=\"x\"\n");
    let idle = format!(
        "{LEAST}[sinks.b]\ntype=\"mqtt\"\nurl=\"mqtt://h\"\nstate_topic=\"{{{{ channel }}}}\""
    );
    let label = LEAST.replace("channels.main", "channels.relay");
    for (text, expected) in [
        (none, "sinks.b.state: stdout cannot hold state"),
        (topic, "sinks.a.availability_topic: with state = true"),
        (idle, "sinks.b.state_topic: is of use only with state = true"),
        (format!("{label}{mqtt}"), "channels.relay: a sink with state = true"),
    ] {
        let problems = problems(&text);
        assert!(problems.iter().any(|told| told.contains(expected)), "{text}: {problems:?}");
    }
    let twice = format!("{LEAST}{mqtt}{}", mqtt.replace("sinks.a", "sinks.b"));
    let told = warnings(&twice);
    assert!(told.iter().any(|told| told.contains("sinks.a publishes its state")), "{told:?}");
    let apart = twice.replacen("mqtt://h", "mqtt://other", 1);
    assert!(!warnings(&apart).iter().any(|told| told.contains("publishes its state")));
}

#[test]
fn a_variable_with_one_underscore_is_warned_of() {
    let mut sources = sources(LEAST);
    sources.env = env(&[
        ("ASTRO_RELAY_LOG_LEVEL", "debug"),
        ("ASTRO_RELAY_SINKS__OUT__WINDOW", "5"),
        ("ASTRO_RELAY_CONFIG", "x"),
        ("ASTRO_RELAY_HTTP_SERVICE_HOST", "10.0.0.1"),
        ("LOG_LEVEL", "debug"),
    ]);
    let warnings: Vec<String> =
        load(&sources).unwrap().warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(warnings[0].starts_with("$ASTRO_RELAY_LOG_LEVEL: ignored"), "{warnings:?}");
}

#[test]
fn an_open_endpoint_needs_a_token_or_an_explicit_word() {
    for (text, fine) in [
        ("listen = \"0.0.0.0:9464\"", false),
        ("listen = \"relay.lan:9464\"", false),
        ("listen = \"[::]:9464\"", false),
        ("listen = \"9464\"", false),
        ("listen = \":9464\"", false),
        ("listen = \"localhost:9464\"", true),
        ("listen = \"[::1]:9464\"", true),
        ("listen = \"\"", true),
        ("listen = \"0.0.0.0:9464\"\ninsecure = true", true),
        ("listen = \"0.0.0.0:9464\"\nadmin_token_file = \"/run/token\"", true),
    ] {
        let problems = problems(&format!("[http]\n{text}\n"));
        assert_eq!(problems.is_empty(), fine, "{text}: {problems:?}");
    }
}

/// A secret where it belongs, and where it does not.
const CANARY: &str = "eyJcanary.hunter2";

#[test]
fn a_secret_is_in_no_message_whatever_is_wrong_around_it() {
    let c = CANARY;
    for text in [
        format!("[channels.main]\ntoken = \"{c}\"\ntopics = [\"channel.tips\"]\n"),
        format!("[channels.main]\ntoken = \"{c}\n"),
        format!("[channels.main]\ntoken = \"{c}\" topics = []\n"),
        format!("[channels.main]\ntoken = {c}\n"),
        format!("[channels.main]\n{c}\n"),
        format!("[channels.main]\ntopics = [\"a\"] token = \"{c}\"\n"),
        format!("[channels.main]\ntokn = \"{c}\"\ntoken = [\"{c}\"]\ntopics = 5\n"),
        format!("[channels.main]\ntoken = {{ value = \"{c}\" }}\ntoken_file = \"{c}\"\n"),
        format!("[channels]\nmain = {{ token = \"{c}\", topics = 5, tokn = \"{c}\" }}\n"),
        format!("[channels.main]\ntoken_type = \"{c}\"\ntopics = \"{c}\"\ntoken = 5\n"),
        format!("[channels.main]\ntoken = \"\"\"\nx\n{c}=\n[{c}\n\"\"\" x\n"),
        format!("[http]\nadmin_token = \"{c}\"\nlisten = \"{c}\"\ninsecure = \"{c}\"\n"),
        format!("[astro]\nurl = \"{c}\"\nping_after = \"{c}\"\nmax_message_size = \"{c}\"\n"),
        format!("[journal]\nsync = \"{c}\"\n[log]\nformat = \"{c}\"\n"),
        format!(
            "[sinks.a]\ntype = \"{c}\"\n[sinks.b]\ntype = \"stdout\"\nformat = \"{c}\"\nx = \"{c}\"\n"
        ),
        format!(
            "[sinks.b]\ntype = \"stdout\"\nwindow = \"{c}\"\nstart = \"{c}\"\npassword = \"{c}\"\n"
        ),
    ] {
        let outcome = load(&sources(&text));
        let shown = everything(&outcome);
        assert!(!shown.contains(c) && !shown.contains("hunter2"), "{text}\n{shown}");
    }
    for key in
        ["CHANNELS__MAIN__TOKEN", "CHANNELS__MAIN__TOKN", "HTTP__INSECURE", "SINKS__OUT__WINDOW"]
    {
        let mut sources = sources(LEAST);
        sources.env = env(&[(&format!("ASTRO_RELAY__{key}"), c)]);
        let shown = everything(&load(&sources));
        assert!(!shown.contains("hunter2"), "{key}\n{shown}");
    }
}

#[test]
fn no_kind_of_sink_shows_its_secrets_or_a_password_in_an_address() {
    for kind in crate::sink::KINDS {
        let addresses = ["mqtt", "redis", "nats", "https", "x"].map(|scheme| {
            format!("url = \"{scheme}://user:{CANARY}@host:1/{CANARY}?p={CANARY}\"\n")
        });
        let mut lines = addresses.to_vec();
        for secret in kind.secrets {
            lines.push(format!("{secret} = \"{CANARY}\"\n"));
            lines.push(format!("{secret} = [\"{CANARY}\"]\n"));
            lines.push(format!("{secret} = \"{CANARY}\"\nurl = 5\n{secret}s = \"{CANARY}\"\n"));
        }
        for line in lines {
            let text = format!("[sinks.x]\ntype = \"{}\"\n{line}", kind.name);
            let shown = everything(&load(&sources(&text)));
            assert!(!shown.contains("hunter2"), "{text}\n{shown}");
        }
    }
}

#[test]
fn every_form_of_a_sinks_secret_becomes_one() {
    for (kind, secret) in
        crate::sink::KINDS.iter().flat_map(|kind| kind.secrets.iter().map(move |key| (kind, key)))
    {
        for (suffix, form) in crate::config::secret::FORMS {
            let found = serde_json::json!({
                "sinks": { "x": { "type": kind.name, format!("{secret}{suffix}"): "0123" } }
            });
            let places =
                Places { file: None, variables: BTreeMap::new(), arguments: BTreeMap::new() };
            let shape = walk(schema(), &places, found);
            let folded = &shape.value["sinks"]["x"][secret];
            assert_eq!(*folded, serde_json::json!({ form: "0123" }), "{} {secret}", kind.name);
        }
    }
}

#[test]
fn secrets_are_looked_for_where_they_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    let missing = dir.path().join("missing");
    let mut sources = sources(&format!(
        "[channels.a]\ntoken_file = {token:?}\ntopics = [\"x\"]\n\
         [channels.b]\ntoken_file = {missing:?}\ntopics = [\"y\"]\n\
         [channels.c]\ntoken_env = \"NO_SUCH_TOKEN\"\ntopics = [\"z\"]\n\
         [http]\nadmin_token_env = \"ADMIN\"\n"
    ));
    sources.resolve_secrets = true;
    sources.env = env(&[("ADMIN", "x")]);
    std::fs::write(&token, "abc\n").unwrap();
    let problems = load(&sources).unwrap_err().problems;
    let keys: Vec<String> =
        problems.iter().map(|problem| crate::config::problem::dotted(&problem.key)).collect();
    assert_eq!(keys, ["channels.b.token", "channels.c.token"]);
    assert!(problems[0].message.contains("cannot read the secret file"), "{}", problems[0]);
    assert!(problems[0].message.contains("there is no such file"), "{}", problems[0]);
    assert!(problems[1].message.contains("NO_SUCH_TOKEN is not set"), "{}", problems[1]);
    sources.resolve_secrets = false;
    assert!(load(&sources).is_ok());
}

#[test]
fn a_secret_that_others_can_read_is_warned_of() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("astro-relay.toml");
    let token = dir.path().join("token");
    let text = format!(
        "[channels.a]\ntoken = \"abc\"\ntoken_type = \"apikey\"\ntopics = [\"x\"]\n\
         [channels.b]\ntoken_file = {token:?}\ntoken_type = \"apikey\"\ntopics = [\"x\"]\n\
         [sinks.out]\ntype = \"stdout\"\n"
    );
    std::fs::write(&file, text).unwrap();
    std::fs::write(&token, "abc").unwrap();
    let sources = Sources { file: Some(file.clone()), ..Sources::default() };
    for (mode, expected) in [(0o600, 0), (0o640, 0), (0o644, 2)] {
        for path in [&file, &token] {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        assert_eq!(load(&sources).unwrap().warnings.len(), expected, "{mode:o}");
    }
}

#[test]
fn a_token_near_its_end_is_warned_of_and_never_refused() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let now = crate::base::clock::now() / 1000;
    let day = 24 * 3600;
    for (exp, expected) in [
        (now + 30 * day, None),
        (now + 2 * day, Some("expires at")),
        (now - day, Some("expired at")),
    ] {
        let claims = BASE64_URL_SAFE_NO_PAD.encode(format!(r#"{{"exp":{exp}}}"#));
        let mut sources = sources(LEAST);
        sources.resolve_secrets = true;
        sources.env = env(&[("TOKEN", &format!("e30.{claims}.c2ln"))]);
        let warnings = load(&sources).unwrap().warnings;
        let first = warnings.first().map(ToString::to_string).unwrap_or_default();
        assert!(first.contains(expected.unwrap_or_default()), "{first}");
        assert_eq!(warnings.len(), usize::from(expected.is_some()));
        assert!(!first.contains(&claims));
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let latin = dir.path().join("latin.toml");
    std::fs::write(&latin, [0xff, 0xfe]).unwrap();
    let large = dir.path().join("large.toml");
    std::fs::write(&large, vec![b'#'; usize::try_from(LARGEST_FILE).unwrap() + 1]).unwrap();
    for (file, expected) in [
        (dir.path().join("none.toml"), "cannot be read"),
        (dir.path().to_owned(), "cannot be read"),
        (latin, "UTF-8"),
        (large, "larger than"),
    ] {
        let sources = Sources { file: Some(file.clone()), ..Sources::default() };
        let error = load(&sources).unwrap_err().to_string();
        assert!(error.starts_with(file.to_str().unwrap()) && error.contains(expected), "{error}");
    }
}

/// Pieces of a configuration: put together at random they are often nearly right.
fn piece() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("[channels.main]\n".to_owned()),
        Just("[sinks.out]\n".to_owned()),
        Just("[[sinks]]\n".to_owned()),
        Just("type = \"stdout\"\n".to_owned()),
        Just("token = \"x\"\n".to_owned()),
        Just("token_file = \"x\"\n".to_owned()),
        Just("topics = [\"a\", 1]\n".to_owned()),
        Just("max_age = \"99999999999999999y\"\n".to_owned()),
        Just("window = 99999999999999999999\n".to_owned()),
        Just("timeout = nan\n".to_owned()),
        Just("room = 1979-05-27\n".to_owned()),
        Just("payload = \"{{\"\n".to_owned()),
        "[a-z\\[\\]{}\"'=., \n#_0-9]{0,20}",
        any::<String>(),
    ]
}

#[test]
fn two_sinks_with_one_client_id_at_one_broker_are_an_error() {
    let sink = |name: &str, url: &str, more: &str| {
        format!("[sinks.{name}]\ntype = \"mqtt\"\nurl = \"{url}\"\n{more}\n")
    };
    let id = "client_id = \"me\"";
    for (second, wrong) in [
        (sink("b", "mqtt://broker", id), true),
        (sink("b", "mqtt://Broker:1883/", id), true),
        (sink("b", "tcp://broker", "client_id = \"astro-relay-c\""), false),
        (sink("me", "mqtt://broker", ""), false),
        (sink("b", "mqtt://broker:1884", id), false),
        (sink("b", "mqtt://elsewhere", id), false),
        (sink("b", "mqtt://broker", ""), false),
    ] {
        let found = problems(&format!("{LEAST}\n{}{second}", sink("a", "mqtt://broker", id)));
        let found = found.join("\n");
        assert_eq!(
            found.contains("the same client_id at the same broker, me"),
            wrong,
            "{second}: {found}"
        );
        assert_eq!(found.is_empty(), !wrong, "{second}: {found}");
    }
    // Those of the connections for state and for commands.
    let first = sink("a", "mqtt://broker", "state = true\ncommands = true");
    for (second, wrong) in [
        (sink("a-state", "mqtt://broker", ""), true),
        (sink("b", "mqtt://broker", "client_id = \"astro-relay-a-commands\""), true),
        (sink("a-commands", "mqtt://elsewhere", ""), false),
        (sink("a-other", "mqtt://broker", ""), false),
    ] {
        let found = problems(&format!("{LEAST}\n{first}{second}")).join("\n");
        assert_eq!(found.contains("the same client_id"), wrong, "{second}: {found}");
    }
    // The names that they have by themselves.
    let named = sink("b", "mqtt://broker", "client_id = \"astro-relay-a\"");
    let found = problems(&format!("{LEAST}\n{}{named}", sink("a", "mqtt://broker", ""))).join("\n");
    assert!(found.contains("at the same broker, astro-relay-a"), "{found}");
}

/// Two relays with the first configuration of everybody have nothing else that tells them apart.
#[test]
fn what_is_described_to_home_assistant_is_known_by_the_room_of_the_token() {
    let sink = "[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://a\"\nhomeassistant = true\n";
    let token = |claims: &str| {
        use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
        format!("{}.{}.sum", BASE64.encode("{\"alg\":\"x\"}"), BASE64.encode(claims))
    };
    let own = "5b2e2007760aeb7729487dab";
    let claims = token(&format!("{{\"channel\":\"{own}\"}}"));
    for (more, token, room) in [
        ("", claims.clone(), Some(own)),
        ("room = \"0f0e0d0c0b0a090807060504\"", claims.clone(), Some("0f0e0d0c0b0a090807060504")),
        ("token_type = \"apikey\"", claims.clone(), None),
        ("", token("{\"channel\":\"main\"}"), None),
        ("", "no-jwt".to_owned(), None),
    ] {
        let channel =
            format!("[channels.main]\ntoken = {token:?}\ntopics = [\"channel.tips\"]\n{more}\n");
        let mut sources = sources(&format!("{channel}{sink}"));
        sources.resolve_secrets = true;
        let config = load(&sources).unwrap().config;
        let found = config.sinks["home"].feeds["main"].room.as_deref();
        assert_eq!(found, room, "{more} {token}");
        assert_eq!(config.room_of("main"), room, "{more} {token}");
    }
}

#[test]
fn home_assistant_is_served_by_one_sink_a_broker() {
    let sink = |name: &str, url: &str, more: &str| {
        format!("[sinks.{name}]\ntype = \"mqtt\"\nurl = \"mqtt://{url}\"\n{more}\n")
    };
    let on = "homeassistant = true";
    let text = |second: &str| format!("{LEAST}\n{}{second}", sink("home", "a", on));
    for (second, problem) in [
        (sink("loft", "a", on), "the same entities to the same broker"),
        (sink("loft", "b", on), ""),
        (sink("loft", "a", "homeassistant = false"), ""),
        (sink("loft", "b", "discovery_prefix = \"x\""), "only with homeassistant"),
        (sink("loft", "b", &format!("{on}\ndiscovery_prefix = \"a/#\"")), "beginning of a topic"),
    ] {
        let found = problems(&text(&second)).join("\n");
        assert_eq!(found.is_empty(), problem.is_empty(), "{found}");
        assert!(found.contains(problem), "{found}");
    }
    let config = load(&sources(&text(""))).unwrap().config;
    let home = &config.sinks["home"];
    assert!(home.state, "its entities show what is kept");
    let topics: Vec<_> = home.feeds.values().flat_map(|described| &described.topics).collect();
    assert_eq!(
        (home.feeds.keys().collect::<Vec<_>>(), topics),
        (vec![&"main".to_owned()], vec![&"channel.tips".to_owned()])
    );
    assert!(config.sinks["out"].feeds.is_empty());
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(pieces in prop::collection::vec(piece(), 0..8)) {
        let text = pieces.concat();
        let outcome = load(&sources(&text));
        everything(&outcome);
    }

    #[test]
    fn no_environment_makes_the_loader_panic(
        name in "(__|[A-Z]|CHANNELS|MAIN|TOKEN|SINKS|LOG|LEVEL|\\PC){0,6}",
        value in "\\PC*",
    ) {
        let mut sources = sources(LEAST);
        sources.env = env(&[(&format!("ASTRO_RELAY__{name}"), &value)]);
        sources.set = vec![(name, value)];
        everything(&load(&sources));
    }
}
