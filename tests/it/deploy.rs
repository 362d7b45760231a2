//! What is shipped beside the program: the alerts, the dashboard and the unit agree with it.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use astro_relay::{
    base::metrics,
    config::Config,
    loading::{Sources, load},
    sink::{KINDS, Kind},
};

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Words of a text that are names of our metrics, without what a histogram adds.
fn named(text: &str) -> BTreeSet<String> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| word.starts_with("astro_relay_"))
        .map(|word| word.strip_suffix("_bucket").unwrap_or(word).to_owned())
        .collect()
}

/// The metrics that the program has, from the one file that names them.
fn known() -> BTreeSet<String> {
    let known = named(&read("src/base/metrics.rs"));
    assert!(known.contains(metrics::LAG_SECONDS) && known.len() > 15, "{known:?}");
    known
}

#[test]
fn alerts_and_dashboard_name_only_metrics_that_there_are() {
    let known = known();
    for file in [
        "deploy/prometheus/astro-relay.rules.yml",
        "deploy/prometheus/astro-relay.test.yml",
        "deploy/grafana/astro-relay.json",
    ] {
        let named = named(&read(file));
        assert!(!named.is_empty(), "{file}");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{file} names {unknown:?}");
    }
}

/// A member of a cluster shows a sink that another one drives as 0, too.
#[test]
fn a_sink_that_another_member_drives_does_not_count_as_down() {
    for file in ["deploy/prometheus/astro-relay.rules.yml", "deploy/grafana/astro-relay.json"] {
        let text = read(file);
        let line = text.lines().find(|line| line.contains("astro_relay_sink_up")).unwrap();
        let driven = "== 0 unless on (job, instance, sink) astro_relay_cluster_drives == 0";
        assert!(line.contains(driven), "{file}: {line}");
    }
}

/// One that holds a single scrape shows no change.
#[test]
fn the_windows_of_the_dashboard_hold_several_scrapes() {
    let dashboard = read("deploy/grafana/astro-relay.json");
    let windows: BTreeSet<_> =
        dashboard.split("}[").skip(1).filter_map(|rest| rest.split(']').next()).collect();
    assert_eq!(windows, BTreeSet::from(["$__rate_interval", "24h", "5m"]));
}

#[test]
fn the_dashboard_is_one() {
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("deploy/grafana/astro-relay.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert!(ids.len() == panels.len() && panels.len() > 10);
    let asked =
        |panel: &serde_json::Value| !panel["targets"][0]["expr"].as_str().unwrap().is_empty();
    assert!(panels.iter().all(asked));
}

/// The configuration of that text, as on a machine that has its secrets.
fn config(text: String) -> Config {
    let sources = Sources { text: Some(text), resolve_secrets: false, ..Sources::default() };
    load(&sources).unwrap_or_else(|error| panic!("{error}")).config
}

#[test]
fn the_configuration_at_the_head_of_the_compose_file_loads() {
    let compose = read("deploy/compose.yaml");
    let lines: Vec<_> = compose.lines().filter_map(|line| line.strip_prefix("#     ")).collect();
    let config = config(lines.join("\n"));
    assert!(!config.channels["main"].topics.is_empty());
    assert_eq!(config.sinks["home"].settings["url"], "mqtt://broker:1883");
}

#[test]
fn the_members_of_the_cluster_in_containers_ask_the_simulated_rest_api() {
    let compose = read("deploy/cluster/compose.yaml");
    let rest = compose.split_once("\n  relay:\n    content: |\n").unwrap().1;
    let lines: Vec<_> = rest.lines().map_while(|line| line.strip_prefix("      ")).collect();
    let config = config(lines.join("\n"));
    assert_eq!(config.astro.url, "ws://astro:8080");
    assert_eq!(config.astro.api_url, "http://astro:8080/kappa/v2");
    // The image's health check asks a relay.
    let astro = compose.split_once("\n  astro:\n").unwrap().1.split_once("\n  relay-1:").unwrap().0;
    assert!(astro.contains("healthcheck: { disable: true }"), "{astro}");
}

/// The base image's own init would send KILL a fixed time after TERM, however long the relay needs.
#[test]
fn the_relay_of_the_add_on_gets_the_signals_of_docker_itself() {
    let dockerfile = read("deploy/home-assistant-addon/Dockerfile");
    let entry = "ENTRYPOINT [\"/bin/sh\", \"/run.sh\"]";
    assert!(dockerfile.lines().any(|line| line == entry), "{dockerfile}");
    let addon = read("deploy/home-assistant-addon/config.yaml");
    for wanted in ["init: true", "timeout: 30"] {
        assert!(addon.lines().any(|line| line == wanted), "{wanted}");
    }
}

#[test]
fn every_page_names_the_directory_in_which_the_secrets_are() {
    let manual = Command::new(env!("CARGO_BIN_EXE_astro-relay")).arg("man").output().unwrap();
    let manual = String::from_utf8(manual.stdout).unwrap().replace("\\-", "-");
    assert!(!manual.contains("/etc/astro-relay/credentials"), "{manual}");
    let files = ["docs/install.md", "docs/operating.md", "README.md"];
    let form = ".github/ISSUE_TEMPLATE/problem.yml";
    let pages = files.into_iter().chain([form]).map(|file| (file, read(file)));
    for (file, page) in pages.chain([("the manual page", manual)]) {
        let named: Vec<_> = page.split("CREDENTIALS_DIRECTORY=").skip(1).collect();
        assert!(!named.is_empty(), "{file}");
        for rest in named {
            assert!(rest.starts_with("/etc/astro-relay "), "{file}: {rest:.50}");
        }
    }
}

#[test]
fn what_goes_into_the_package_is_there() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    for asset in package["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        let made = source.starts_with("target/");
        let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(source.trim_end_matches("/*"));
        assert!(made || place.exists(), "{source}");
    }
    for script in ["deploy/deb/build", "deploy/deb/postrm", "deploy/deb/changelog"] {
        assert!(!read(script).is_empty());
    }
    // build.rs packs the program's relocations, which no C library before this one reads.
    assert!(package["depends"].as_str().unwrap().contains("libc6 (>= 2.36)"));
    assert!(read("build.rs").contains("SINCE: (u32, u32) = (2, 36)"));
    // cargo-deb fills in what stops and starts the unit; without the mark it would be left out.
    assert!(read("deploy/deb/postrm").contains("#DEBHELPER#"));
}

/// What tests/systemd.sh proves by hand must not be undone unseen.
#[test]
fn the_unit_is_as_it_was_proved() {
    let unit = read("systemd/astro-relay.service");
    for line in [
        "Type=notify",
        "WatchdogSec=30",
        "WatchdogSignal=SIGKILL",
        "DynamicUser=yes",
        "RestartPreventExitStatus=64 78",
        "ExecReload=/bin/sh -c 'kill -HUP $MAINPID'",
    ] {
        assert!(unit.lines().any(|other| other == line), "{line}");
    }
    // Its exit code would not prevent a restart: a wrong configuration would be tried for ever.
    assert!(!unit.lines().any(|line| line.starts_with("ExecStartPre")));
}

/// What the release workflow begins with.
#[test]
fn a_release_needs_one_version_everywhere_and_a_section_of_the_changelog() {
    let dir = tempfile::tempdir().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    for file in [
        "deploy/release-notes",
        "Cargo.toml",
        "deploy/home-assistant-addon/config.yaml",
        "deploy/deb/changelog",
        "repository.yaml",
    ] {
        let copy = dir.path().join(file);
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::write(copy, read(file)).unwrap();
    }
    let changelog = dir.path().join("CHANGELOG.md");
    let notes = |args: &[&str]| {
        let script = dir.path().join("deploy/release-notes");
        let output = Command::new("sh").arg(script).args(args).output().unwrap();
        (
            output.status.success(),
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap(),
        )
    };
    fs::write(&changelog, format!("# Changes\n\n## Unreleased\n\n- a\n\n## {version} - today\n"))
        .unwrap();
    assert_eq!(
        notes(&[version]).1,
        format!("deploy/release-notes: CHANGELOG.md says nothing about {version}\n")
    );
    fs::write(
        &changelog,
        format!("## Unreleased\n- a\n## [{version}] - today\n\n- b\n## 0.0.1\n- c\n"),
    )
    .unwrap();
    assert_eq!(notes(&[version]), (true, "\n- b\n".into()));
    assert_eq!(notes(&[version, "astro-relay/astro-relay"]), (true, "\n- b\n".into()));
    assert!(notes(&[version, "somebody/else"]).1.contains("repository.yaml does not name"));
    let (fine, why) = notes(&["99.0.0"]);
    assert!(!fine && why.contains("Cargo.toml does not name 99.0.0"), "{why}");
    let addon = dir.path().join("deploy/home-assistant-addon/config.yaml");
    fs::write(&addon, read("deploy/home-assistant-addon/config.yaml").replace(version, "0.0.9"))
        .unwrap();
    assert!(notes(&[version]).1.contains("config.yaml does not name"));
}

/// A script of the repository with these arguments: whether it went well, and what it wrote.
fn run(script: &str, args: &[&str]) -> (bool, String) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(script).args(args).output().unwrap();
    (output.status.success(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

/// And no `astro-relay.toml`: unpacked where an earlier version runs, it would replace its configuration.
#[test]
fn an_archive_has_the_program_and_its_licences() {
    let dir = tempfile::tempdir().unwrap();
    let (program, archive) = (dir.path().join("astro-relay"), dir.path().join("new/it.tar.gz"));
    fs::write(&program, "the program").unwrap();
    let (fine, why) =
        run("deploy/archive", &[program.to_str().unwrap(), archive.to_str().unwrap()]);
    assert!(fine, "{why}");
    let listed = Command::new("tar").arg("-tzf").arg(&archive).output().unwrap();
    assert_eq!(
        String::from_utf8(listed.stdout).unwrap(),
        "astro-relay\nLICENSE-MIT\nLICENSE-APACHE\nastro-relay.reference.toml\nastro-relay.service\n"
    );
}

#[test]
fn a_static_program_is_not_begun_for_another_c_library() {
    let (fine, why) = run("deploy/static", &["x86_64-unknown-linux-gnu", "unused.tar.gz"]);
    assert!(!fine && why.contains("x86_64-unknown-linux-gnu is no target of musl"), "{why}");
}

/// Who has no compiler downloads what this page names, and the workflow publishes.
#[test]
fn the_page_on_installing_names_the_files_of_a_release() {
    let version = env!("CARGO_PKG_VERSION");
    let (page, workflow) = (read("docs/install.md"), read(".github/workflows/release.yml"));
    for name in ["$ARCH.tar.gz", "$ARCH-static.tar.gz", "$ARCH.cdx.json"] {
        assert!(workflow.contains(&format!("dist/astro-relay-$VERSION-linux-{name}")), "{name}");
        let file = name.replace("$ARCH", "amd64");
        assert!(page.contains(&format!("| `astro-relay-{version}-linux-{file}` |")), "{file}");
    }
    // As cargo-deb names it.
    assert!(page.contains(&format!("| `astro-relay_{version}-1_amd64.deb` |")));
    assert!(workflow.contains("mv ../SHA256SUMS .") && page.contains("| `SHA256SUMS` |"));
    let versions: Vec<_> = page.split("v=").skip(1).map(|rest| rest.split(' ').next()).collect();
    assert_eq!(versions, [Some(version); 2]);
    let image = read("repository.yaml")
        .lines()
        .find_map(|line| Some(line.strip_prefix("url: https://github.com/")?.to_owned()))
        .unwrap();
    assert!(page.contains(&format!("ghcr.io/{image}:{version}")), "{image}");
    // The last job downloads all that was uploaded, and a record of a build is no archive.
    assert!(workflow.contains("DOCKER_BUILD_RECORD_UPLOAD: \"false\""));
}

/// A service that runs already, such as one that is enabled and was not configured, would not notice a start.
#[test]
fn the_steps_of_an_installation_end_with_a_restart() {
    let page = read("docs/install.md");
    assert!(page.contains("sudo systemctl restart astro-relay\nastro-relay status\n```"));
    for text in [page, read("src/app/cli/setup/page.js")] {
        assert!(text.contains("systemctl restart astro-relay"));
        for other in ["systemctl start", "enable --now"] {
            assert!(!text.contains(other), "{other}");
        }
    }
}

/// `setup` writes each secret into a file that only root can read; the service gets them as credentials.
#[test]
fn the_page_on_installing_hands_every_secret_over_and_no_certificate() {
    let page = read("docs/install.md");
    let script = |before: &str| {
        let rest = page.split_once(before).unwrap().1;
        rest.split_once('\'').unwrap().0.to_owned()
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("astro-relay.toml");
    let sed = |args: &[&str], text: &str| {
        fs::write(&file, text).unwrap();
        let output = Command::new("sed").args(args).arg(&file).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let of_kind = |kind: &'static Kind| kind.secrets.iter().map(move |key| (kind.name, *key));
    let secrets = KINDS.iter().flat_map(of_kind);
    let secrets: Vec<_> = [("main", "token")].into_iter().chain(secrets).collect();
    let certificates = "ca_file = \"/etc/astro-relay/ca.pem\"\n\
        client_cert_file = \"/etc/astro-relay/cert.pem\"\n\
        client_key_file = \"/etc/astro-relay/key.pem\"\n";
    let lines = |line: fn(&str, &str) -> String| -> String {
        secrets.iter().map(|(name, key)| line(name, key)).collect()
    };
    // What `init` writes above a token's file is not true of a credential.
    let comment = "# The file is read again on every connection: a new token needs no restart.\n";
    assert!(read("src/app/cli/init/plan.rs").contains(comment.trim_end()));
    let written = lines(|name, key| format!("{key}_file = \"/etc/astro-relay/{name}.{key}\"\n"));
    let wanted = lines(|name, key| format!("{key}_credential = \"{name}.{key}\"\n"));
    let handed =
        lines(|name, key| format!("LoadCredential={name}.{key}:/etc/astro-relay/{name}.{key}\n"));
    let named =
        sed(&["-E", &script("sed -i -E '")], &(comment.to_owned() + &written + certificates));
    assert_eq!(named, wanted + certificates);
    assert_eq!(sed(&["-n", "-E", &script("sed -n -E '")], &named), handed);
}
