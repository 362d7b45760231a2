//! Secrets that are not there, hang, or were pasted into the wrong place, and what is said of them.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use astro_sim::{End, Options, Sim, Token};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tokio::{process::Command, time::Instant};

use crate::support::{
    carry::within,
    daemon::{PROGRAM, Relay},
    wait::until,
};

const ROOM: &str = "5b2e2007760aeb7729487dab";

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Hanging files: more than processors, blocking threads and readers together.
const HANGING: usize = 120;

/// A pipe into which nobody writes, as a mount that hangs: whoever opens it to read, waits.
fn pipe(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

async fn check(file: &Path, more: &[&str]) -> Output {
    let mut command = Command::new(PROGRAM);
    command.arg("check").args(more).arg("--config").arg(file);
    command.stdin(Stdio::null()).kill_on_drop(true);
    within("the check ends", command.output()).await.unwrap()
}

#[tokio::test]
async fn hanging_secret_files_stop_neither_the_gateway_nor_the_endpoint() {
    let options =
        Options { tokens: vec![Token::owner("secret-canary", ROOM)], ..Options::default() };
    let sim = Sim::start(([127, 0, 0, 1], 0).into(), options).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut more = String::new();
    for n in 0..HANGING {
        let file = dir.path().join(format!("pipe{n}"));
        pipe(&file);
        write!(
            more,
            "[channels.a{n}]\nroom = \"{n:024}\"\ntoken_file = {file:?}\n\
             topics = [\"channel.session.update\"]\n"
        )
        .unwrap();
    }
    let file = dir.path().join("pipe0");
    for n in 0..4 {
        write!(
            more,
            "[sinks.hook{n}]\ntype = \"webhook\"\nurl = \"http://127.0.0.1:9/\"\n\
             bearer_token_file = {file:?}\nallow_addresses = [\"127.0.0.1\"]\n\
             [sinks.redis{n}]\ntype = \"redis\"\nurl = \"redis://127.0.0.1:9\"\n\
             password_file = {file:?}\n\
             [sinks.mqtt{n}]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1:9\"\nclient_id = \"c{n}\"\n\
             user = \"u\"\npassword_file = {file:?}\n\
             [sinks.nats{n}]\ntype = \"nats\"\nurl = \"nats://127.0.0.1:9\"\ntoken_file = {file:?}\n"
        )
        .unwrap();
    }
    let mut relay = Relay::new(&sim.url(), &sim.api_url(), "channel.tips", ROOM, &more);
    relay.start();
    until("the good channel stands", PATIENCE, async || confirmed(&relay).await).await;
    // Every file is asked for again.
    sim.end(None, End::Reset);
    until("the good channel stands again", PATIENCE, async || {
        (sim.stats().opened >= 2).then_some(())?;
        confirmed(&relay).await
    })
    .await;
    for _ in 0..100 {
        let began = Instant::now();
        assert!(relay.get("/livez").await.unwrap().starts_with("HTTP/1.1 200"));
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    until("the file is named", PATIENCE, async || {
        let file = dir.path().join("pipe0").display().to_string();
        let log = relay.log();
        let mut lines = log.lines().filter(|line| line.contains(&file));
        lines.any(|line| line.contains("does not answer")).then_some(())
    })
    .await;
    relay.stop().await;
}

async fn confirmed(relay: &Relay) -> Option<()> {
    let status = relay.get("/status").await?;
    status.contains("confirmed").then_some(())
}

/// A configuration with one channel, whose token is given by `token`.
fn one_channel(dir: &Path, token: &str) -> std::path::PathBuf {
    let file = dir.join("astro-relay.toml");
    let text = format!(
        "[channels.main]\n{token}\ntopics = [\"channel.tips\"]\n[sinks.out]\ntype = \"stdout\"\n"
    );
    fs::write(&file, text).unwrap();
    file
}

fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|out| String::from_utf8_lossy(out).into_owned()).concat()
}

#[tokio::test]
async fn check_names_a_file_that_does_not_answer_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    pipe(&path);
    let file = one_channel(dir.path(), &format!("token_file = {path:?}"));
    let began = Instant::now();
    let output = check(&file, &[]).await;
    assert!(!output.status.success() && began.elapsed() < Duration::from_secs(15));
    let said = said(&output);
    assert!(said.contains(path.to_str().unwrap()) && said.contains("does not answer"), "{said}");
}

#[tokio::test]
async fn check_says_what_is_wrong_with_what_was_pasted() {
    use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let jwt = format!("{}.{}.c2ln", part(r#"{"alg":"HS256"}"#), part(r#"{"exp":4102444800}"#));
    let old = format!("{}.{}.c2ln", part("{}"), part(r#"{"exp":1700000000}"#));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    for (content, kind, word) in [
        (jwt.clone(), "jwt", ""),
        (format!("\u{feff}\"Bearer {jwt}\"\r\n\r\n"), "jwt", ""),
        (format!("\u{a0}{jwt}\u{200b}\n"), "jwt", ""),
        ("k3y-canary".to_owned(), "jwt", "is no JWT"),
        (jwt.replace('.', ""), "jwt", "is no JWT"),
        (jwt.replacen('.', ".x", 1), "jwt", "is no JWT"),
        (jwt.clone(), "oauth2", "is a JWT"),
        (jwt.clone(), "apikey", "is a JWT"),
        (old, "jwt", "expired at 2023"),
        (format!("{jwt}\n{jwt}\n"), "jwt", "inside"),
        (format!("SE_TOKEN={jwt}"), "jwt", "NAME=token"),
        ("\n \n".to_owned(), "jwt", "is empty"),
    ] {
        fs::write(&path, &content).unwrap();
        let token = format!("token_file = {path:?}\ntoken_type = {kind:?}");
        let said = said(&check(&one_channel(dir.path(), &token), &[]).await);
        let clean = !said.contains("this token") && !said.contains("error:");
        assert!(if word.is_empty() { clean } else { said.contains(word) }, "{content:?}: {said}");
        let pasted = content.trim();
        let shown = pasted.len() > 8 && said.contains(pasted) || said.contains(&jwt);
        assert!(!shown, "{said}");
    }
}

#[tokio::test]
async fn a_secret_in_a_wrong_place_is_never_repeated() {
    const CANARY: &str = "eyJhbGciOiJIUzI1NiJ9.eyJjYW5hcnkiOjF9.Y2FuYXJ5";
    let dir = tempfile::tempdir().unwrap();
    let rest = "topics = [\"channel.tips\"]";
    for text in [
        format!("[channels.main]\ntoken_file = {CANARY:?}\n{rest}"),
        format!("[channels.main]\ntoken_env = {CANARY:?}\n{rest}"),
        format!("[channels.main]\ntoken_credential = {CANARY:?}\n{rest}"),
        format!("[channels.main]\ntoken_type = {CANARY:?}\ntoken_env = \"T\"\n{rest}"),
        format!("[channels.main]\ntoken = \"k\"\nroom = {CANARY:?}\n{rest}"),
        format!("[channels.main]\ntoken = \"k\"\ntopics = [{CANARY:?}]"),
        format!("[channels.main]\ntoken = {CANARY}\n{rest}"),
        format!("[channels.main]\ntoken {CANARY}\n{rest}"),
        format!("[channels.{CANARY}]\ntoken = \"k\"\n{rest}"),
        format!("[channels.main]\n{CANARY:?} = 1\n{rest}"),
        format!("[{CANARY:?}]\ntoken = 1"),
        format!("[astro]\nurl = {CANARY:?}"),
        format!("[astro]\nurl = \"wss://me:{CANARY}@127.0.0.1:9\""),
        format!("[astro]\napi_url = \"https://127.0.0.1/{CANARY}\"\nca_file = {CANARY:?}"),
        format!("[astro]\nca_file = \"/etc/{CANARY}\""),
        format!("[astro]\nproxy = \"socks5://{CANARY}@127.0.0.1\"\nproxy_file = \"x\""),
        format!("[astro]\nconnect_timeout = {CANARY:?}"),
        format!("[http]\nlisten = {CANARY:?}\nadmin_token_env = {CANARY:?}"),
        format!("[log]\nlevel = {CANARY:?}"),
        format!("[sinks.home]\ntype = {CANARY:?}"),
        format!("[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://me:{CANARY}@127.0.0.1\""),
        format!("[sinks.home]\ntype = \"mqtt\"\nurl = {CANARY:?}"),
        format!("[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://127.0.0.1\"\nversion = {CANARY:?}"),
        format!("[sinks.home]\ntype = \"nats\"\nurl = \"nats://{CANARY}@127.0.0.1\""),
        format!(
            "[sinks.home]\ntype = \"nats\"\nurl = \"nats://127.0.0.1\"\nnkey_seed_env = {CANARY:?}"
        ),
        format!("[sinks.home]\ntype = \"redis\"\nurl = \"redis://:{CANARY}@127.0.0.1\""),
        format!("[sinks.home]\ntype = \"redis\"\nurl = {CANARY:?}"),
        format!(
            "[sinks.home]\ntype = \"webhook\"\nurl = \"https://{CANARY}\"\nsecret = {CANARY:?}"
        ),
        format!("[sinks.home]\ntype = \"webhook\"\nurl_file = {CANARY:?}\nmethod = {CANARY:?}"),
        format!("[sinks.home]\ntype = \"stdout\"\nchannels = [{CANARY:?}]\nmax_age = {CANARY:?}"),
    ] {
        let file = dir.path().join("astro-relay.toml");
        fs::write(&file, &text).unwrap();
        let said = said(&check(&file, &[]).await);
        assert!(!said.contains(CANARY), "{text}\n{said}");
        assert!(!said.contains("eyJjYW5hcnkiOjF9"), "{text}\n{said}");
    }
    let file = one_channel(dir.path(), "token = \"k\"");
    for argument in [CANARY.to_owned(), format!("{CANARY}=x"), format!("channels.main.{CANARY}=x")]
    {
        let said = said(&check(&file, &["--set", &argument]).await);
        assert!(!said.contains("eyJjYW5hcnkiOjF9"), "{argument}\n{said}");
    }
    let said = said(&check(&file, &[CANARY]).await);
    assert!(!said.contains("eyJjYW5hcnkiOjF9"), "{said}");
}
