//! `astro-relay diagnose` as a process: secrets are planted wherever the program can meet them, and none may be
//! in its report.

use std::{fs, path::Path, process::Stdio, time::Duration};

use astro_sim::{Options, Sim, Token};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::process::Command;

use crate::support::{
    carry::within,
    daemon::{PROGRAM, Relay},
    wait::until,
};

const ROOM: &str = "5b2e2007760aeb7729487dab";

const PATIENCE: Duration = Duration::from_mins(1);

/// The report, with these arguments, in this environment.
async fn report(args: &[&str], config: &Path, environment: &[(&str, &str)]) -> String {
    let mut command = Command::new(PROGRAM);
    command
        .arg("diagnose")
        .args(args)
        .arg("--config")
        .arg(config)
        .envs(environment.iter().copied());
    command.current_dir(config.parent().unwrap()).stdin(Stdio::null()).kill_on_drop(true);
    let output = within("the report is written", command.output()).await.unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn has_none(report: &str, secrets: &[&str]) {
    for secret in secrets {
        assert!(!report.contains(secret), "{secret} in {report}");
    }
}

/// Lines as other programs and older versions may have written them.
fn log_of_others(secret: &str) -> String {
    let base64 = BASE64_STANDARD.encode(format!("me:{secret}"));
    format!(
        "connecting to mqtt://me:{secret}@broker:1883\n\
         GET /kappa/v2/x?apikey={secret}&limit=1 HTTP/1.1\n\
         Authorization: Bearer {secret}\n\
         authorization: Basic {base64}\n\
         {{\"level\":\"INFO\",\"fields\":{{\"password\":\"{secret}\"}}}}\n\
         {{\"message\":\"{{\\\"token\\\":\\\"{secret}\\\"}}\"}}\n\
         ADMIN_TOKEN={secret}\n\
         the end of the log\n"
    )
}

#[tokio::test]
async fn no_secret_of_a_running_relay_is_in_its_report() {
    let options =
        Options { tokens: vec![Token::owner("secret-canary", ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("pw"), "from-a-file\n").unwrap();
    // Closed ports: why a destination cannot be reached is in the status, the check and the log.
    let more = format!(
        "# password = \"in-a-comment\"\n\
         [sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:9\"\nuser = \"me\"\npassword_file = \"{}\"\n\
         [sinks.bus]\ntype = \"nats\"\nurl = \"nats://127.0.0.1:9\"\ntoken_env = \"PLANTED_BUS\"\n\
         [sinks.cache]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\npassword = \"in-the-file\"\n\
         [sinks.hook]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:9/services/in-the-path?key=in-the-query\"\n\
         secret = \"whsec_aW4tdGhlLWtleS1hbmQtbG9uZy1lbm91Z2gh\"\n",
        dir.path().join("pw").display()
    );
    let mut relay = Relay::new(&sim.url(), &sim.api_url(), "channel.tips", ROOM, &more);
    let environment = [
        ("PLANTED_BUS", "in-a-variable"),
        ("SOMEBODY_ELSES_PASSWORD", "of-another-program"),
        ("DATABASE_URL", "postgres://me:in-an-address@localhost/x"),
    ];
    relay.start_in(&environment);
    until("the relay has tried its sinks", PATIENCE, async || {
        let status = relay.get("/status").await?;
        (status.contains("confirmed") && status.contains("hook")).then_some(())
    })
    .await;
    let log = dir.path().join("log");
    fs::write(&log, relay.log() + &log_of_others("of-the-log")).unwrap();
    let args = ["--log", log.to_str().unwrap(), "--set", "http.admin_token=on-the-command-line"];
    let report = report(&args, &relay.config(), &environment).await;
    let secrets = [
        "secret-canary",
        "from-a-file",
        "in-a-variable",
        "in-a-comment",
        "in-the-file",
        "in-the-path",
        "in-the-query",
        "aW4tdGhl",
        "of-another-program",
        "in-an-address",
        "on-the-command-line",
        "of-the-log",
        &BASE64_STANDARD.encode("me:of-the-log"),
    ];
    has_none(&report, &secrets);
    // What it is for is there.
    for wanted in [
        &format!("version: {}", env!("CARGO_PKG_VERSION")),
        "configuration: can be used",
        "## check --connect: exit code 69",
        "sink home (mqtt): ",
        "## status --json: exit code ",
        "\"confirmed\"",
        "## journal status: exit code 0",
        "connected to the gateway",
        "the end of the log",
        "[removed 1]",
    ] {
        assert!(report.contains(wanted), "{wanted} is not in {report}");
    }
    relay.stop().await;
}

#[tokio::test]
async fn no_secret_of_a_broken_configuration_is_in_its_report() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("astro-relay.toml");
    fs::write(dir.path().join("token"), "from-a-file").unwrap();
    fs::write(dir.path().join("main"), "from-a-credential\n").unwrap();
    let text = format!(
        "[channels.main]\ntoken_file = \"{}\"\ntopics = [\"channel.tips\"]\n\
         [channels.other]\ntoken = \"in-the-file\ntoken_env = \"PLANTED_TOKEN\"\n\
         [channels.third]\ntoken_credential = \"main\"\n\
         [sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://me:in-the-address@broker\"\npasword = \"mis-spelt-key\"\n",
        dir.path().join("token").display()
    );
    fs::write(&config, text).unwrap();
    let log = dir.path().join("log");
    let secrets =
        ["from-a-file", "from-a-credential", "in-the-file", "in-a-variable", "in-the-address"];
    fs::write(&log, format!("{}, but the domain main", secrets.join(" and "))).unwrap();
    let credentials = dir.path().to_str().unwrap();
    let environment = [("PLANTED_TOKEN", "in-a-variable"), ("CREDENTIALS_DIRECTORY", credentials)];
    let args = ["--log", log.to_str().unwrap(), "--no-connect", "--url", "http://127.0.0.1:9"];
    let report = report(&args, &config, &environment).await;
    has_none(&report, &secrets);
    for wanted in [
        "configuration: cannot be used",
        "## check: exit code 78",
        "## status: exit code 69",
        // The name of a credential is none.
        ", but the domain main",
    ] {
        assert!(report.contains(wanted), "{wanted} is not in {report}");
    }
}

#[tokio::test]
async fn a_configuration_that_nobody_writes_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("pipe");
    mknodat(CWD, &config, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let log = dir.path().join("log");
    fs::write(&log, "password=of-the-log\nthe end of the log\n").unwrap();
    let args = ["--log", log.to_str().unwrap(), "--no-connect", "--url", "http://127.0.0.1:9"];
    let report = report(&args, &config, &[]).await;
    has_none(&report, &["of-the-log"]);
    for wanted in ["configuration: cannot be used", "does not answer", "the end of the log"] {
        assert!(report.contains(wanted), "{wanted} is not in {report}");
    }
}

#[tokio::test]
async fn a_report_fits_into_the_form_of_a_bug() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("astro-relay.toml");
    fs::write(&config, "[sinks.out]\ntype = \"stdout\"\n").unwrap();
    let log = dir.path().join("log");
    // As long as lines of a log hardly are.
    let lines: Vec<_> = (0..1000).map(|n| format!("line {n} {}", "ü ".repeat(1000))).collect();
    fs::write(&log, lines.join("\n")).unwrap();
    let args = ["--log", log.to_str().unwrap(), "--url", "http://127.0.0.1:9"];
    let report = report(&args, &config, &[]).await;
    assert!(report.len() < 64 * 1024 && report.contains("\nline 999 ü"), "{}", report.len());
    let missing = dir.path().join("missing");
    let args = ["--log", missing.to_str().unwrap(), "--url", "http://127.0.0.1:9"];
    let report = self::report(&args, &config, &[]).await;
    assert!(report.contains("missing cannot be read: No such file"), "{report}");
}
