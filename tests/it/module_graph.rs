//! The shape of the source, computed from its imports: rooms import only rooms below them, and no files
//! import one another in a circle.
//!
//! What counts is what the code of a file names by a path that begins with `crate`, `super` or `self`,
//! without its tests. A file under `x/` is part of `x.rs`: it may use what `x.rs` has, and that is no
//! circle; two files of which neither contains the other are not allowed to need each other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

/// The rooms, lowest first. `src/lib.rs` says what each is.
const ROOMS: &[&str] = &[
    "base", "config", "astro", "journal", "gateway", "channel", "sink", "delivery", "publish",
    "command", "cluster", "loading", "http", "app",
];

/// A file: its module path, as `["sink", "mqtt", "link"]`.
type Module = Vec<String>;

/// Which modules each module imports.
type Graph = BTreeMap<Module, BTreeSet<Module>>;

#[test]
fn rooms_import_only_rooms_below_them() {
    let wrong = upward(&graph(&sources()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_files_import_one_another_in_a_circle() {
    let wrong = circles(&graph(&sources()));
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_is_in_a_room() {
    let rooms: BTreeSet<String> =
        graph(&sources()).into_keys().filter_map(|module| module.into_iter().next()).collect();
    let known = ROOMS.iter().map(|&room| room.to_owned()).collect();
    assert_eq!(rooms, known);
    assert!(ROOMS.len() <= 14);
}

/// No file is so large that it holds several ideas. Tests at the foot of a file do not count.
#[test]
fn no_file_is_longer_than_600_lines() {
    let mut wrong = Vec::new();
    for (module, text) in sources() {
        let lines = without_tests(&text).lines().count();
        if lines > 600 {
            wrong.push(format!("{} has {lines} lines", module.join("::")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_planted_arrow_and_a_planted_circle_are_found() {
    let mut sources = sources();
    let upward_arrow = "use crate::{base::clock, app::{cli, relay::Relay as Planted}};\n";
    *sources.get_mut(&module("journal")).unwrap() += upward_arrow;
    assert_eq!(
        upward(&graph(&sources)),
        ["journal imports app::cli", "journal imports app::relay"]
    );
    for (one, other) in [("base::clock", "base::text"), ("base::text", "base::clock")] {
        let import = format!("fn planted() {{ crate::{other}::planted() }}\n");
        sources.get_mut(&module(one)).unwrap().insert_str(0, &import);
    }
    let found = circles(&graph(&sources)).join("\n");
    assert!(found.contains("base::clock") && found.contains("base::text"), "{found}");
}

#[test]
fn imports_are_read_as_the_compiler_reads_them() {
    let sources = [
        ("a", "use self::b::{C, d::E};\npub use super::z;"),
        ("a::b", "use super::f;\nmod d;\nfn g(x: &crate::z::Y) { \"crate::no::way\" }"),
        ("a::b::d", "// use crate::no;\nuse super::super::f::{self, G};"),
        ("a::f", "#[cfg(test)]\nmod tests { use crate::z; }"),
        ("z", ""),
    ];
    let sources = sources.iter().map(|(name, text)| (module(name), (*text).to_owned())).collect();
    let mut found = Vec::new();
    for (from, to) in graph(&sources) {
        found.extend(to.into_iter().map(|to| format!("{} -> {}", from.join("::"), to.join("::"))));
    }
    assert_eq!(
        found,
        ["a -> a::b", "a -> a::b::d", "a -> z", "a::b -> a::f", "a::b -> z", "a::b::d -> a::f"]
    );
}

fn module(path: &str) -> Module {
    path.split("::").map(String::from).collect()
}

/// Every file of `src` but the roots of the crates and files of tests, by its module path.
fn sources() -> BTreeMap<Module, String> {
    fn walk(dir: &Path, at: &Module, found: &mut BTreeMap<Module, String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let mut module = at.clone();
            module.push(path.file_stem().unwrap().to_string_lossy().into_owned());
            if path.is_dir() {
                walk(&path, &module, found);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_stem().is_some_and(|name| name != "tests")
            {
                found.insert(module, fs::read_to_string(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &Vec::new(), &mut found);
    found.remove(&module("lib"));
    found.remove(&module("main"));
    found
}

fn graph(sources: &BTreeMap<Module, String>) -> Graph {
    let modules: BTreeSet<&Module> = sources.keys().collect();
    let mut graph = Graph::new();
    for (from, text) in sources {
        let imported = paths(&tokens(&without_tests(text)))
            .into_iter()
            .filter_map(|path| file_of(&absolute(from, &path), &modules))
            .filter(|to| to != from && from.get(..to.len()) != Some(to));
        graph.insert(from.clone(), imported.collect());
    }
    graph
}

/// Imports of a room above one's own.
fn upward(graph: &Graph) -> Vec<String> {
    let floor = |module: &Module| ROOMS.iter().position(|room| *room == module[0]);
    let mut wrong = Vec::new();
    for (from, imported) in graph {
        for to in imported.iter().filter(|to| floor(to) > floor(from)) {
            wrong.push(format!("{} imports {}", from.join("::"), to.join("::")));
        }
    }
    wrong
}

/// Files that import one another, whether directly or over others. Where a file has files under it, an
/// import of one of them by the file itself is no step of a circle.
fn circles(graph: &Graph) -> Vec<String> {
    let reachable = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for to in graph.get(&module).into_iter().flatten() {
                let inside = to.get(..module.len()) == Some(&module);
                if !inside && seen.insert(to.clone()) {
                    next.push(to.clone());
                }
            }
        }
        seen
    };
    let reachable: BTreeMap<&Module, BTreeSet<Module>> =
        graph.keys().map(|module| (module, reachable(module))).collect();
    let mut wrong = Vec::new();
    for (module, others) in &reachable {
        if others.contains(*module) {
            let circle: Vec<_> = others
                .iter()
                .filter(|other| reachable.get(other).is_some_and(|back| back.contains(*module)))
                .map(|other| other.join("::"))
                .collect();
            wrong.push(format!("{} is in a circle: {}", module.join("::"), circle.join(", ")));
        }
    }
    wrong
}

fn without_tests(text: &str) -> String {
    text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned()
}

/// A path as it is written, from the crate's root.
fn absolute(from: &Module, path: &[String]) -> Module {
    let mut base = from.clone();
    let mut rest = path;
    match path.first().map(String::as_str) {
        Some("crate") => {
            base.clear();
            rest = &path[1..];
        }
        Some("self") => rest = &path[1..],
        _ => {}
    }
    while rest.first().is_some_and(|word| word == "super") {
        base.pop();
        rest = &rest[1..];
    }
    base.extend(rest.iter().cloned());
    base
}

/// The file that a path leads into: the longest part of it that is one.
fn file_of(path: &Module, modules: &BTreeSet<&Module>) -> Option<Module> {
    (1..=path.len())
        .rev()
        .map(|length| path[..length].to_vec())
        .find(|module| modules.contains(module))
}

/// Words and marks of the code, without comments and literals.
fn tokens(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    let (mut tokens, mut at) = (Vec::new(), 0);
    let starts = |at: usize, with: &str| {
        with.chars().enumerate().all(|(i, c)| characters.get(at + i) == Some(&c))
    };
    let find = |from: usize, what: &str| {
        (from..characters.len()).find(|&at| starts(at, what)).unwrap_or(characters.len())
    };
    while let Some(&character) = characters.get(at) {
        if starts(at, "//") {
            at = find(at, "\n");
        } else if starts(at, "/*") {
            at = find(at, "*/") + 2;
        } else if character == '"' {
            at += 1;
            while characters.get(at).is_some_and(|&c| c != '"') {
                at += if characters[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if character == 'r' && (starts(at, "r\"") || starts(at, "r#")) {
            let marks = characters[at + 1..].iter().take_while(|&&c| c == '#').count();
            at = find(at + marks + 2, &format!("\"{}", "#".repeat(marks))) + marks + 1;
        } else if character == '\'' && characters.get(at + 2) == Some(&'\'') {
            at += 3;
        } else if starts(at, "'\\") {
            at = find(at + 3, "'") + 1;
        } else if character.is_alphanumeric() || character == '_' {
            let length =
                characters[at..].iter().take_while(|&&c| c.is_alphanumeric() || c == '_').count();
            tokens.push(characters[at..at + length].iter().collect());
            at += length;
        } else if starts(at, "::") {
            tokens.push("::".to_owned());
            at += 2;
        } else {
            if !character.is_whitespace() {
                tokens.push(character.to_string());
            }
            at += 1;
        }
    }
    tokens
}

/// All paths that begin with `crate`, `super` or `self`, with their groups taken apart.
fn paths(tokens: &[String]) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let begins = matches!(&*tokens[at], "crate" | "super" | "self")
            && tokens.get(at + 1).is_some_and(|next| next == "::")
            && (at == 0 || tokens[at - 1] != "::");
        at = if begins { path(tokens, at, &[], &mut found) } else { at + 1 };
    }
    found
}

/// Reads one path, with what stands before it; answers where it ends.
fn path(
    tokens: &[String],
    mut at: usize,
    before: &[String],
    found: &mut Vec<Vec<String>>,
) -> usize {
    let mut path = before.to_vec();
    loop {
        match tokens.get(at).map(String::as_str) {
            Some("{") if !path.is_empty() => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    at = if tokens[at] == "," {
                        at + 1
                    } else {
                        self::path(tokens, at, &path, found)
                    };
                }
                return at + 1;
            }
            Some(word)
                if word.starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '*') =>
            {
                // `a::{self}` is `a`.
                if word != "self" || path.is_empty() {
                    path.push(word.to_owned());
                }
                at += 1;
            }
            _ => at += 1,
        }
        if tokens.get(at).is_some_and(|token| token == "as") {
            at += 2;
        }
        if tokens.get(at).is_none_or(|token| token != "::") {
            found.push(path);
            return at;
        }
        at += 1;
    }
}
