//! Mistakes of newcomers: what is said of each.

use super::{problems, warnings};

const CHANNEL: &str = "[channels.main]\ntoken_env = \"T\"\ntopics = [\"channel.session.update\"]\n";

fn file(sinks: &str) -> String {
    format!("{CHANNEL}{sinks}")
}

fn only(said: Vec<String>) -> String {
    match <[String; 1]>::try_from(said) {
        Ok([one]) => one,
        Err(said) => panic!("{said:#?}"),
    }
}

#[test]
fn a_misspelt_command_is_named_with_what_was_meant() {
    let mqtt = "[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\ncommands = [\"session/sett\"]\n";
    let said = only(problems(&file(mqtt)));
    assert!(said.contains("sinks.home.commands[0]: one of "), "{said}");
    assert!(said.ends_with("did you mean \"session/set\"?"), "{said}");
}

#[test]
fn entities_without_state_are_a_contradiction() {
    let mqtt = "[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\nhomeassistant = true\n";
    assert_eq!(problems(&file(mqtt)), [""; 0]);
    let said = only(problems(&file(&format!("{mqtt}state = false\n"))));
    assert!(said.contains("sinks.home.state: contradicts homeassistant = true"), "{said}");
}

#[test]
fn a_user_without_a_password_is_a_warning() {
    let mqtt = "[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\nuser = \"relay\"\n";
    let said = only(warnings(&file(mqtt)));
    assert!(said.contains("sinks.home.user: has no password: set password_file"), "{said}");
    let with = format!("{mqtt}password_env = \"P\"\n");
    assert_eq!(warnings(&file(&with)), [""; 0]);
}

#[test]
fn a_table_that_is_there_twice_is_named_once_with_both_lines() {
    let twice = "[sinks.out]\ntype = \"stdout\"\n[sinks.out]\ntype = \"stdout\"\n";
    let said = only(problems(&file(twice)));
    assert!(said.ends_with("is not TOML: [sinks.out] is there twice, in lines 4 and 6"), "{said}");
    // A key says no name: it may be what was pasted.
    let said = only(problems(&file("[sinks.out]\ntype = \"stdout\"\ntype = \"stdout\"\n")));
    assert!(said.ends_with("is not TOML: duplicate key"), "{said}");
}

#[test]
fn a_star_that_fits_nothing_is_asked_for_two() {
    let sink =
        |topics: &str| file(&format!("[sinks.out]\ntype = \"stdout\"\ntopics = [{topics}]\n"));
    let said = only(warnings(&sink("\"channel.*\"")));
    assert!(said.ends_with("did you mean \"channel.**\"?"), "{said}");
    // It fits something, or nothing would.
    for fine in ["\"channel.session.*\"", "\"channel.**\"", "\"other.*\""] {
        assert_eq!(warnings(&sink(fine)), [""; 0], "{fine}");
    }
}

#[test]
fn a_duration_of_more_than_a_hundred_years_is_an_error() {
    let nats = "[sinks.home]\ntype = \"nats\"\nurl = \"nats://b\"\ntimeout = \"500000000000y\"\n\
                backoff_max = \"500000000000y\"\n";
    let said = problems(&file(nats));
    assert_eq!(said.len(), 2, "{said:#?}");
    for (said, key) in said.iter().zip(["timeout", "backoff_max"]) {
        let expected = format!("sinks.home.{key}: a duration of at most 100 years was expected");
        assert!(said.ends_with(&expected), "{said}");
    }
}

#[test]
fn a_proxy_that_is_no_address_is_named_by_its_place_and_not_shown() {
    let http = "[http]\ntrusted_proxies = [\"127.0.0.1\", \"hunter2\"]\n";
    let said = only(problems(&file(http)));
    let expected = "http.trusted_proxies[1]: an address such as \"172.30.32.2\" was expected";
    assert!(said.ends_with(expected) && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_key_under_the_name_that_it_has_elsewhere_is_named_as_it_is_here() {
    let mqtt = "[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\nusername = \"relay\"\n";
    let said = only(problems(&file(mqtt)));
    assert!(said.contains("sinks.home.username: unknown key"), "{said}");
    assert!(said.ends_with("did you mean \"user\"?"), "{said}");
    // Where there is none, it is not named.
    let said = only(problems(&file("[sinks.out]\ntype = \"stdout\"\nusername = \"relay\"\n")));
    assert!(said.ends_with("unknown key"), "{said}");
}

#[test]
fn a_quality_of_service_is_0_1_or_2() {
    let mqtt = |qos: &str| {
        file(&format!("[sinks.home]\ntype = \"mqtt\"\nurl = \"mqtt://b\"\nqos = {qos}\n"))
    };
    for qos in ["\"1\"", "3"] {
        let said = only(problems(&mqtt(qos)));
        assert!(said.contains("sinks.home.qos: a whole number from 0 to 2 was expected"), "{said}");
    }
    assert_eq!(problems(&mqtt("2")), [""; 0]);
}

#[test]
fn an_address_of_a_scheme_alone_does_not_cut_the_example_that_is_named() {
    for (kind, url) in [("mqtt", "mqtt://"), ("nats", "nats://")] {
        let sink = format!("[sinks.home]\ntype = \"{kind}\"\nurl = \"{url}\"\n");
        let said = only(problems(&file(&sink)));
        assert!(said.contains(&format!("a URL such as {url}host")), "{said}");
    }
}
