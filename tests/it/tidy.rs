//! The house rules that no compiler knows: which room may look into which, and what the documents owe.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every source file, with its path from `src`.
fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let src = root().join("src");
    let mut found = Vec::new();
    walk(&src, &mut found);
    found
        .into_iter()
        .map(|path| {
            let text = fs::read_to_string(&path).unwrap();
            (path.strip_prefix(&src).unwrap().display().to_string(), text)
        })
        .collect()
}

/// The code of a file: without comments, and without the tests at its foot.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn what_decides_does_no_input_or_output() {
    let pure = [
        "astro/session.rs", "astro/wire.rs", "gateway/seen.rs", "base/backoff.rs", "base/event.rs",
        "delivery/route.rs", "command/parse.rs", "command/memory.rs",
    ];
    for (file, text) in sources() {
        let inside = pure.contains(&&*file)
            || ["astro/session/", "delivery/route/"].iter().any(|dir| file.starts_with(dir));
        if inside {
            for word in
                ["tokio::net", "tokio::fs", "std::fs", "std::net", "spawn(", "reqwest", ".await"]
            {
                assert!(!code(&text).contains(word), "src/{file} has {word}");
            }
        }
    }
}

/// What others wrote must not steer a terminal, and nobody who logs may wait for a reader: so there is
/// one way to standard output and one to standard error for each of those.
#[test]
fn only_three_files_write_to_a_terminal() {
    let ways = ["app/cli/out.rs", "base/log/output.rs", "sink/stdout.rs"];
    let mut wrong = Vec::new();
    for (file, text) in sources() {
        if ways.contains(&&*file) {
            continue;
        }
        // What it is, a terminal or a file, may be asked everywhere.
        let code = code(&text)
            .replace("io::stderr().is_terminal()", "")
            .replace("io::stdout().is_terminal()", "")
            .replace("fstat(std::io::stderr())", "");
        for word in [
            "print!(", "println!(", "dbg!(", "io::stdout()", "io::stderr()", "/dev/std", "/dev/tty",
        ] {
            if code.contains(word) {
                wrong.push(format!("src/{file} has {word}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    for (file, text) in sources() {
        let tests = file.ends_with("tests.rs");
        assert!(tests || text.starts_with("//!"), "src/{file} opens without `//!`");
    }
}

#[test]
fn there_is_a_reason_for_each_dependency() {
    let manifest: toml::Table =
        fs::read_to_string(root().join("Cargo.toml")).unwrap().parse().unwrap();
    let reasons = fs::read_to_string(root().join("docs/dependencies.md")).unwrap();
    let mut missing = BTreeSet::new();
    for (name, dependency) in manifest["dependencies"].as_table().unwrap() {
        let package =
            dependency.get("package").and_then(|package| package.as_str()).unwrap_or(name);
        if !reasons.contains(&format!("`{package}`")) {
            missing.insert(package.to_owned());
        }
    }
    assert!(missing.is_empty(), "docs/dependencies.md says nothing of {missing:?}");
}

#[test]
fn only_one_file_names_the_mqtt_library() {
    let names = ["rumqttc_v4", "rumqttc_v5"];
    let named: Vec<_> = sources()
        .into_iter()
        .filter(|(_, text)| names.iter().any(|name| text.contains(name)))
        .map(|(file, _)| file)
        .collect();
    assert_eq!(named, ["sink/mqtt/library.rs"]);
}

#[test]
fn no_second_tls_and_nothing_unmaintained_is_in_the_tree() {
    let lock: toml::Table = fs::read_to_string(root().join("Cargo.lock")).unwrap().parse().unwrap();
    let banned = [
        "openssl", "openssl-sys", "native-tls", "aws-lc-rs", "aws-lc-sys", "backoff", "instant",
        "rumqttc",
    ];
    for package in lock["package"].as_array().unwrap() {
        let name = package["name"].as_str().unwrap();
        assert!(!banned.contains(&name), "{name} is in Cargo.lock");
    }
}
