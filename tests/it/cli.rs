//! The program as a service manager and a user meet it: exit codes, signals, where it looks for its
//! configuration.

use std::{
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use astro_sim::{Options, Sim};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::support::{terminal::Pty, wait::until};

/// How long the program may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_astro-relay"));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

async fn output(command: &mut Command) -> Output {
    tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap()
}

fn write_config(dir: &Path, sim: &Sim) -> std::path::PathBuf {
    let config = json!({
        "astro": { "url": sim.url(), "api_url": sim.api_url() },
        "journal": { "dir": dir.join("journal") },
        "http": { "listen": "" },
        "channels": { "main": { "token": "t", "topics": ["channel.tips"] } },
        "sinks": { "out": { "type": "stdout" } },
    });
    let file = dir.join("astro-relay.toml");
    std::fs::write(&file, toml::to_string(&config).unwrap()).unwrap();
    file
}

async fn sim() -> Sim {
    Sim::start(([127, 0, 0, 1], 0).into(), Options::default()).await.unwrap()
}

async fn subscribed(sim: &Sim) {
    until("it is subscribed", PATIENCE, async || {
        let open = sim.connections();
        open.iter().any(|c| c.ended.is_none() && !c.subscriptions.is_empty()).then_some(())
    })
    .await;
}

fn signal(child: &Child, signal: rustix::process::Signal) {
    let id = i32::try_from(child.id().unwrap()).unwrap();
    let id = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(id, signal).unwrap();
}

#[tokio::test]
async fn exit_codes_are_those_of_sysexits() {
    let dir = tempfile::tempdir().unwrap();
    let bad = dir.path().join("bad.toml");
    std::fs::write(&bad, "[sinks.x]\ntype = \"carrier pigeon\"\n").unwrap();
    let bad = bad.display().to_string();
    let absent = dir.path().join("absent.toml").display().to_string();
    let cases: [(&[&str], i32, &str); 6] = [
        (&["run", "--config", &bad], 78, "one of mqtt"),
        (&["check", "--config", &bad], 78, "cannot be used"),
        (&["run", "--config", &absent], 78, "absent.toml"),
        (&["fly"], 64, "unrecognized subcommand"),
        (&["run", "--set", "nonsense"], 64, "KEY=VALUE"),
        (&["--version"], 0, ""),
    ];
    for (arguments, code, said) in cases {
        let output = output(program().args(arguments)).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[tokio::test]
async fn a_second_relay_on_the_same_journal_is_told_who_has_it() {
    let (dir, sim) = (tempfile::tempdir().unwrap(), sim().await);
    let file = write_config(dir.path(), &sim);
    let first = program().arg("run").arg("--config").arg(&file).spawn().unwrap();
    subscribed(&sim).await;
    let second = output(program().arg("run").arg("--config").arg(&file)).await;
    assert_eq!(second.status.code(), Some(75));
    let stderr = String::from_utf8_lossy(&second.stderr);
    assert!(stderr.contains(&first.id().unwrap().to_string()), "{stderr}");
}

#[tokio::test]
async fn a_term_or_an_interrupt_ends_it_in_order() {
    use rustix::process::Signal;
    for stop in [Signal::TERM, Signal::INT] {
        let (dir, sim) = (tempfile::tempdir().unwrap(), sim().await);
        let file = write_config(dir.path(), &sim);
        let child = program().arg("run").arg("--config").arg(&file).spawn().unwrap();
        subscribed(&sim).await;
        sim.publish("channel.tips", "", r#"{"n":1}"#);
        signal(&child, stop);
        let output =
            tokio::time::timeout(PATIENCE, child.wait_with_output()).await.unwrap().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        // Closed in order: the write-ahead log has been moved into the database.
        let log = std::fs::metadata(dir.path().join("journal/journal.db-wal"));
        assert_eq!(log.map_or(0, |log| log.len()), 0, "{stderr}");
    }
}

#[tokio::test]
async fn the_configuration_of_the_working_directory_is_found() {
    let (dir, sim) = (tempfile::tempdir().unwrap(), sim().await);
    write_config(dir.path(), &sim);
    let output = output(program().arg("check").current_dir(dir.path())).await;
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{stdout}");
    assert!(stdout.contains("1 channel, 1 subscription, 1 sink: out (stdout)"), "{stdout}");
}

#[tokio::test]
async fn events_come_out_as_json_lines_where_nobody_looks_on() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let (dir, sim) = (tempfile::tempdir().unwrap(), sim().await);
    let file = write_config(dir.path(), &sim);
    let mut child = program().arg("run").arg("--config").arg(&file).spawn().unwrap();
    subscribed(&sim).await;
    let id = sim.publish("channel.tips", "", r#"{"n":1}"#);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.unwrap().unwrap().unwrap();
    let message: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(message["id"], id);
    assert_eq!(message["data"], json!({ "n": 1 }));
}

/// `init` on a terminal, at its question for the token.
async fn asked_for_the_token(dir: &Path) -> (Child, Pty) {
    let pty = Pty::open();
    let child = program()
        .args(["init", "--channel", "main", "--room", "5b2e2007760aeb7729487dab"])
        .args(["--topic", "channel.tips", "--sink", "stdout"])
        .current_dir(dir)
        .env("HOME", dir)
        .env_remove("ASTRO_RELAY_TOKEN")
        .stdin(pty.theirs())
        .spawn()
        .unwrap();
    until("what is typed is hidden", PATIENCE, async || (!pty.echoes()).then_some(())).await;
    (child, pty)
}

#[tokio::test]
async fn a_signal_at_a_hidden_question_gives_the_terminal_back() {
    use rustix::process::Signal;
    for (stop, code) in [(Signal::INT, 130), (Signal::TERM, 143)] {
        let dir = tempfile::tempdir().unwrap();
        let (mut child, pty) = asked_for_the_token(dir.path()).await;
        signal(&child, stop);
        let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
        assert_eq!(status.code(), Some(code));
        assert!(pty.echoes(), "what is typed is shown again");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_file_below_the_home_directory_is_found_on_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("x.jwt"), "e30.e30.c2ln\n").unwrap();
    let (mut child, pty) = asked_for_the_token(dir.path()).await;
    pty.type_in("~/x.jwt\n");
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert!(status.success() && pty.echoes(), "{status}");
    let text = std::fs::read_to_string(dir.path().join("astro-relay.toml")).unwrap();
    assert!(text.contains(&format!("token_file = \"{}/x.jwt\"", dir.path().display())), "{text}");
}

async fn printed(args: &[&str]) -> String {
    let output = output(program().args(args)).await;
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_program_knows_its_reference_topics_and_manual() {
    let reference = include_str!("../../config/astro-relay.toml");
    assert_eq!(printed(&["config", "--reference"]).await, reference);
    let topics = printed(&["topics"]).await;
    for topic in ["TOPIC ", "channel.tips ", "relay.gap "] {
        assert!(topics.lines().any(|line| line.starts_with(topic)), "{topic} in {topics}");
    }
    let tips = printed(&["topics", "channel.tips"]).await;
    assert!(
        tips.contains("scope of the token: tips:read") && tips.contains("\"donation\""),
        "{tips}"
    );
    for line in printed(&["topics", "channel.tips", "--json"]).await.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap();
    }
    let misspelt = output(program().args(["topics", "channel.tip"])).await;
    assert_eq!(misspelt.status.code(), Some(64));
    let said = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    assert!(said.contains("did you mean channel.tips?"), "{said}");
    let manual = printed(&["man"]).await;
    for section in ["FILES", "ENVIRONMENT", "EXIT STATUS", "SIGNALS", "EXAMPLES"] {
        assert!(manual.contains(&format!(".SH {section}\n")), "{section}");
    }
    assert!(!manual.contains("(1)") || !manual.contains("run(1)"), "no page that there is not");
}

#[tokio::test]
async fn a_shell_completes_what_the_configuration_names() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    let file = write_config(dir.path(), &sim).display().to_string();
    assert_eq!(printed(&["complete", "sinks", "-c", &file]).await, "out\n");
    assert_eq!(printed(&["complete", "channels", "-c", &file]).await, "main\n");
    assert!(printed(&["complete", "topics", "-c", &file]).await.contains("channel.tips\n"));
    // One that cannot be read completes nothing, and says nothing.
    assert_eq!(printed(&["complete", "sinks", "-c", "/nowhere"]).await, "");
}

/// As bash calls it: the words of the line, which of them is completed, and the one before.
#[tokio::test]
async fn bash_completes_the_second_word_and_those_behind_it() {
    let (sim, dir) = (sim().await, tempfile::tempdir().unwrap());
    write_config(dir.path(), &sim);
    let script = dir.path().join("completion.bash");
    std::fs::write(&script, printed(&["completions", "bash"]).await).unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_astro-relay")).parent().unwrap().display();
    for (words, at, before, wanted) in [
        ("retry ''", 2, "retry", "out"),
        ("dead-letters ''", 2, "dead-letters", "list"),
        ("dead-letters list --sink ''", 4, "--sink", "out"),
    ] {
        let line = format!(
            "PATH={programs}:$PATH; source ./completion.bash; COMP_WORDS=(astro-relay {words}); COMP_CWORD={at}; \
             _astro__relay astro-relay '' {before}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        );
        let mut bash = Command::new("bash");
        bash.args(["--norc", "-c", &line]).current_dir(dir.path());
        let output = output(&mut bash).await;
        let completed = String::from_utf8_lossy(&output.stdout);
        assert!(completed.lines().any(|word| word == wanted), "{words}: {output:?}");
    }
}
