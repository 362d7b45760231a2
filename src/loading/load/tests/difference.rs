//! What a reload finds different, from files as they are written.

use crate::{
    config::{
        Config,
        difference::{Difference, difference},
    },
    loading::{Sources, load},
};

const BASE: &str = r#"
    [channels.main]
    token = "t1"
    topics = ["channel.tips"]
    [channels.other]
    room = "5b2e2007760aeb7729487dab"
    token = "t2"
    topics = ["channel.tips"]
    [sinks.out]
    type = "stdout"
    [sinks.home]
    type = "mqtt"
    url = "mqtt://127.0.0.1"
"#;

fn config(text: &str) -> Config {
    let sources = Sources { text: Some(text.into()), ..Sources::default() };
    load(&sources).unwrap().config
}

/// The base with some of it replaced, and more behind it.
fn changed(replace: &[(&str, &str)], more: &str) -> Config {
    let mut text = BASE.to_owned();
    for (old, new) in replace {
        assert!(text.contains(old), "{old}");
        text = text.replacen(old, new, 1);
    }
    config(&format!("{text}\n{more}"))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

#[test]
fn each_change_is_named_once_and_in_its_place() {
    let none = Difference::default();
    let table: Vec<(Config, Difference)> = vec![
        (changed(&[], ""), none.clone()),
        (
            changed(&[("t1", "t3")], ""),
            Difference { channels_changed: names(&["main"]), ..none.clone() },
        ),
        (
            changed(&[("[channels.main]", "[channels.first]")], ""),
            Difference {
                channels_added: names(&["first"]),
                channels_removed: names(&["main"]),
                ..none.clone()
            },
        ),
        (
            changed(&[], "qos = 0\n[sinks.new]\ntype = \"stdout\""),
            Difference {
                sinks_added: names(&["new"]),
                sinks_changed: names(&["home"]),
                ..none.clone()
            },
        ),
        (
            changed(&[("[sinks.out]\n    type = \"stdout\"", "")], ""),
            Difference { sinks_removed: names(&["out"]), ..none.clone() },
        ),
        (
            changed(&[], "[log]\nlevel = \"debug\"\nformat = \"json\"\n[reload]\nwatch = true"),
            Difference {
                applied: names(&["log.level", "reload.watch"]),
                needs_restart: names(&["log.format"]),
                ..none.clone()
            },
        ),
        (
            changed(
                &[],
                "[astro]\nurl = \"ws://127.0.0.1\"\n[journal]\ndir = \"/x\"\n[http]\n\
                 listen = \"127.0.0.1:1\"\nadmin_token = \"s3cret\"",
            ),
            Difference {
                applied: names(&["http.admin_token"]),
                needs_restart: names(&["astro.url", "http.listen", "journal.dir"]),
                ..none.clone()
            },
        ),
    ];
    let base = config(BASE);
    for (loaded, expected) in table {
        let (found, next) = difference(&base, &loaded);
        assert_eq!(found, expected);
        // Carried out, nothing is left but what needs a restart, and that is still told.
        let (rest, _) = difference(&next, &loaded);
        assert!(rest.is_empty(), "{rest:?}");
        assert_eq!(rest.needs_restart, expected.needs_restart);
    }
}

#[test]
fn the_token_of_another_account_in_the_same_place_is_a_change_of_its_channel() {
    let [one, two] = ["5b2e2007760aeb7729487dab", "6b2e2007760aeb7729487dab"];
    let with = |room: Option<&str>| {
        let mut config = config(BASE);
        config.token_rooms.extend(room.map(|room| ("main".to_owned(), room.to_owned())));
        config
    };
    // Whose the token is now, what changes by that, and whose it is taken to be. One that cannot be read
    // says nothing.
    let cases: [(Option<&str>, &[&str], &str); 3] =
        [(Some(one), &[], one), (Some(two), &["main"], two), (None, &[], one)];
    for (now, changed, taken) in cases {
        let (found, next) = difference(&with(Some(one)), &with(now));
        assert_eq!(found, Difference { channels_changed: names(changed), ..Difference::default() });
        assert_eq!(next.token_rooms["main"], taken);
    }
}

#[test]
fn the_gateway_is_concerned_by_channels_alone() {
    let base = config(BASE);
    let (sinks, _) = difference(&base, &changed(&[], "qos = 0"));
    let (channels, _) = difference(&base, &changed(&[("t2", "t4")], ""));
    assert!(!sinks.concerns_gateway() && !sinks.is_empty());
    assert!(channels.concerns_gateway() && !channels.is_empty());
}
